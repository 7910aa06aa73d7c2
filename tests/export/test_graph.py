"""A decoder block as one operator, and as the operators it stands for: the same text, logits within rounding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.bundles import make_bundle
from tests.export.test_architectures import MODELS, write_model

from edgellm.export.checkpoint import open_checkpoint
from edgellm.export.graph import decoder_graph
from edgellm.export.packed_source import read_placed
from edgellm.runtime import load
from edgellm.runtime.manifest import read_manifest


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", MODELS)
def test_one_operator_or_many(name: str, tmp_path: Path) -> None:
    _, folder = write_model(name, tmp_path / "model", "5GB")
    bundle = tmp_path / "bundle"
    make_bundle(folder, bundle, bits=4)
    ids = np.random.default_rng(0).integers(3, 320, 40).tolist()
    fused = load(bundle)
    expected = [fused.logits(ids), *(fused.step(token) for token in (5, 6))]

    manifest, placed = read_manifest(bundle), read_placed(bundle)
    graph = decoder_graph(open_checkpoint(folder).architecture, placed, fused=False)
    kinds = {node.op_type for node in graph.graph.node}
    assert {"PrunedKVAttention", "NMMatMul"} <= kinds
    assert "DecoderLayer" not in kinds
    (bundle / "model.onnx").write_bytes(graph.SerializeToString())
    separate = load(bundle, manifest=manifest)
    got = [separate.logits(ids), *(separate.step(token) for token in (5, 6))]
    for one, other in zip(got, expected, strict=True):
        if name.startswith("gemma"):  # ONNX Runtime norms what is added in another order
            np.testing.assert_allclose(one, other, atol=5e-3 * np.abs(other).max())
        else:
            np.testing.assert_array_equal(one, other)
