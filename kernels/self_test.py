"""One operator run through ONNX Runtime and compared with the reference, without the onnx package (doctor's check).

The model is a single QuantGather node, written as protobuf by hand: onnx.proto3's field numbers, varints and lengths.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgellm.kernels.layout import Format
from edgellm.kernels.library import OPERATORS, library_path
from edgellm.kernels.reference import quant_gather

_INT64, _UINT8 = 7, 2  # TensorProto.DataType


def self_test() -> None:
    """Load the library into ONNX Runtime and gather two rows; RuntimeError when they differ from the reference."""
    import onnxruntime

    f = Format(32, 128, 4, 64, "min", 4, 8)
    tiles = np.random.default_rng(0).integers(0, 256, f.nbytes).astype(np.uint8)
    _make_valid(tiles, f)
    ids = np.array([3, 17])
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.register_custom_ops_library(str(library_path()))
    session = onnxruntime.InferenceSession(_model(f, len(ids)), options, providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {"ids": ids, "tiles": tiles})
    if not np.allclose(got, quant_gather(ids, tiles, f), rtol=1e-6, atol=1e-6):
        raise RuntimeError("QuantGather gives other weights than its reference")


def _make_valid(tiles: NDArray[np.uint8], f: Format) -> None:
    """Give random bytes finite scales, and masks that keep four of every eight."""
    runs = tiles.reshape(f.panels, -1, f.scale_bytes + f.tile_bytes)
    runs[:, :, : f.scale_bytes] = np.frombuffer(np.linspace(0.1, 1, f.scale_bytes // 2).astype(np.float16), np.uint8)
    runs[:, :, f.scale_bytes : f.scale_bytes + 128] = 0b01010101


def _model(f: Format, count: int) -> bytes:
    attributes = []
    for name, value in f.attributes().items():
        text = isinstance(value, str)
        attributes.append(
            _text(1, name) + (_text(4, value) if text else _number(3, value)) + _number(20, 3 if text else 2)
        )
    node = _text(1, "ids") + _text(1, "tiles") + _text(2, "rows") + _text(4, "QuantGather") + _text(7, "edgellm")
    node += b"".join(_field(5, attribute) for attribute in attributes)
    values = _field(11, _value("ids", _INT64, count)) + _field(11, _value("tiles", _UINT8, f.nbytes))
    graph = _field(1, node) + _text(2, "self_test") + values + _field(12, _value("rows", 1, count, f.k_in))
    opsets = _field(8, _number(2, 23)) + _field(8, _text(1, "edgellm") + _number(2, OPERATORS))
    return _number(1, 10) + _field(7, graph) + opsets


def _value(name: str, kind: int, *shape: int) -> bytes:
    dimensions = b"".join(_field(1, _number(1, size)) for size in shape)
    return _text(1, name) + _field(2, _field(1, _number(1, kind) + _field(2, dimensions)))


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _field(field: int, payload: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(payload)) + payload


def _text(field: int, text: str) -> bytes:
    return _field(field, text.encode())
