"""KV policies on a real bundle: within the budget nothing changes, beyond it memory stays and the best scored stay."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from edgellm.runtime import load
from edgellm.runtime.cli import main
from edgellm.runtime.errors import BundleError, ContextError, EdgellmError, PromptCacheError
from edgellm.runtime.kv_policy import POLICIES
from edgellm.runtime.manifest import dump, seal
from edgellm.runtime.session import Session
from tests.bundles import make_bundle
from tests.conftest import write_folder
from tests.door import Door

IDS = [(7 * i * i + i) % 317 + 3 for i in range(256)]
SMALL = {"vatp": ",sinks=4,recent=0.25", "vatp-window": ",sinks=4,queries=30"}


@pytest.fixture(scope="module")
def bundle(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("kv") / "bundle"
    make_bundle(tiny_model, out, bits=8, kv="vatp:64,sinks=4,prefill=whole")
    return out


@pytest.fixture(scope="module")
def int8_bundle(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("kv") / "int8"
    make_bundle(tiny_model, out, bits=8, kv="vatp:64,sinks=4,prefill=whole", kv_bits=8)  # parity is checked there
    return out


def error(got: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    return float(np.linalg.norm(got - expected) / np.linalg.norm(expected))


def decoded(session: Session, tokens: int = 12) -> NDArray[np.float32]:
    return np.stack([session.step(token) for token in IDS[200 : 200 + tokens]])


@pytest.mark.parametrize("name", POLICIES)
def test_within_the_budget_every_policy_is_full(bundle: Path, name: str) -> None:
    full, other = load(bundle, kv="full", threads=1), load(bundle, kv=f"{name}:220", threads=1)
    assert error(other.prefill(IDS[:200]), full.prefill(IDS[:200])) < 1e-5
    assert error(decoded(other), decoded(full)) < 1e-5
    assert (other.kv_evictions, other.kv_coverage) == (0, 1.0)


@pytest.mark.parametrize("name", [name for name in POLICIES if name != "full"])
def test_a_whole_prompt_is_read_as_by_a_full_cache(bundle: Path, name: str) -> None:
    session = load(bundle, kv=f"{name}:40{SMALL.get(name, '')},prefill=whole", threads=1)
    small = session.kv_bytes
    assert error(session.prefill(IDS[:200]), load(bundle, kv="full", threads=1).prefill(IDS[:200])) < 1e-5
    decoded(session)
    assert session.kv_bytes == small
    assert session.kv_evictions == 211 - 40
    coverage = session.kv_coverage
    if name in ("window", "tova"):  # no scores; those of the last query alone
        assert coverage is None
        return
    assert coverage is not None
    assert 0 < coverage < 1
    one = load(bundle, kv=f"{name}:80{SMALL.get(name, '')},prefill=whole", threads=1)
    one.prefill(IDS[:200])
    decoded(one)
    assert one.kv_coverage is not None
    assert one.kv_coverage > coverage


def test_8_bits_are_half_the_bytes_and_nearly_the_same_logits(bundle: Path, int8_bundle: Path) -> None:
    session, wide = load(int8_bundle, kv="full", threads=1), load(bundle, kv="full", threads=1)
    slots = 2 * 2 * (256 + 256)  # layers, KV heads, budget and staging
    assert (wide.kv_bytes, session.kv_bytes) == (slots * (2 * 2 * 16 + 4), slots * (2 * (16 + 4) + 4))
    got, expected = session.prefill(IDS[:200]), wide.prefill(IDS[:200])
    assert 0 < error(got, expected) < 0.06
    assert error(decoded(session), decoded(wide)) < 0.06


def test_a_prefix_read_in_one_run_or_token_by_token_is_the_same_at_8_bits(int8_bundle: Path) -> None:
    one, other = load(int8_bundle, kv="full", threads=1), load(int8_bundle, kv="full", threads=1)
    one.prefill(IDS[:212])
    other.prefill(IDS[:200])
    decoded(other)
    assert error(one.step(5), other.step(5)) < 1e-3


def test_bits_of_a_bundle_are_told_and_checked(int8_bundle: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["inspect", str(int8_bundle)])
    assert "vatp, 64 tokens, 8 bits" in done.output
    manifest = json.loads((int8_bundle / "edgellm.json").read_text())
    assert manifest["kv"]["bits"] == 8
    copy = tmp_path / "copy"
    shutil.copytree(int8_bundle, copy)
    for bits, message in ((4, '"kv.bits" is 4'), (16, "does not match|cannot run|Unexpected input data type")):
        manifest["kv"]["bits"] = bits
        (copy / "edgellm.json").write_bytes(dump(seal(manifest)))
        with pytest.raises(EdgellmError, match=message):
            load(copy, threads=1).prefill([1, 2, 3])


def test_a_file_of_other_bits_is_refused(bundle: Path, int8_bundle: Path, tmp_path: Path) -> None:
    session = load(int8_bundle, threads=1)
    session.prefill(IDS[:20])
    session.save_cache(tmp_path / "cache")
    again = load(int8_bundle, threads=1)
    again.restore_cache(tmp_path / "cache")
    np.testing.assert_array_equal(decoded(again), decoded(session))
    with pytest.raises(PromptCacheError, match="keys and values of 8 bits; this bundle's cache has 16"):
        load(bundle, threads=1).restore_cache(tmp_path / "cache")


def test_the_c_library_holds_the_same_int8_cache(int8_bundle: Path) -> None:
    try:
        door = Door(int8_bundle, kv=b"vatp:64,sinks=4", threads=1)
    except FileNotFoundError as error:
        pytest.skip(f"{error} was not built")
    session = load(int8_bundle, kv="vatp:64,sinks=4", threads=1)
    door.prompt(IDS[:200])
    expected = session.prefill(IDS[:200])
    assert door.facts().kv_bytes == session.kv_bytes
    np.testing.assert_array_equal(door.logits(), expected)


def test_large_key_biases_cost_8_bits_nothing(tmp_path: Path) -> None:
    """As Qwen2's: a hundred times the activations, where rotary embedding turns slowest."""
    folder = write_folder(tmp_path / "model", model_type="qwen2", rope_theta=1e6)
    weights = load_file(folder / "model.safetensors")
    for layer, (role, size) in itertools.product(range(2), (("q", 64), ("k", 32), ("v", 32))):
        bias = torch.zeros(size)
        bias[6 : size if role == "k" else 0 : 8] = 100
        bias[7 : size if role == "k" else 0 : 8] = -150
        weights[f"model.layers.{layer}.self_attn.{role}_proj.bias"] = bias
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    found = []
    for bits in (16, 8):
        facts = make_bundle(folder, tmp_path / str(bits), bits=8, kv="full", kv_bits=bits)
        found.append(load(tmp_path / str(bits), threads=1).logits(IDS[:100]))
        assert facts["parity"]["logit_error"] < 1e-2
    assert error(found[1], found[0]) < 0.06


@pytest.mark.parametrize("bits", [16, 8])
@pytest.mark.parametrize("name", [name for name in POLICIES if name != "full"])
def test_a_file_restores_scores(bundle: Path, int8_bundle: Path, tmp_path: Path, name: str, bits: int) -> None:
    bundle = bundle if bits == 16 else int8_bundle
    one, other = (load(bundle, kv=f"{name}:40{SMALL.get(name, '')}", threads=1) for _ in "ab")
    for start in range(0, 180, 60):
        one.prefill(IDS[start : start + 60])
    one.save_cache(tmp_path / "cache")
    other.restore_cache(tmp_path / "cache")
    np.testing.assert_array_equal(decoded(other), decoded(one))
    assert other.kv_coverage == one.kv_coverage


def test_a_prompt_that_is_read_whole_is_pooled_once_when_it_ends(bundle: Path) -> None:
    plain, other = (load(bundle, kv=f"h2o:40,sinks=4,prefill=whole{pool}", threads=1) for pool in ("", ",pool=5"))
    plain.prefill(IDS[:200])
    other.prefill(IDS[:200])
    paid = np.pad(plain.kv_importance(1), ((0, 0), (2, 2)))
    largest = np.stack([paid[:, shift : shift + 200] for shift in range(5)]).max(axis=0)
    np.testing.assert_array_equal(other.kv_importance(1), largest)
    assert error(decoded(other), decoded(plain)) > 0
    assert other.kv_coverage is None


def test_the_bundles_own_policy_and_budgets_a_layer(bundle: Path, tmp_path: Path) -> None:
    session = load(bundle, threads=1)
    assert str(session.policy) == "vatp:64,sinks=4,prefill=whole"
    manifest = json.loads((bundle / "edgellm.json").read_text())
    assert manifest["kv"] == {"policy": "vatp", "budget": 64, "sinks": 4, "recent": 0.5, "forget": 1.0, "queries": 0,
                              "heads": "sum", "prefill": "whole", "bits": 16}  # fmt: skip
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in bundle.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    manifest["kv"]["budgets"] = [30, 98]
    (copy / "edgellm.json").write_bytes(dump(seal(manifest)))
    session = load(copy, threads=1)
    assert session.kv_bytes == load(bundle, threads=1).kv_bytes
    session.prefill(IDS[:200])
    decoded(session)
    assert session.kv_evictions == 211 - 64
    done = CliRunner().invoke(main, ["inspect", str(copy)])
    assert "64 tokens (30 to 98 a layer)" in done.output
    manifest["kv"]["budgets"] = [30, 98, 64]
    (copy / "edgellm.json").write_bytes(dump(seal(manifest)))
    with pytest.raises(BundleError, match="3 budgets for 2 layers"):
        load(copy, threads=1)


def test_the_command_line_says_what_was_evicted(bundle: Path) -> None:
    words = "A token is a piece of a word. " * 8
    arguments = ["generate", str(bundle), "-p", words, "-n", "20", "--threads", "1"]
    done = CliRunner().invoke(main, [*arguments, "--kv", "h2o:32,sinks=4", "--json"])
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)
    assert facts["kv_evictions"] > 0
    assert 0 < facts["kv_coverage"] < 1
    told = CliRunner().invoke(main, [*arguments, "--kv", "a2sf:32"])
    assert "evicted, which had" in told.stderr
    untold = CliRunner().invoke(main, [*arguments, "--kv", "tova:32"])
    assert "evicted" in untold.stderr
    assert "which had" not in untold.stderr


def test_positions_beyond_the_models_are_refused(bundle: Path) -> None:
    session = load(bundle, kv="h2o:32", threads=1)
    with pytest.raises(ContextError, match="257 tokens; the model's context holds 256"):
        session.prefill([5] * 257)
