"""Building blocks of the ONNX graph: nodes, constants, and initializers that lie in the data file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from edgellm.kernels.layout import Format
from edgellm.kernels.library import OPERATORS

DATA = "model.onnx.data"
OPSET = 23
"""The first standard opset with RMSNormalization; nothing newer is needed."""


@dataclass(frozen=True)
class Placed:
    """Where a tensor lies in the external-data file; `format` is None for a float32 vector of `shape`."""

    offset: int
    nbytes: int
    shape: tuple[int, ...]
    format: Format | None = None


@dataclass
class Nodes:
    """The nodes of a graph so far, and the tensors they use. `placed`: canonical name -> where the tensor lies."""

    placed: dict[str, Placed]
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)
    used: dict[str, onnx.TensorProto] = field(default_factory=dict)

    def node(self, kind: str, inputs: list[str], output: str, domain: str = "", **attributes: Any) -> str:
        """Append a node of one output, which names it; returns that name."""
        self.nodes.append(helper.make_node(kind, inputs, [output], name=output, domain=domain, **attributes))
        return output

    def several(self, kind: str, inputs: list[str], outputs: list[str], **attributes: Any) -> None:
        """Append a node of several outputs."""
        self.nodes.append(helper.make_node(kind, inputs, outputs, name=outputs[0], **attributes))

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
        """The initializer of a small constant."""
        if all(tensor.name != name for tensor in self.constants):
            self.constants.append(onnx.numpy_helper.from_array(np.asarray(value), name))
        return name

    def capped(self, x: str, cap: float, output: str) -> str:
        """cap * tanh(x / cap)."""
        size = self.constant(f"{output}.cap", np.float32(cap))
        return self.node(
            "Mul", [self.node("Tanh", [self.node("Div", [x, size], f"{x}.low")], f"{x}.tanh"), size], output
        )

    def model(
        self, name: str, inputs: Sequence[onnx.ValueInfoProto], outputs: Sequence[onnx.ValueInfoProto]
    ) -> onnx.ModelProto:
        """The graph of all nodes so far."""
        graph = helper.make_graph(self.nodes, name, inputs, outputs, [*self.constants, *self.used.values()])
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("edgellm", OPERATORS)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10, producer_name="edgellm")

    def norm(self, x: str, name: str, epsilon: float, output: str) -> str:
        """RMSNormalization of x by the vector `name`."""
        return self.node("RMSNormalization", [x, self.stored(name)], output, epsilon=epsilon)
