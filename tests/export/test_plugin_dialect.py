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
from edgellm.runtime.embedding_rows import EmbeddingRows

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
@pytest.mark.parametrize("name", ["llama", "llama biases", "gemma3_text", "qwen3"])
def test_it_says_what_torch_says(name: str, tmp_path: Path) -> None:
    _, folder = write_model(name, tmp_path / "model", "5GB")
    bundle = tmp_path / "bundle"
    make_bundle(folder, bundle, bits=4, recover="none")
    arch, placed = open_checkpoint(folder).architecture, read_placed(bundle)
    data = bundle / "model.onnx.data"
    write_graph(arch, placed, bundle, CAPACITY, PLANES)
    graph = onnx.load(str(bundle / "engine.onnx"), load_external_data=False).graph
    feeds: dict[str, NDArray[Any]] = {}
    for end in graph.input:
        shape = [size.dim_value for size in end.type.tensor_type.shape.dim]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(end.type.tensor_type.elem_type)
        feeds[end.name] = np.zeros(shape, dtype)
    for matrix, at in placed.items():
        if at.format is not None and f"tiles.{matrix}" in feeds:
            feeds[f"tiles.{matrix}"] = np.fromfile(data, np.int8, at.nbytes, offset=at.offset)
    embedding = placed["embedding"]
    assert embedding.format is not None
    rows = EmbeddingRows(data, embedding.offset, embedding.format)
    ids = np.random.default_rng(0).integers(3, 320, 12)
    expected = forward(arch, PackedSource(data, placed), torch.from_numpy(ids)[None])[0].numpy()

    run, held = evaluator(bundle), 0
    for part in (ids[:9], ids[9:11], ids[11:]):
        accepted = 0 if held == 0 else len(previous)
        control = control_of([Control(held - accepted, accepted, BUDGET, BUDGET)] * arch.layers)
        feeds |= {"embedded": rows(part), "positions": np.arange(held, held + len(part)), "control": control}
        feeds["rows"] = np.array([len(part) - 1])
        outputs = dict(zip([end.name for end in graph.output], run.run(None, feeds), strict=True))
        held, previous = held + len(part), part
        feeds |= {name.removesuffix(".out"): value for name, value in outputs.items() if name != "logits"}
        logits = expected[held - 1]
        assert np.linalg.norm(outputs["logits"][0] - logits) < 5e-3 * np.linalg.norm(logits)


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
