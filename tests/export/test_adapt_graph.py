"""adapt.onnx against torch autograd on the dequantized weights, for every carrier and architecture of the table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.bundles import make_bundle
from tests.export.adapt_reference import torch_losses
from tests.export.test_architectures import MODELS, write_model

from edgellm.export.adapt_graph import CARRIERS, adapt_graph, carrier_shapes
from edgellm.export.architectures import Architecture
from edgellm.export.checkpoint import open_checkpoint
from edgellm.export.packed_source import PackedSource, read_placed

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
        given[name] = rng.normal(0, 0.3 if carrier == "lora" else 1.0, sizes).astype(np.float32)
    return given


def run(folder: Path, arch: Architecture, carrier: str, given: dict[str, Any]) -> dict[str, Any]:
    import onnxruntime

    from edgellm.runtime.onnx_backend import register_operators

    path = folder / f"{carrier}.onnx"
    if not path.exists():
        path.write_bytes(adapt_graph(arch, read_placed(folder), carrier).SerializeToString())
    options = onnxruntime.SessionOptions()
    register_operators(options)
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, given), strict=True))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", MODELS)
def test_gradients_equal_torch(name: str, tmp_path: Path) -> None:
    _, source = write_model(name, tmp_path / "model", "5GB")
    bundle = tmp_path / "bundle"
    make_bundle(source, bundle, bits=8)
    arch = open_checkpoint(source).architecture
    packed = PackedSource(bundle / "model.onnx.data", read_placed(bundle))
    for carrier in CARRIERS:
        given = example(arch, carrier)
        got = run(bundle, arch, carrier, given)
        losses, gradients = torch_losses(arch, packed, given)
        np.testing.assert_allclose([got[loss] for loss in LOSSES], losses, rtol=1e-3)
        for leaf, expected in gradients.items():
            error = np.linalg.norm(got[f"{leaf}.gradient"] - expected.numpy()) / np.linalg.norm(expected.numpy())
            print(name, carrier, leaf, error)
            assert error < 1e-3, (carrier, leaf)
