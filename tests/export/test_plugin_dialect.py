"""The decoder with plugins, evaluated node by node: standard nodes by ONNX's reference, ours by their NumPy meaning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from tests.bundles import make_bundle
from tests.export.test_architectures import write_model

from edgellm.export.checkpoint import open_checkpoint
from edgellm.export.decoder import forward
from edgellm.export.engine import write_graph
from edgellm.export.packed_source import PackedSource, read_placed
from edgellm.kernels.attention_reference import Cache, pruned_kv_attention
from edgellm.kernels.control import Control, control_of
from edgellm.kernels.layout import Format
from edgellm.kernels.reference import nm_matmul
from edgellm.runtime import load
from edgellm.runtime.cache import CacheLayout
from edgellm.runtime.embedding_rows import EmbeddingRows
from edgellm.runtime.errors import UsageError
from edgellm.runtime.kv_policy import parse_kv
from edgellm.runtime.manifest import read_manifest
from edgellm.runtime.plugin_backend import PluginBackend
from edgellm.runtime.session import Session
from edgellm.runtime.tokenizer import read_tokenizer

CAPACITY, BUDGET, PLANES = 48, 32, 1


class NMMatMul(OpRun):
    op_domain = "edgellm"

    def _run(self, x: Any, tiles: Any, bias: Any = None, activation: str = "none", **form: Any) -> Any:
        assert x.dtype == np.float16
        wide = None if bias is None else bias.astype(np.float32)
        y = nm_matmul(x.astype(np.float32), tiles.view(np.uint8), Format(**form), activation, wide)
        return (y.astype(np.float16),)


class PrunedKVAttention(OpRun):
    op_domain = "edgellm"

    def _run(self, qkv: Any, cos: Any, sin: Any, positions: Any, control: Any, *more: Any, **sizes: Any) -> Any:
        cache = Cache(*(buffer.copy() for buffer in more[:4]))
        norms = [norm.astype(np.float32) for norm in more[4:]]
        settings = {name: sizes[name] for name in ("scale", "window", "softcap")}
        if norms:
            settings |= {"q_norm": norms[0], "k_norm": norms[1], "epsilon": sizes["epsilon"]}
        row = control[sizes["layer"]]
        y = pruned_kv_attention(qkv.astype(np.float32), cos, sin, positions, row, cache, **settings)
        return (y.astype(np.float16), cache.key, cache.value, cache.position, cache.score)


def evaluator(folder: Path) -> Any:
    return ReferenceEvaluator(str(folder / "engine.onnx"), new_ops=[NMMatMul, PrunedKVAttention])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["llama biases", "gemma3_text"])
def test_it_says_what_torch_says(name: str, tmp_path: Path) -> None:
    _, folder = write_model(name, tmp_path / "model", "5GB")
    bundle = tmp_path / "bundle"
    make_bundle(folder, bundle, bits=4, recover="none")
    arch, placed = open_checkpoint(folder).architecture, read_placed(bundle)
    data = bundle / "model.onnx.data"
    write_graph(arch, placed, bundle, CAPACITY, PLANES)
    embedding = placed["embedding"]
    assert embedding.format is not None
    rows = EmbeddingRows(data, embedding.offset, embedding.format)
    ids = np.random.default_rng(0).integers(3, 320, 12)
    expected = forward(arch, PackedSource(data, placed), torch.from_numpy(ids)[None])[0].numpy()

    runner, held, accepted = Evaluated(bundle), 0, 0
    for part in (ids[:9], ids[9:11], ids[11:]):
        control = control_of([Control(held - accepted, accepted, BUDGET, BUDGET)] * arch.layers)
        feed = {"embedded": rows(part), "positions": np.arange(held, held + len(part)), "control": control}
        got = runner.run({**feed, "rows": np.array([len(part) - 1])})[0]
        held, accepted = held + len(part), len(part)
        logits = expected[held - 1]
        assert np.linalg.norm(got - logits) < 6e-3 * np.linalg.norm(logits)


class Evaluated:
    """A Runner: the graph evaluated, its cache carried from run to run."""

    def __init__(self, bundle: Path) -> None:
        self._run, placed = evaluator(bundle), read_placed(bundle)
        graph = onnx.load(str(bundle / "engine.onnx"), load_external_data=False).graph
        self._outputs = [end.name for end in graph.output]
        self._held: dict[str, NDArray[Any]] = {}
        for end in graph.input:
            shape = [size.dim_value for size in end.type.tensor_type.shape.dim]
            dtype = onnx.helper.tensor_dtype_to_np_dtype(end.type.tensor_type.elem_type)
            if end.name.startswith("tiles."):
                at = placed[end.name.removeprefix("tiles.")]
                data = bundle / "model.onnx.data"
                self._held[end.name] = np.fromfile(data, dtype, at.nbytes // dtype.itemsize, offset=at.offset)
            elif 0 not in shape:
                self._held[end.name] = np.zeros(shape, dtype)

    @property
    def kv_bytes(self) -> int:
        return 1

    def run(self, feed: dict[str, NDArray[Any]]) -> NDArray[np.float32]:
        found = dict(zip(self._outputs, self._run.run(None, {**self._held, **feed}), strict=True))
        self._held |= {name.removesuffix(".out"): value for name, value in found.items() if name != "logits"}
        logits: NDArray[np.float32] = found["logits"]
        return logits

    def read(self, name: str) -> NDArray[Any]:
        return self._held[name].copy()

    def write(self, name: str, values: NDArray[Any]) -> None:
        self._held[name] = values


def plugin_session(bundle: Path, kv: str) -> Session:
    said, placed = read_manifest(bundle), read_placed(bundle)
    model, at = said.model, placed["embedding"]
    policy = parse_kv(kv, model.context)
    layout = CacheLayout(policy, 16, model.layers, model.kv_heads, model.head_dim)
    assert at.format is not None
    rows = EmbeddingRows(bundle / "model.onnx.data", at.offset, at.format)
    backend = PluginBackend(Evaluated(bundle), rows, layout, CAPACITY, 2)
    return Session(said, read_tokenizer(bundle, model.vocabulary, True), backend, policy, 16)


def test_a_session_evicts_as_on_the_cpu(tiny_model: Path, tmp_path: Path) -> None:
    """Chunks, decoding, eviction by score, a saved cache: the backend over the graph, against the CPU's bundle."""
    bundle = tmp_path / "bundle"
    make_bundle(tiny_model, bundle, bits=8)
    write_graph(open_checkpoint(tiny_model).architecture, read_placed(bundle), bundle, CAPACITY, 2)
    kv = "vatp:24,sinks=4,recent=0.25"
    ours, theirs = plugin_session(bundle, kv), load(bundle, kv=kv)
    ids = np.random.default_rng(3).integers(3, 320, 20).tolist()
    pairs = [(ours.logits(ids), theirs.logits(ids))]
    pairs += [(ours.step(token), theirs.step(token)) for token in range(30, 42)]
    assert ours.kv_evictions == theirs.kv_evictions == 31 - 24
    assert ours.kv_coverage == pytest.approx(theirs.kv_coverage, rel=1e-2)
    for one, other in pairs:
        assert np.linalg.norm(one - other) < 1e-2 * np.linalg.norm(other)
    ours.save_cache(tmp_path / "cache")
    again = plugin_session(bundle, kv)
    assert again.restore_cache(tmp_path / "cache") == 32
    np.testing.assert_array_equal(again.step(9), ours.step(9))
    with pytest.raises(UsageError, match="needs 49 slots"):
        plugin_session(bundle, "full:33")


def test_weights_are_inputs_and_nodes_have_the_cpu_graphs_attributes(tiny_model: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    make_bundle(tiny_model, bundle, "magnitude:2:4", bits=4, recover="none")
    placed = read_placed(bundle)
    write_graph(open_checkpoint(tiny_model).architecture, placed, bundle, CAPACITY, 2)
    graph = onnx.load(str(bundle / "engine.onnx"), load_external_data=False).graph
    ours = [node for node in graph.node if node.domain == "edgellm"]
    assert {node.op_type for node in ours} == {"NMMatMul", "PrunedKVAttention"}
    for node in ours:
        if node.op_type == "NMMatMul":
            form = placed[node.input[1].removeprefix("tiles.")].format
            assert form is not None
            said = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            words = {name: value.decode() if isinstance(value, bytes) else value for name, value in said.items()}
            assert words == form.attributes() | {"activation": words["activation"]}
    stored = sum(np.prod(tensor.dims) for tensor in graph.initializer)
    assert stored < 1000  # vectors only
    (shape,) = ([d.dim_value for d in e.type.tensor_type.shape.dim] for e in graph.input if e.name == "score.1")
    assert shape == [2, CAPACITY, 2]
