"""A decoder block as one operator, as those it stands for, and by the native library alone: the same results."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.bundles import make_bundle
from tests.export.test_architectures import MODELS, write_model

from edgellm.export.checkpoint import open_checkpoint
from edgellm.export.graph import decoder_graph
from edgellm.export.packed_source import read_placed
from edgellm.runtime import load
from edgellm.runtime.manifest import read_manifest
from edgellm.runtime.native_decoder import NativeDecoder
from edgellm.runtime.onnx_decoder import OnnxDecoder
from edgellm.runtime.session import Session


def decoder_of(session: Session) -> object:
    return session._cache.backend._decoder  # type: ignore[attr-defined]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", MODELS)
def test_one_operator_or_many_or_the_library_alone(name: str, tmp_path: Path) -> None:
    _, folder = write_model(name, tmp_path / "model", "5GB")
    bundle = tmp_path / "bundle"
    make_bundle(folder, bundle, bits=4)
    ids = np.random.default_rng(0).integers(3, 320, 40).tolist()
    fused = load(bundle, backend="onnxruntime")
    expected = runs(fused, ids)
    the_library_alone_does_the_same(load(bundle), fused, name, ids)

    manifest, placed = read_manifest(bundle), read_placed(bundle)
    graph = decoder_graph(open_checkpoint(folder).architecture, placed, fused=False)
    kinds = {node.op_type for node in graph.graph.node}
    assert {"PrunedKVAttention", "NMMatMul"} <= kinds
    assert "DecoderLayer" not in kinds
    (bundle / "model.onnx").write_bytes(graph.SerializeToString())
    separate = load(bundle, manifest=manifest)
    assert isinstance(decoder_of(separate), OnnxDecoder)  # no graph that the library runs alone
    for one, other in zip(runs(separate, ids), expected, strict=True):
        if name.startswith("gemma"):  # ONNX Runtime norms what is added in another order
            np.testing.assert_allclose(one, other, atol=5e-3 * np.abs(other).max())
        else:
            np.testing.assert_array_equal(one, other)


def runs(session: Session, ids: list[int]) -> list[NDArray[np.float32]]:
    """Logits of a prompt, of all its tokens, and of two more."""
    return [session.logits(ids), *(session.step(token) for token in (5, 6))]


def the_library_alone_does_the_same(native: Session, onnx: Session, name: str, ids: list[int]) -> None:
    assert isinstance(decoder_of(native), NativeDecoder)
    assert isinstance(decoder_of(onnx), OnnxDecoder)
    # Nothing is rotated at position 0: the same bits, but for the cap of the last logits, whose tanh is another's.
    np.testing.assert_allclose(native.logits(ids[:1]), onnx.logits(ids[:1]), rtol=1e-5 if name == "gemma2" else 0)
    for one, other in zip(runs(native, ids), runs(onnx, ids), strict=True):  # their cosines differ in the last place
        np.testing.assert_allclose(one, other, atol=5e-3 * np.abs(other).max())
