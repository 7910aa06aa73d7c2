"""The ONNX graph of a decoder: standard operators around NMMatMul, QuantGather and PrunedKVAttention (design.md).

Inputs: ids, positions, rows int64; control int64 [5]; per layer key.L and value.L fp16 [kv_heads, capacity, head_dim],
position.L int32 [kv_heads, capacity]. Outputs: logits float32 [R, vocabulary] of the rows asked for, and the caches.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from edgellm.export.architectures import Architecture
from edgellm.kernels.layout import Format

OPSET = 23
"""The first standard opset with RMSNormalization; nothing newer is needed."""
OPERATORS = 1
"""Version of the domain `edgellm`."""
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

    def packed(self, kind: str, x: str, name: str, output: str, **attributes: Any) -> str:
        """NMMatMul or QuantGather over the packed matrix `name`."""
        format = self.placed[name].format
        assert format is not None
        return self.node(kind, [x, self.stored(name)], output, "edgellm", **format.attributes(), **attributes)

    def matmul(self, x: str, name: str, output: str, activation: str = "none") -> str:
        return self.packed("NMMatMul", x, name, output, activation=activation)

    def norm(self, x: str, name: str, epsilon: float, output: str) -> str:
        return self.node("RMSNormalization", [x, self.stored(name)], output, epsilon=epsilon)


def decoder_graph(arch: Architecture, placed: dict[str, Placed]) -> onnx.ModelProto:
    """The whole decoder over the tensors placed in the data file, by canonical name (gate and up as "gate_up")."""
    b = _Builder(placed)
    cos, sin = _rotary(b, arch)
    x = b.packed("QuantGather", "ids", "embedding", "embedded")
    caches_in, caches_out = [], []
    for layer in range(arch.layers):
        x, inputs, outputs = _block(b, arch, layer, x, cos, sin)
        caches_in += inputs
        caches_out += outputs
    wanted = b.node("Gather", [x, "rows"], "wanted", axis=0)
    b.matmul(b.norm(wanted, "norm", arch.norm_eps, "last"), "embedding" if arch.tied else "head", "logits")

    integers = [helper.make_tensor_value_info(n, TensorProto.INT64, [d]) for n, d in
                (("ids", "T"), ("positions", "T"), ("rows", "R"), ("control", 5))]  # fmt: skip
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["R", arch.vocabulary])
    initializers = [*b.constants, *b.used.values()]
    graph = helper.make_graph(b.nodes, "decoder", [*integers, *caches_in], [logits, *caches_out], initializers)
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("edgellm", OPERATORS)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10, producer_name="edgellm")


def _rotary(b: _Builder, arch: Architecture) -> tuple[str, str]:
    """cos and sin [T, head_dim/2] of position * theta^(-2i/head_dim), for all layers (RoPE, arXiv 2104.09864)."""
    exponent = np.arange(0, arch.head_dim, 2, dtype=np.float32) / arch.head_dim
    frequency = (1.0 / np.float32(arch.rope_theta) ** exponent).astype(np.float32)
    b.constants.append(onnx.numpy_helper.from_array(frequency[None], "frequency"))
    b.constants.append(onnx.numpy_helper.from_array(np.array([1], np.int64), "column"))
    place = b.node("Cast", ["positions"], "place", to=TensorProto.FLOAT)
    angle = b.node("Mul", [b.node("Unsqueeze", [place, "column"], "places"), "frequency"], "angle")
    return b.node("Cos", [angle], "cos"), b.node("Sin", [angle], "sin")


def _block(
    b: _Builder, arch: Architecture, layer: int, x: str, cos: str, sin: str
) -> tuple[str, list[onnx.ValueInfoProto], list[onnx.ValueInfoProto]]:
    at = f"layers.{layer}"
    normed = b.norm(x, f"{at}.attention_norm", arch.norm_eps, f"{at}.attention_in")
    q, k, v = (b.matmul(normed, f"{at}.{name}", f"{at}.{name}.out") for name in ("q", "k", "v"))
    caches = [f"key.{layer}", f"value.{layer}", f"position.{layer}"]
    results = [f"{name}.out" for name in caches]
    mixed = f"{at}.mixed"
    sizes = dict(heads=arch.heads, kv_heads=arch.kv_heads, head_dim=arch.head_dim, scale=arch.head_dim**-0.5)
    inputs = [q, k, v, cos, sin, "positions", "control", *caches]
    b.nodes.append(
        helper.make_node("PrunedKVAttention", inputs, [mixed, *results], name=mixed, domain="edgellm", **sizes)
    )
    x = b.node("Add", [x, b.matmul(mixed, f"{at}.o", f"{at}.o.out")], f"{at}.attended")
    normed = b.norm(x, f"{at}.mlp_norm", arch.norm_eps, f"{at}.mlp_in")
    hidden = b.matmul(normed, f"{at}.gate_up", f"{at}.gated", arch.activation)
    x = b.node("Add", [x, b.matmul(hidden, f"{at}.down", f"{at}.down.out")], f"{at}.out")

    long = [arch.kv_heads, "capacity", arch.head_dim]
    shapes = [(TensorProto.FLOAT16, long), (TensorProto.FLOAT16, long), (TensorProto.INT32, long[:2])]
    values = [
        [helper.make_tensor_value_info(name, *shape) for name, shape in zip(names, shapes, strict=True)]
        for names in (caches, results)
    ]
    return x, values[0], values[1]
