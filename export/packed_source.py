"""The packed bundle as a source of float32 weights: what the torch reference runs on, to check the bundle itself."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor

from edgellm.export.graph import Placed
from edgellm.kernels.layout import PANEL, Format, dequantize, unpack


class PackedSource:
    """Weights by canonical name (checkpoint.Source), read from the mapped data file and dequantized on demand."""

    def __init__(self, data: Path, placed: Mapping[str, Placed]) -> None:
        self._data = np.memmap(data, np.uint8, "r")
        self._placed = placed

    def matrix(self, name: str) -> Tensor:
        """float32 [out, in]; gate and up are the halves of each 32 outputs of "gate_up" (pack.interleave)."""
        layer, _, role = name.rpartition(".")
        if role in ("gate", "up"):
            both = self._read(f"{layer}.gate_up")
            return both.view(-1, 2, PANEL, both.shape[1])[:, ("gate", "up").index(role)].reshape(-1, both.shape[1])
        return self._read(name)

    def vector(self, name: str) -> Tensor:
        """float32 [length]."""
        at = self._placed[name]
        return torch.from_numpy(self._data[at.offset : at.offset + at.nbytes].view(np.float32).copy())

    def _read(self, name: str) -> Tensor:
        at = self._placed[name]
        assert at.format is not None
        return torch.from_numpy(dequantize(unpack(self._data[at.offset : at.offset + at.nbytes], at.format)))


def read_placed(bundle: Path) -> dict[str, Placed]:
    """Where a finished bundle's tensors lie, by canonical name, as its graph says."""
    graph = onnx.load(str(bundle / "model.onnx"), load_external_data=False).graph
    formats: dict[str, Format] = {}
    for node in graph.node:
        if node.op_type in ("NMMatMul", "QuantGather"):
            values: dict[str, Any] = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            values.pop("activation", None)
            words = {key: value.decode() for key, value in values.items() if isinstance(value, bytes)}
            formats[node.input[1]] = Format(**(values | words))
    placed = {}
    for tensor in graph.initializer:
        at = {entry.key: entry.value for entry in tensor.external_data}
        if at:
            where = int(at["offset"]), int(at["length"])
            placed[tensor.name] = Placed(*where, tuple(tensor.dims), formats.get(tensor.name))
    return placed
