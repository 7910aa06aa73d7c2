"""What both dialects for TensorRT share: products in half precision, what passes along the layers in float32."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from onnx import TensorProto

from edgellm.export.architectures import Architecture
from edgellm.export.nodes import Nodes, Placed
from edgellm.export.packed_source import PackedSource

F32, F16, I64 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT64
Store = Callable[[str, int, tuple[int, ...], NDArray[Any]], TensorProto]
"""(name, ONNX type, dims, data) -> the initializer, its data stored wherever the caller wants it."""


class MixedPrecision:
    """Nodes over the packed tensors `placed` in the file `data`; every method appends to `b` and returns the name of
    what it gives."""

    def __init__(self, arch: Architecture, placed: dict[str, Placed], data: Path, store: Store) -> None:
        self.b = Nodes({})
        self.arch, self.placed, self.data, self.store = arch, placed, data, store
        self.vectors = PackedSource(data, placed)
        self._halves: set[str] = set()

    def added(self, layer: int, x: str, y: str, norm: str) -> str:
        """x plus what attention or MLP gives, normed first where the model has it so."""
        if self.arch.post_norms:
            y = self.norm(y, f"layers.{layer}.{norm}", f"{y}.normed")
        return self.b.node("Add", [x, y], f"{y}.added")

    def norm(self, x: str, name: str, output: str) -> str:
        """RMSNormalization in float32 over the last dimension."""
        return self.b.node("RMSNormalization", [x, self.vector(name)], output, epsilon=self.arch.norm_eps)

    def vector(self, name: str) -> str:
        """The initializer of a float32 vector."""
        if name not in self.b.used:
            array = self.vectors.vector(name).numpy()
            self.b.used[name] = self.store(name, F32, array.shape, array)
        return name

    def half(self, x: str) -> str:
        """x in half precision; asked for again (q, k and v in formats of their own), the same."""
        half = f"{x}.half"
        if half not in self._halves:
            self._halves.add(half)
            self.b.node("Cast", [x], half, to=F16)
        return half

    def single(self, x: str) -> str:
        """x in float32."""
        return self.b.node("Cast", [x], f"{x}.single", to=F32)
