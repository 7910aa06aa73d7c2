"""model-lora.onnx against torch with the updates in its matrices, for every kind of architecture of the table."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.bundles import make_bundle
from tests.export.test_adapt_graph import NAMES
from tests.export.test_architectures import write_model
from torch import Tensor

from edgellm.export.adapt_carriers import LORA_SCALE
from edgellm.export.architectures import Architecture
from edgellm.export.checkpoint import open_checkpoint
from edgellm.export.config import Level
from edgellm.export.decoder import final_norm, hidden_states
from edgellm.export.graph import decoder_graph
from edgellm.export.packed_source import PackedSource, read_placed
from edgellm.export.vocabulary import head_logits
from edgellm.runtime import load
from edgellm.runtime.adapter import Adapter, Facts, Tensors
from edgellm.runtime.bundle_files import LORA_GRAPH
from edgellm.runtime.low_rank import first_updates, units
from edgellm.runtime.manifest import file_facts, read_manifest
from edgellm.runtime.session import Session

RECIPES: dict[str, dict[str, Any]] = {name: {} for name in NAMES}
RECIPES |= {"llama": dict(levels={"layers.1.v": Level(4)}), "qwen2": dict(kv_bits=8)}  # q, k and v apart; k shifted


class Updated(PackedSource):
    """The bundle's weights with LoRA's updates in q and v."""

    tensors: Tensors

    def matrix(self, name: str, rows: slice | None = None) -> Tensor:
        found, (*at, role) = super().matrix(name, rows), name.split(".")
        if role not in ("q", "v"):
            return found
        down, up = (self.tensors[f"{role}.{part}"][int(at[1])] for part in ("down", "up"))
        return found + LORA_SCALE * torch.from_numpy((down @ up).T)[rows or slice(None)]


def lora_session(bundle: Path, arch: Architecture, kv_bits: int) -> Session:
    """Of a bundle that was exported without --adapt, with LoRA's graph beside it."""
    manifest = read_manifest(bundle)
    graph = decoder_graph(arch, read_placed(bundle), kv_bits=kv_bits, lora=True)
    (bundle / LORA_GRAPH).write_bytes(graph.SerializeToString())
    files = {**manifest.files, LORA_GRAPH: file_facts(bundle / LORA_GRAPH)}
    return load(bundle, threads=1, manifest=replace(manifest, files=files), backend="onnxruntime")  # as the updates run


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", RECIPES)
def test_the_model_with_updates_is_torchs(name: str, tmp_path: Path) -> None:
    _, source = write_model(name, tmp_path / "model", "5GB")
    bundle, recipe = tmp_path / "bundle", RECIPES[name]
    make_bundle(source, bundle, bits=8, **recipe)
    arch, kv_bits = open_checkpoint(source).architecture, recipe.get("kv_bits", 16)
    session = lora_session(bundle, arch, kv_bits)
    rng, model = np.random.default_rng(0), session.manifest.model
    ids = rng.integers(3, 320, 40).tolist()
    base = session.logits(ids)

    def use(size: float) -> Tensors:
        drawn = {
            name: (unit * (value if name.endswith("down") else size * rng.normal(size=value.shape))).astype(np.float32)
            for (name, value), unit in zip(first_updates(model).items(), units(model).values(), strict=True)
        }
        session.use(Adapter(Facts("lora", session.manifest.weights_sha256, []), drawn))
        return drawn

    use(0.0)
    exact = not name.startswith("gemma")  # ONNX Runtime norms what is added in another order
    np.testing.assert_allclose(session.logits(ids), base, atol=0 if exact else 5e-3 * np.abs(base).max(), rtol=0)

    placed = read_placed(bundle)
    assert ("layers.1.v" in placed) == ("levels" in recipe)
    weights = Updated(bundle / "model.onnx.data", placed)
    weights.tensors = use(0.5)
    whole = session.logits(ids)
    with torch.no_grad():
        (states,) = hidden_states(arch, weights, [torch.tensor([ids])], kv_bits)  # rounded as the cache is
        expected = head_logits(arch, weights, final_norm(arch, weights, states[0])).numpy()
    assert off(whole, expected) < 1e-2
    assert off(base, expected) > 0.2
    session.reset()
    stepped = [*session.prefill(ids[:23], "all"), *(session.step(token) for token in ids[23:])]
    np.testing.assert_allclose(np.stack(stepped), whole, atol=5e-3 * np.abs(whole).max())

    session.use(None)
    np.testing.assert_array_equal(session.logits(ids), base)


def off(got: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(got - expected) / np.linalg.norm(expected))
