"""The decoder in standard operators only, run by ONNX Runtime: torch's logits within half precision, the same text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from tests.bundles import make_bundle
from tests.export.standard import standard_session
from tests.export.test_architectures import MODELS, write_model

from edgellm.export.checkpoint import open_checkpoint
from edgellm.export.integer_weights import integer_weights
from edgellm.export.level import Level
from edgellm.export.packed_source import PackedSource, read_placed
from edgellm.export.verify import Parity, parity
from edgellm.kernels.layout import Format
from edgellm.runtime import load
from edgellm.runtime.errors import ContextError, EdgellmError

HALF = 6e-3
"""Of the logits' norm, for random weights, whose attention is sharp; real models are within 1e-3."""
# Soft caps and post norms, a window and partial rotation, norms of heads and several rotations, biases, an untied head.
FAMILIES = ("gemma2", "gemma3_text", "phi3 partial", "qwen2 sliding", "llama yarn")


def compare(source: Path, bundle: Path, prompts: int = 2) -> Parity:
    session = standard_session(source, bundle)
    arch, packed = open_checkpoint(source).architecture, PackedSource(bundle / "model.onnx.data", read_placed(bundle))
    ids = np.random.default_rng(0).integers(3, 320, (prompts, 40)).tolist()
    return parity(arch, packed, session, ids, 6)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FAMILIES)
def test_families_say_what_torch_says(name: str, tmp_path: Path) -> None:
    assert name in MODELS
    _, folder = write_model(name, tmp_path / "model", "5GB")
    make_bundle(folder, tmp_path / "bundle", bits=4, recover="none")
    found = compare(folder, tmp_path / "bundle")
    assert found.logit_error < HALF
    assert found.greedy_agreement + found.near_ties == 2


@pytest.mark.parametrize(
    "recipe",
    [
        dict(bits=8),
        dict(bits=4, head_bits=4, sparsity="magnitude:2:4", scope="all", recover="none"),
        dict(bits=8, sparsity="dass:4:8", recover="none"),
        dict(bits=4, recover="none", levels={"layers.0.v": Level(8)}),  # q, k and v apart
    ],
)
def test_recipes_say_what_torch_says(tiny_model: Path, tmp_path: Path, recipe: dict[str, Any]) -> None:
    make_bundle(tiny_model, tmp_path / "bundle", **recipe)
    found = compare(tiny_model, tmp_path / "bundle")
    assert found.logit_error < HALF
    assert found.greedy_agreement + found.near_ties == 2


def test_a_gguf_files_own_blocks_and_operators_of_the_standard_only(tiny_gguf: Path, tmp_path: Path) -> None:
    """Q4_1, Q4_0 and Q8_0: groups of 32, with minima and without, at both widths."""
    bundle = tmp_path / "bundle"
    make_bundle(tiny_gguf, bundle)
    assert compare(tiny_gguf, bundle).logit_error < HALF
    model = onnx.load(str(bundle / "engine.onnx"), load_external_data=False)
    assert {node.domain for node in model.graph.node} == {""}
    assert [opset.domain for opset in model.opset_import] == [""]
    kinds = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    assert kinds["layers.0.gate_up.codes"] == onnx.TensorProto.INT4
    assert kinds["layers.0.down.codes"] == onnx.TensorProto.INT8
    assert "layers.0.qkv.minimum" in kinds
    assert "layers.0.gate_up.minimum" not in kinds
    onnx.checker.check_model(str(bundle / "engine.onnx"))


def test_integers_scales_and_minima_are_the_packed_weights(tiny_model: Path, tmp_path: Path) -> None:
    make_bundle(tiny_model, tmp_path / "bundle", bits=4, recover="none")
    data = tmp_path / "bundle" / "model.onnx.data"
    placed = read_placed(tmp_path / "bundle")
    packed = PackedSource(data, placed)
    for name, parts in (("layers.1.gate_up", ("gate", "up")), ("layers.1.o", ("o",))):
        at = placed[name]
        assert isinstance(at.format, Format)
        found = integer_weights(data, at, name.endswith("gate_up"))
        assert found.minimum is not None
        nibbles = np.stack([found.codes & 15, found.codes >> 4], axis=-1).astype(np.int8).reshape(at.format.k_in, -1)
        code = np.where(nibbles > 7, nibbles - 16, nibbles)
        weight = code * np.repeat(found.scale, 64, axis=0).astype(np.float32)
        weight += np.repeat(found.minimum, 64, axis=0)
        expected = np.concatenate([packed.matrix(f"layers.1.{part}").numpy() for part in parts])
        np.testing.assert_allclose(weight.T, expected, atol=2**-11 * np.abs(found.minimum).max())


def test_it_goes_on_where_the_cpus_bundle_goes_on(tiny_model: Path, tmp_path: Path) -> None:
    """Turns, a cut back, rows in every chunk, and the end of the cache, against the bundle's own session."""
    bundle = tmp_path / "bundle"
    make_bundle(tiny_model, bundle, bits=8)
    ours, theirs = standard_session(tiny_model, bundle, 64), load(bundle, kv="full:64")
    ids = np.random.default_rng(1).integers(3, 320, 50).tolist()
    for one, other in ((ours.logits(ids[:40]), theirs.logits(ids[:40])), (ours.step(7), theirs.step(7))):
        assert np.linalg.norm(one - other) < HALF * np.linalg.norm(other)
    for kept in (ids, ids[:20] + ids[30:]):
        one, other = ours.extend(kept, keep=True), theirs.extend(kept, keep=True)
        assert ours.reused_tokens == theirs.reused_tokens > 0
        assert np.linalg.norm(one - other) < HALF * np.linalg.norm(other)
    ours.save_cache(tmp_path / "cache")
    again = standard_session(tiny_model, bundle, 64)
    assert again.restore_cache(tmp_path / "cache") == 40
    np.testing.assert_array_equal(again.step(9), ours.step(9))
    with pytest.raises(ContextError, match="holds 64"):
        ours.prefill(ids)


def test_n_of_m_weights_with_minima_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    make_bundle(tiny_model, tmp_path / "bundle", bits=4, recover="none")
    at = read_placed(tmp_path / "bundle")["layers.0.o"]
    sparse = Format(64, 64, 4, 64, "min", 2, 4)
    with pytest.raises(EdgellmError, match="no form in standard operators"):
        integer_weights(tmp_path / "bundle" / "model.onnx.data", type(at)(at.offset, at.nbytes, at.shape, sparse))
