"""The ONNX graph of a decoder: standard operators around NMMatMul, QuantGather and PrunedKVAttention (design.md).

Inputs: ids, positions, rows int64; control int64 [layers, fields of edgellm.kernels.control]; per layer key.L and
value.L fp16 [kv_heads, capacity, head_dim], position.L int32 [kv_heads, capacity], score.L float32 [kv_heads, capacity,
planes], each layer with its own capacity. Outputs: logits float32 [R, vocabulary] of the rows asked for, and the caches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from edgellm.export.architectures import Architecture
from edgellm.export.rope import Rope
from edgellm.kernels.control import FIELDS
from edgellm.kernels.layout import Format
from edgellm.kernels.library import OPERATORS

OPSET = 23
"""The first standard opset with RMSNormalization; nothing newer is needed."""
DATA = "model.onnx.data"


@dataclass(frozen=True)
class Placed:
    """Where a tensor lies in the external-data file; `format` is None for a float32 vector of `shape`."""

    offset: int
    nbytes: int
    shape: tuple[int, ...]
    format: Format | None = None


@dataclass
class _Builder:
    placed: dict[str, Placed]
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)
    used: dict[str, onnx.TensorProto] = field(default_factory=dict)

    def node(self, kind: str, inputs: list[str], output: str, domain: str = "", **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [output], name=output, domain=domain, **attributes))
        return output

    def stored(self, name: str) -> str:
        """The initializer of a placed tensor; asked for twice (a tied embedding), it is stored once."""
        if name not in self.used:
            at = self.placed[name]
            tensor = TensorProto(name=name, dims=at.shape, data_location=TensorProto.EXTERNAL)
            tensor.data_type = TensorProto.UINT8 if at.format else TensorProto.FLOAT
            for key, value in (("location", DATA), ("offset", at.offset), ("length", at.nbytes)):
                tensor.external_data.add(key=key, value=str(value))
            self.used[name] = tensor
        return name

    def packed(self, kind: str, x: str, name: str, output: str, optional: Sequence[str] = (), **attributes: Any) -> str:
        """NMMatMul or QuantGather over the packed matrix `name`. optional: further inputs, "" for one that is not."""
        format = self.placed[name].format
        assert format is not None
        inputs = [x, self.stored(name), *optional]
        while not inputs[-1]:
            inputs.pop()
        return self.node(kind, inputs, output, "edgellm", **format.attributes(), **attributes)

    def matmul(
        self,
        x: str,
        name: str,
        output: str,
        activation: str = "none",
        bias: str = "",
        residual: str = "",
        norm: str = "",
        epsilon: float = 0.0,
    ) -> str:
        """x, normed first by the vector `norm` where one is named, times the matrix `name`."""
        optional = (bias, residual, self.stored(norm) if norm else "")
        more = {"epsilon": epsilon} if norm else {}
        return self.packed("NMMatMul", x, name, output, optional, activation=activation, **more)

    def constant(self, name: str, value: Any) -> str:
        if all(tensor.name != name for tensor in self.constants):
            self.constants.append(onnx.numpy_helper.from_array(np.asarray(value), name))
        return name

    def capped(self, x: str, cap: float, output: str) -> str:
        """cap * tanh(x / cap)."""
        size = self.constant(f"{output}.cap", np.float32(cap))
        return self.node(
            "Mul", [self.node("Tanh", [self.node("Div", [x, size], f"{x}.low")], f"{x}.tanh"), size], output
        )

    def norm(self, x: str, name: str, epsilon: float, output: str) -> str:
        return self.node("RMSNormalization", [x, self.stored(name)], output, epsilon=epsilon)


def decoder_graph(arch: Architecture, placed: dict[str, Placed]) -> onnx.ModelProto:
    """The whole decoder over the tensors placed in the data file, by canonical name (gate and up as "gate_up")."""
    b = _Builder(placed)
    x = b.packed("QuantGather", "ids", "embedding", "embedded")
    if arch.embedding_scale != 1:
        x = b.node("Mul", [x, b.constant("embedding_scale", np.float32(arch.embedding_scale))], "scaled")
    rotations = _rotations(b, arch)
    caches_in, caches_out = [], []
    for layer in range(arch.layers):
        x, inputs, outputs = _block(b, arch, layer, x, rotations)
        caches_in += inputs
        caches_out += outputs
    head, cap = "embedding" if arch.tied else "head", arch.final_softcap
    logits = b.matmul(x, head, "uncapped" if cap else "logits", norm="norm", epsilon=arch.norm_eps)
    if cap:
        b.capped(logits, cap, "logits")

    sizes: dict[str, list[int | str]] = {"ids": ["T"], "positions": ["T"], "rows": ["R"]}
    sizes["control"] = [arch.layers, FIELDS]
    integers = [helper.make_tensor_value_info(name, TensorProto.INT64, size) for name, size in sizes.items()]
    result = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["R", arch.vocabulary])
    initializers = [*b.constants, *b.used.values()]
    graph = helper.make_graph(b.nodes, "decoder", [*integers, *caches_in], [result, *caches_out], initializers)
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("edgellm", OPERATORS)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10, producer_name="edgellm")


def _rotations(b: _Builder, arch: Architecture) -> dict[Rope, tuple[str, str]]:
    """cos and sin [T, dims/2] of position * frequency, once for all layers that share a Rope."""
    place = b.node("Cast", ["positions"], "place", to=TensorProto.FLOAT)
    column = b.constant("column", np.array([1], np.int64))
    places = b.node("Unsqueeze", [place, column], "places")
    found: dict[Rope, tuple[str, str]] = {}
    for layer in arch.layers_as:
        if layer.rope not in found:
            n = len(found)
            angle = b.node("Mul", [places, b.constant(f"frequency.{n}", layer.rope.frequencies()[None])], f"angle.{n}")
            pair = [b.node("Cos", [angle], f"cos.{n}"), b.node("Sin", [angle], f"sin.{n}")]
            if layer.rope.magnitude != 1:
                by = b.constant(f"magnitude.{n}", np.float32(layer.rope.magnitude))
                pair = [b.node("Mul", [wave, by], f"{wave}.scaled") for wave in pair]
            found[layer.rope] = (pair[0], pair[1])
    return found


def _block(
    b: _Builder, arch: Architecture, layer: int, x: str, rotations: dict[Rope, tuple[str, str]]
) -> tuple[str, list[onnx.ValueInfoProto], list[onnx.ValueInfoProto]]:
    at, facts, eps = f"layers.{layer}", arch.layers_as[layer], arch.norm_eps

    def linear(y: str, role: str, output: str, residual: str = "", norm: str = "") -> str:
        bias = b.stored(f"{at}.{role}_bias") if f"{at}.{role}_bias" in b.placed else ""
        name = f"{at}.{norm}" if norm else ""
        return b.matmul(y, f"{at}.{role}", output, bias=bias, residual=residual, norm=name, epsilon=eps)

    def added(x: str, y: str, role: str, norm: str, output: str) -> str:
        """x plus what attention or MLP gives, normed first where the model has it so."""
        if not arch.post_norms:
            return linear(y, role, output, residual=x)
        normed = b.norm(linear(y, role, f"{at}.{role}.out"), f"{at}.{norm}", eps, f"{at}.{norm}.out")
        return b.node("Add", [x, normed], output)

    if f"{at}.qkv" in b.placed:
        qkv = linear(x, "qkv", f"{at}.qkv.out", norm="attention_norm")
    else:  # stored in formats of their own
        parts = [linear(x, role, f"{at}.{role}.out", norm="attention_norm") for role in ("q", "k", "v")]
        qkv = b.node("Concat", parts, f"{at}.qkv.out", axis=1)
    caches = [f"{kind}.{layer}" for kind in ("key", "value", "position", "score")]
    results = [f"{name}.out" for name in caches]
    mixed = f"{at}.mixed"
    sizes = dict(heads=arch.heads, kv_heads=arch.kv_heads, head_dim=arch.head_dim, scale=arch.attention_scale)
    sizes |= dict(window=facts.window, softcap=arch.attention_softcap, layer=layer)
    inputs = [qkv, *rotations[facts.rope], "positions", "control", *caches]
    if arch.qk_norm:
        inputs += [b.stored(f"{at}.{role}_norm") for role in ("q", "k")]
        sizes |= dict(epsilon=eps)
    b.nodes.append(
        helper.make_node("PrunedKVAttention", inputs, [mixed, *results], name=mixed, domain="edgellm", **sizes)
    )
    if layer == arch.layers - 1:  # nothing reads the other rows any more
        x, mixed = (b.node("Gather", [y, "rows"], f"wanted.{name}", axis=0) for name, y in (("x", x), ("mixed", mixed)))
    x = added(x, mixed, "o", "post_attention_norm", f"{at}.attended")
    hidden = b.matmul(x, f"{at}.gate_up", f"{at}.gated", arch.activation, norm=f"{at}.mlp_norm", epsilon=eps)
    x = added(x, hidden, "down", "post_mlp_norm", f"{at}.out")

    slots = [arch.kv_heads, f"capacity.{layer}"]
    shapes = [(TensorProto.FLOAT16, [*slots, arch.head_dim])] * 2
    shapes += [(TensorProto.INT32, slots), (TensorProto.FLOAT, [*slots, "planes"])]
    values = [
        [helper.make_tensor_value_info(name, *shape) for name, shape in zip(names, shapes, strict=True)]
        for names in (caches, results)
    ]
    return x, values[0], values[1]
