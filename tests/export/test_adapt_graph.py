"""adapt.onnx against torch autograd on the dequantized weights, for every carrier and architecture of the table.

Float32 rounds gradients by up to some 1e-5, torch's own too: the judge is float64.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.bundles import make_bundle
from tests.export.adapt_reference import double_losses, torch_losses
from tests.export.test_architectures import write_model

from edgellm.export.adapt_carriers import CARRIERS, carrier_shapes
from edgellm.export.adapt_graph import adapt_graph, head_graph
from edgellm.export.architectures import Architecture
from edgellm.export.checkpoint import open_checkpoint
from edgellm.export.packed_source import PackedSource, read_placed

NAMES = ["llama biases", "llama yarn", "qwen2 sliding", "qwen3", "gemma2", "gemma3_text", "phi3 partial", "smollm3"]
LOSSES = ["ida", "entropy", "kl"]


def example(arch: Architecture, carrier: str, tokens: int = 29, prefix: int = 5, seed: int = 0) -> dict[str, Any]:
    """Inputs of the graph: a prompt of which the last rows but three are scored, and three answer tokens."""
    rng = np.random.default_rng(seed)
    before = 0 if carrier == "lora" else prefix
    first = before if carrier == "soft" else 0  # row of the first token
    places = np.arange(before + tokens) if carrier == "soft" else np.arange(before, before + tokens)
    scored = np.arange(first + tokens // 3, first + tokens - 4)
    given: dict[str, Any] = {"ids": rng.integers(3, 320, tokens), "positions": places, "prompt_rows": scored}
    given |= {"targets": rng.integers(3, 320, len(scored)), "answer_rows": first + tokens - 3 + np.arange(3)}
    given["prompt_weights"] = rng.random(len(scored)).astype(np.float32) / len(scored)
    given["answer_weights"] = rng.random(3).astype(np.float32)
    given["reference"] = rng.normal(size=(3, arch.vocabulary)).astype(np.float32)
    given |= {f"w_{name}": np.array(weight, np.float32) for name, weight in zip(LOSSES, (1.3, 0.7, 0.4), strict=True)}
    for name, shape in carrier_shapes(arch, carrier).items():
        sizes = [prefix if size == "P" else size for size in shape]
        given[name] = rng.normal(0, 0.1 if carrier == "lora" else 1.0, sizes).astype(np.float32)
    return given


def run(folder: Path, arch: Architecture, carrier: str, given: dict[str, Any]) -> dict[str, Any]:
    import onnxruntime

    from edgellm.runtime.onnx_decoder import register_operators

    path = folder / f"{carrier}.onnx"
    if not path.exists():
        path.write_bytes(adapt_graph(arch, read_placed(folder), carrier).SerializeToString())
    options = onnxruntime.SessionOptions()
    register_operators(options)
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, given), strict=True))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Architecture]:
    return bundle_of("llama", tmp_path_factory.mktemp("llama"))


def bundle_of(name: str, folder: Path) -> tuple[Path, Architecture]:
    """4 bits with minima, and a 2:4 mask along the output in the MLP: all that the way back must undo."""
    _, source = write_model(name, folder / "model", "5GB")
    make_bundle(source, folder / "bundle", "dass:2:4", bits=4)
    return folder / "bundle", open_checkpoint(source).architecture


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NAMES)
def test_gradients_equal_torch(name: str, tmp_path: Path) -> None:
    bundle, arch = bundle_of(name, tmp_path)
    packed = PackedSource(bundle / "model.onnx.data", read_placed(bundle))
    for carrier in CARRIERS:
        given = example(arch, carrier)
        got = run(bundle, arch, carrier, given)
        losses, gradients = double_losses(arch, packed, given)
        np.testing.assert_allclose([got[loss] for loss in LOSSES], losses, rtol=1e-5)
        _, theirs = torch_losses(arch, packed, given)
        for leaf, expected in gradients.items():
            ours, torchs = (off(found, expected.numpy()) for found in (got[f"{leaf}.gradient"], theirs[leaf].numpy()))
            assert ours < max(1e-5, 2 * torchs), (carrier, leaf, ours, torchs)
            assert ours < 1e-4, (carrier, leaf)


def off(got: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(got - expected) / np.linalg.norm(expected))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("carrier", CARRIERS)
def test_padding_changes_nothing(carrier: str, llama: tuple[Path, Architecture]) -> None:
    bundle, arch = llama
    given = example(arch, carrier)
    padded = dict(given)
    padded["ids"] = np.concatenate([given["ids"], np.full(11, 7)])
    padded["positions"] = np.concatenate([given["positions"], given["positions"][-1] + 1 + np.arange(11)])
    for name, more in {"prompt_rows": 30, "targets": 3, "answer_rows": 31}.items():
        padded[name] = np.concatenate([given[name], [more] * 2])
    for name in ("prompt_weights", "answer_weights"):
        padded[name] = np.concatenate([given[name], np.zeros(2, np.float32)])
    padded["reference"] = np.concatenate([given["reference"], np.ones((2, arch.vocabulary), np.float32)])
    expected, got = (run(bundle, arch, carrier, inputs) for inputs in (given, padded))
    for name, value in expected.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-4, atol=1e-5 * np.abs(value).max(), err_msg=name)


@pytest.mark.filterwarnings("ignore")
def test_a_soft_prompt_is_the_prefix_of_its_keys_and_values(llama: tuple[Path, Architecture]) -> None:
    bundle, arch = llama
    soft = example(arch, "soft")
    made = run(bundle, arch, "soft", soft)
    prefix = {name: value for name, value in soft.items() if name != "soft"}
    prefix |= {"key": made["key"], "value": made["value"], "positions": soft["positions"][5:]}
    prefix |= {name: soft[name] - 5 for name in ("prompt_rows", "answer_rows")}
    got = run(bundle, arch, "prefix", prefix)
    np.testing.assert_allclose([got[name] for name in LOSSES], [made[name] for name in LOSSES], rtol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_weights_are_those_of_the_bundle(llama: tuple[Path, Architecture]) -> None:
    """Both graphs name the same bytes of one file, which is mapped once."""
    bundle, arch = llama
    placed = read_placed(bundle)
    for graph in (adapt_graph(arch, placed), head_graph(arch, placed)):
        large = [t for t in graph.graph.initializer if len(t.raw_data) > 4 * arch.hidden]
        assert not large
        for tensor in graph.graph.initializer:
            at = {entry.key: entry.value for entry in tensor.external_data}
            if at:
                assert at["location"] == "model.onnx.data"
                assert (int(at["offset"]), int(at["length"])) == (
                    placed[tensor.name].offset,
                    placed[tensor.name].nbytes,
                )
