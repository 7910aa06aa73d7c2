"""The packed bundle as a source of float32 weights: what the torch reference runs on, to check the bundle itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgellm.export.block_graph import MATRICES
from edgellm.export.nodes import Placed
from edgellm.export.plan import QKV
from edgellm.kernels.layout import PANEL, Format, Quantized, dequantize, unpack

_WEIGHTS_AT_ONCE = 1 << 22


class PackedSource:
    """Weights by canonical name (checkpoint.Source), read from the data file and dequantized on demand."""

    def __init__(self, data: Path, placed: Mapping[str, Placed]) -> None:
        self._data = data
        self._placed = placed

    def matrix(self, name: str, rows: slice | None = None) -> Tensor:
        """float32 [out, in] or these rows of it; gate and up are the halves of each 32 outputs of "gate_up"
        (pack.interleave), q, k and v may be rows of "qkv"."""
        layer, _, role = name.rpartition(".")
        if role in QKV and f"{layer}.qkv" in self._placed:
            own = self._share(layer, role)
            begin, end = (0, own.stop - own.start) if rows is None else (rows.start, rows.stop)
            return torch.cat(list(self._pieces(f"{layer}.qkv", slice(own.start + begin, own.start + end))))
        if role not in ("gate", "up"):
            return torch.cat(list(self._pieces(name, rows)))
        half = [
            piece.view(-1, 2, PANEL, piece.shape[1])[:, ("gate", "up").index(role)].reshape(-1, piece.shape[1])
            for piece in self._pieces(f"{layer}.gate_up", None)
        ]
        return torch.cat(half) if rows is None else torch.cat(half)[rows]

    def quantized(self, name: str) -> Quantized:
        """The same matrix in codes, scales and mask."""
        layer, _, role = name.rpartition(".")
        own: slice | NDArray[np.int64] = slice(None)
        if role in QKV and f"{layer}.qkv" in self._placed:
            name, own = f"{layer}.qkv", self._share(layer, role)
        if role in ("gate", "up"):
            name = f"{layer}.gate_up"
            pairs = np.arange(self._format(name).n_out).reshape(-1, 2, PANEL)
            own = pairs[:, ("gate", "up").index(role)].flatten()
        f = self._format(name)
        whole = unpack(np.fromfile(self._data, np.uint8, f.nbytes, offset=self._placed[name].offset), f)
        parts = [None if part is None else part[own] for part in (whole.code, whole.scale, whole.minimum, whole.mask)]
        return Quantized(replace(f, n_out=len(whole.code[own])), *parts)  # type: ignore[arg-type]  # code and scale are

    def vector(self, name: str) -> Tensor:
        """float32 [length]."""
        layer, _, role = name.rpartition(".")
        whole = f"{layer}.qkv_bias"
        if role.removesuffix("_bias") in QKV and whole in self._placed:
            return self._floats(whole)[self._share(layer, role.removesuffix("_bias"))]
        return self._floats(name)

    def _format(self, name: str) -> Format:
        found = self._placed[name].format
        assert found is not None
        return found

    def _floats(self, name: str) -> Tensor:
        at = self._placed[name]
        return torch.from_numpy(np.fromfile(self._data, np.float32, at.nbytes // 4, offset=at.offset))

    def _share(self, layer: str, role: str) -> slice:
        """The rows of "qkv" that are q, k or v: as many queries as o has inputs, and as many keys as values."""
        qkv, o = self._placed[f"{layer}.qkv"].format, self._placed[f"{layer}.o"].format
        assert qkv is not None
        assert o is not None
        keys = (qkv.n_out - o.k_in) // 2
        ends = [0, o.k_in, o.k_in + keys, qkv.n_out]
        return slice(*ends[QKV.index(role) :][:2])

    def _pieces(self, name: str, rows: slice | None) -> Iterator[Tensor]:
        """The wanted rows, some pairs of panels at a time: unpacking takes several times what it gives."""
        at = self._placed[name]
        assert at.format is not None
        f, wanted = at.format, slice(0, at.format.n_out) if rows is None else rows
        step = max(1, _WEIGHTS_AT_ONCE // f.k_in // (2 * PANEL)) * 2 * PANEL
        for start in range(wanted.start // PANEL * PANEL, wanted.stop, step):
            held = replace(f, n_out=min(step, f.n_out - start, -(-(wanted.stop - start) // PANEL) * PANEL))
            raw = np.fromfile(self._data, np.uint8, held.nbytes, offset=at.offset + start // PANEL * f.panel_bytes)
            found = torch.from_numpy(dequantize(unpack(raw, held)))
            yield found[max(wanted.start - start, 0) : wanted.stop - start]


def read_placed(bundle: Path) -> dict[str, Placed]:
    """Where a finished bundle's tensors lie, by canonical name, as its graph says."""
    graph = onnx.load(str(bundle / "model.onnx"), load_external_data=False).graph
    formats: dict[str, Format] = {}
    for node in graph.node:
        values = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        if node.op_type in ("NMMatMul", "QuantGather"):
            formats[node.input[1]] = _format(values, "")
        if node.op_type == "DecoderLayer":
            for role, index in MATRICES.items():
                if values.get(f"{role}.n_out"):
                    formats[node.input[index]] = _format(values, f"{role}.")
    placed = {}
    for tensor in graph.initializer:
        at = {entry.key: entry.value for entry in tensor.external_data}
        if at:
            where = int(at["offset"]), int(at["length"])
            placed[tensor.name] = Placed(*where, tuple(tensor.dims), formats.get(tensor.name))
    return placed


def _format(attributes: dict[str, Any], prefix: str) -> Format:
    values: dict[str, Any] = {field.name: attributes[prefix + field.name] for field in fields(Format)}
    words = {name: value.decode() for name, value in values.items() if isinstance(value, bytes)}
    return Format(**(values | words))
