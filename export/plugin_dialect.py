"""The decoder for TensorRT with our plugins (kernels/tensorrt): NMMatMul and PrunedKVAttention over the CPU's tiles.

Weights are network inputs, not constants: the engine holds none of them and runs on the very
model.onnx.data that the CPU maps.

Inputs: embedded float32 [T, hidden] (standard_dialect.py), positions int64 [T], rows int64 [R], control int64 [layers,
fields]; tiles.NAME int32 [bytes / 4] for every matrix; per layer key.L and value.L fp16 [kv_heads, capacity, head_dim],
position.L int32 [kv_heads, capacity], score.L float32 [kv_heads, capacity, planes]. Outputs: logits float32 [R,
vocabulary], and NAME.out of every cache buffer, which is the input's memory.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from edgellm.export.architectures import Architecture
from edgellm.export.block_graph import attention_attributes
from edgellm.export.graph import rotations
from edgellm.export.mixed_precision import F16, F32, I64, MixedPrecision, Store
from edgellm.export.nodes import Placed
from edgellm.kernels.control import FIELDS

OPSET = 23
KINDS = (("key", F16), ("value", F16), ("position", TensorProto.INT32), ("score", F32))


def plugin_decoder(
    arch: Architecture, placed: dict[str, Placed], data: Path, capacity: int, planes: int, store: Store
) -> onnx.ModelProto:
    """The whole decoder. capacity: slots of a layer's cache, staging included; planes: of its scores, at least 1."""
    g = _Dialect(arch, placed, data, store)
    b, x = g.b, "embedded"
    if arch.embedding_scale != 1:
        x = b.node("Mul", [x, b.constant("embedding_scale", np.float32(arch.embedding_scale))], "scaled")
    turns = rotations(b, arch)
    for layer, facts in enumerate(arch.layers_as):
        x = g.block(layer, x, turns[facts.rope])
    normed = g.norm(x, "norm", "normed")
    logits = g.linear(normed, "embedding" if arch.tied else "head", "uncapped" if arch.final_softcap else "logits")
    if arch.final_softcap:
        b.capped(logits, arch.final_softcap, "logits")
    value = helper.make_tensor_value_info
    inputs = [value("embedded", F32, ["T", arch.hidden]), value("positions", I64, ["T"]), value("rows", I64, ["R"])]
    inputs += [value("control", I64, [arch.layers, FIELDS]), *g.tiles.values()]
    outputs = [value("logits", F32, ["R", arch.vocabulary])]
    narrow = [arch.kv_heads, capacity]
    shapes = {"key": [*narrow, arch.head_dim], "value": [*narrow, arch.head_dim], "position": narrow}
    shapes["score"] = [*narrow, planes]
    for layer in range(arch.layers):
        inputs += [value(f"{name}.{layer}", kind, shapes[name]) for name, kind in KINDS]
        outputs += [value(f"{name}.{layer}.out", kind, shapes[name]) for name, kind in KINDS]
    graph = helper.make_graph(b.nodes, "decoder", inputs, outputs, [*b.constants, *b.used.values()])
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("edgellm", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10, producer_name="edgellm")


class _Dialect(MixedPrecision):
    """The pieces of the graph; every method appends nodes and returns the name of what they give."""

    def __init__(self, arch: Architecture, placed: dict[str, Placed], data: Path, store: Store) -> None:
        super().__init__(arch, placed, data, store)
        self.tiles: dict[str, onnx.ValueInfoProto] = {}

    def block(self, layer: int, x: str, turn: tuple[str, str]) -> str:
        """A decoder block, [T, hidden] -> [T, hidden]; of the last layer, attention on, only the rows asked for."""
        b, arch, at = self.b, self.arch, f"layers.{layer}"
        normed = self.norm(x, f"{at}.attention_norm", f"{at}.normed")
        if f"{at}.qkv" in self.placed:
            qkv = self.product(normed, f"{at}.qkv", f"{at}.qkv.out")
        else:  # stored in formats of their own
            parts = [self.product(normed, f"{at}.{role}", f"{at}.{role}.out") for role in ("q", "k", "v")]
            qkv = b.node("Concat", parts, f"{at}.qkv.out", axis=1)
        caches = [f"{name}.{layer}" for name, _ in KINDS]
        inputs, sizes = [qkv, *turn, "positions", "control", *caches], attention_attributes(arch, layer)
        if arch.qk_norm:
            inputs += [self.half(self.vector(f"{at}.{role}_norm")) for role in ("q", "k")]
            sizes |= {"epsilon": arch.norm_eps}
        mixed = f"{at}.mixed"
        outputs = [mixed, *(f"{name}.out" for name in caches)]
        b.nodes.append(helper.make_node("PrunedKVAttention", inputs, outputs, name=mixed, domain="edgellm", **sizes))
        if layer == arch.layers - 1:
            x, mixed = (b.node("Gather", [y, "rows"], f"{y}.wanted", axis=0) for y in (x, mixed))
        x = self.added(layer, x, self.linear(mixed, f"{at}.o", f"{at}.o.out"), "post_attention_norm")
        normed = self.norm(x, f"{at}.mlp_norm", f"{at}.mlp_normed")
        inner = self.product(normed, f"{at}.gate_up", f"{at}.gated", arch.activation)
        return self.added(layer, x, self.linear(inner, f"{at}.down", f"{at}.down.out"), "post_mlp_norm")

    def linear(self, x: str, name: str, output: str) -> str:
        """`product` in float32."""
        return self.b.node("Cast", [self.product(x, name, f"{output}.product")], output, to=F32)

    def product(self, x: str, name: str, output: str, activation: str = "none") -> str:
        """NMMatMul of x in half precision, with its bias, where the matrix `name` has one."""
        at = self.placed[name]
        assert at.format is not None
        tiles = f"tiles.{name}"
        # As words: TensorRT-RTX 1.7 keeps eight bytes in the engine for each of the largest int8 input's.
        self.tiles[name] = helper.make_tensor_value_info(tiles, TensorProto.INT32, [at.nbytes // 4])
        inputs = [x if x.endswith((".mixed", ".wanted", ".gated")) else self.half(x), tiles]
        if f"{name}_bias" in self.placed:
            inputs.append(self.half(self.vector(f"{name}_bias")))
        form = at.format.attributes() | {"activation": activation}
        return self.b.node("NMMatMul", inputs, output, "edgellm", **form)
