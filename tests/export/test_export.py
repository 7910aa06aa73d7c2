"""From a checkpoint to a running bundle: every recipe, what is stored, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from tests.bundles import make_bundle
from tests.conftest import write_folder

from edgellm.export import pipeline, verify
from edgellm.export.checkpoint import open_checkpoint
from edgellm.export.config import Sparsity
from edgellm.export.decoder import forward
from edgellm.export.packed_source import PackedSource, read_placed
from edgellm.kernels.layout import unpack
from edgellm.runtime import load
from edgellm.runtime.errors import EdgellmError, UsageError

PRUNED = [f"{method}:{nm}" for method in ("dass", "wanda", "magnitude") for nm in ("2:4", "4:8")]


def matrix(bundle: Path, name: str):
    at = read_placed(bundle)[name]
    data = np.fromfile(bundle / "model.onnx.data", np.uint8)[at.offset : at.offset + at.nbytes]
    return unpack(data, at.format)


@pytest.mark.parametrize("scope", ["mlp", "all"])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("sparsity", ["none", *PRUNED])
def test_every_recipe_matches_torch_with_the_same_weights(
    tiny_model: Path, tmp_path: Path, sparsity: str, bits: int, scope: str
) -> None:
    out = tmp_path / "bundle"
    facts = make_bundle(tiny_model, out, sparsity, bits=bits, scope=scope)
    assert facts["parity"]["logit_error"] < 5e-3
    session = load(out, verify=True)
    ids = session.encode("The stairs are many, 31 of them.")
    arch = open_checkpoint(tiny_model).architecture
    expected = forward(arch, PackedSource(out / "model.onnx.data", read_placed(out)), torch.tensor([ids]))[0].numpy()
    got = session.logits(ids)
    assert np.linalg.norm(got - expected) < 5e-3 * np.linalg.norm(expected)


@pytest.mark.parametrize("sparsity", PRUNED)
@pytest.mark.parametrize("scope", ["mlp", "all"])
def test_exactly_n_of_m_are_kept_on_the_methods_axis(
    tiny_model: Path, tmp_path: Path, sparsity: str, scope: str
) -> None:
    out = tmp_path / "bundle"
    make_bundle(tiny_model, out, sparsity, bits=4, scope=scope)
    method, n, m = sparsity.split(":")
    for name in ("gate_up", "down", "qkv", "o"):
        q = matrix(out, f"layers.1.{name}")
        if scope == "mlp" and name in ("qkv", "o"):
            assert q.mask is None
            continue
        axis = "out" if method == "dass" and name == "gate_up" else "in"
        assert q.format.axis == axis
        along = q.mask if axis == "in" else q.mask.T
        assert (along.reshape(-1, int(m)).sum(axis=1) == int(n)).all()


def test_ggufs_own_blocks_are_kept_bit_for_bit(tiny_gguf: Path, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    facts = make_bundle(tiny_gguf, out)
    checkpoint, packed = open_checkpoint(tiny_gguf), PackedSource(out / "model.onnx.data", read_placed(out))
    for name, shape in checkpoint.architecture.tensors():
        if shape[1]:
            assert torch.equal(packed.matrix(name), checkpoint.matrix(name)), name
        else:
            assert torch.equal(packed.vector(name), checkpoint.vector(name)), name
    assert facts["recipe"]["bits"] == "as stored"
    assert facts["quality"]["perplexity"] == pytest.approx(facts["quality"]["dense_perplexity"], rel=2e-3)
    kinds = {m["name"].split(".")[-1]: (m["bits"], m["group"], m["zero"]) for m in facts["matrices"]}
    assert kinds["qkv"] == (4, 32, "min")  # Q4_1
    assert kinds["gate_up"] == (4, 32, "symmetric")  # Q4_0
    assert kinds["down"] == (8, 32, "symmetric")  # Q8_0


def test_pruning_keeps_what_it_does_not_touch_bit_for_bit(tiny_gguf: Path, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    facts = make_bundle(tiny_gguf, out, "magnitude:2:4")
    kinds = {m["name"].split(".")[-1]: (m["bits"], m["group"], m["n"]) for m in facts["matrices"]}
    assert kinds["qkv"] == (4, 32, 1)
    assert kinds["gate_up"] == (8, 64, 2)


@pytest.mark.parametrize(("bits", "head", "expected"), [(4, None, 8), (4, 4, 4), (8, 4, 4), (None, 4, 4)])
def test_the_heads_width_is_chosen_apart(
    tiny_gguf: Path, tmp_path: Path, bits: int | None, head: int | None, expected: int
) -> None:
    facts = make_bundle(tiny_gguf, tmp_path / "bundle", bits=bits, head_bits=head)
    widths = {m["name"]: m["bits"] for m in facts["matrices"]}
    assert widths["embedding"] == expected
    assert widths["layers.0.qkv"] == (bits or 4)


def test_a_tied_embedding_is_stored_once_and_an_untied_head_apart(tmp_path: Path) -> None:
    tied, untied = write_folder(tmp_path / "a"), write_folder(tmp_path / "b", tie_word_embeddings=False)
    sizes = {}
    for name, source in (("tied", tied), ("untied", untied)):
        make_bundle(source, tmp_path / name, bits=8)
        sizes[name] = {m.name: m.bytes for m in load(tmp_path / name).manifest.matrices}
        graph = onnx.load(str(tmp_path / name / "model.onnx"), load_external_data=False).graph
        reads = [node.input[1] for node in graph.node if node.op_type in ("QuantGather", "NMMatMul")]
        assert reads.count("embedding") == (2 if name == "tied" else 1)
    assert "head" not in sizes["tied"]
    assert sizes["untied"]["head"] == sizes["untied"]["embedding"]


def test_weights_lie_on_pages_of_one_file(tiny_model: Path, tmp_path: Path) -> None:
    make_bundle(tiny_model, tmp_path / "bundle", bits=4)
    assert all(at.offset % 4096 == 0 for at in read_placed(tmp_path / "bundle").values())
    assert sum(1 for _ in (tmp_path / "bundle").glob("*.data")) == 1


def test_without_a_file_the_dense_model_writes_the_text(tiny_model: Path, tmp_path: Path) -> None:
    facts = make_bundle(tiny_model, tmp_path / "bundle", "wanda:2:4", calibration=None)
    assert facts["quality"]["text"] == "written by the dense model"
    assert facts["quality"]["tokens"] == 4 * 256
    again = make_bundle(tiny_model, tmp_path / "again", "wanda:2:4", calibration=None)
    assert again["files"]["model.onnx.data"] == facts["files"]["model.onnx.data"]  # same seed, same weights


def test_a_bundle_that_strays_from_torch_is_not_written(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Wrong(PackedSource):
        def vector(self, name: str) -> torch.Tensor:
            return super().vector(name) * (1.5 if name == "norm" else 1)

    monkeypatch.setattr(pipeline, "PackedSource", Wrong)
    with pytest.raises(EdgellmError, match="does not match the torch model"):
        make_bundle(tiny_model, tmp_path / "bundle", bits=8)
    assert [p.name for p in tmp_path.iterdir()] == ["calibration.txt"]


@pytest.mark.parametrize("error", [float("nan"), float("inf"), 0.02])
def test_parity_fails_on_a_large_error_or_nan(error: float) -> None:
    with pytest.raises(EdgellmError, match="does not match"):
        verify.Parity(20, 16, error, error, 20).check()


def test_parity_fails_on_few_equal_texts() -> None:
    verify.Parity(20, 16, 1e-3, 1e-3, 18).check()
    verify.Parity(20, 16, 1e-3, 1e-3, 15, near_ties=3).check()
    with pytest.raises(EdgellmError, match="17 of 20"):
        verify.Parity(20, 16, 1e-3, 1e-3, 17).check()
    with pytest.raises(EdgellmError, match="2 part at a tie"):
        verify.Parity(20, 16, 1e-3, 1e-3, 15, near_ties=2).check()


def test_an_existing_folder_is_kept_unless_forced(tiny_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    make_bundle(tiny_model, out, bits=8)
    with pytest.raises(EdgellmError, match="already exists"):  # told before the source is even opened
        make_bundle(tmp_path / "nothing", out, bits=4)
    assert make_bundle(tiny_model, out, bits=4, force=True)["recipe"]["bits"] == 4
    assert load(out, verify=True).manifest.recipe.bits == 4
    mine = tmp_path / "photos"
    mine.mkdir()
    (mine / "cat.jpg").write_text("meow")
    with pytest.raises(EdgellmError, match="is no bundle"):
        make_bundle(tiny_model, mine, force=True)
    assert (mine / "cat.jpg").read_text() == "meow"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(intermediate_size=96), "96 inputs do not divide by 64"),
        (dict(hidden_size=80, num_attention_heads=5, num_key_value_heads=1), "80 inputs do not divide by 64"),
    ],
)
def test_sizes_that_no_tile_holds_are_refused_before_any_work(
    tmp_path: Path, changes: dict[str, int], message: str
) -> None:
    source = write_folder(tmp_path / "model", **changes)
    with pytest.raises(EdgellmError, match=message):
        make_bundle(source, tmp_path / "bundle", bits=4)
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize(
    "text", ["dass", "dass:2", "dass:4:4", "dass:0:4", "dass:2:5", "topk:2:4", "2:4", "dass:a:b", ""]
)
def test_sparsity_that_is_none_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError):
        Sparsity.parse(text)


def test_kv_of_the_bundle_is_its_default(tiny_model: Path, tmp_path: Path) -> None:
    make_bundle(tiny_model, tmp_path / "bundle", bits=8, kv="window:64")
    session = load(tmp_path / "bundle")
    assert (session.policy.name, session.policy.budget) == ("window", 64)
    with pytest.raises(UsageError, match="KV budget"):
        make_bundle(tiny_model, tmp_path / "x", kv="window:9999")
