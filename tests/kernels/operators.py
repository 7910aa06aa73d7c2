"""Runs one operator of the native library through ONNX Runtime; random matrices of any format."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from edgellm.kernels.layout import Format, Quantized
from edgellm.kernels.library import OPERATORS, library_path

_TYPES = {"float32": 1, "uint8": 2, "int8": 3, "int32": 6, "int64": 7, "float16": 10}


def run(operator: str, given: list[NDArray[Any] | None], outputs: list[str], **attributes: Any) -> list[NDArray[Any]]:
    """given: None for an optional input that is not there."""
    while given[-1] is None:
        given = given[:-1]
    slots = [f"x{i}" if array is not None else "" for i, array in enumerate(given)]
    names = [name for name in slots if name]
    inputs = [array for array in given if array is not None]
    results = [f"y{i}" for i in range(len(outputs))]
    node = onnx.helper.make_node(operator, slots, results, domain="edgellm", **attributes)
    values = [
        onnx.helper.make_tensor_value_info(name, _TYPES[str(array.dtype)], array.shape)
        for name, array in zip(names, inputs, strict=True)
    ]
    wanted = [onnx.helper.make_tensor_value_info(n, _TYPES[t], None) for n, t in zip(results, outputs, strict=True)]
    graph = onnx.helper.make_graph([node], "one", values, wanted)
    opsets = [onnx.helper.make_opsetid("", 23), onnx.helper.make_opsetid("edgellm", OPERATORS)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = ort.SessionOptions()
    options.register_custom_ops_library(str(library_path()))
    options.intra_op_num_threads = 2
    options.log_severity_level = 4
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(results, dict(zip(names, inputs, strict=True))))


def random_mask(rng: np.random.Generator, f: Format) -> NDArray[np.bool_] | None:
    if not f.sparse:
        return None
    shape = (f.n_out, f.k_in) if f.axis == "in" else (f.k_in, f.n_out)
    rank = rng.random((shape[0], shape[1] // f.m, f.m)).argsort(axis=-1)
    mask = (rank < f.n).reshape(shape)
    return mask if f.axis == "in" else np.ascontiguousarray(mask.T)


def random_matrix(rng: np.random.Generator, f: Format) -> Quantized:
    groups = (f.n_out, f.k_in // f.group)
    code = rng.integers(0, 1 << f.bits, (f.n_out, f.k_in)).astype(np.uint8)
    scale = (rng.random(groups) / (1 << f.bits)).astype(np.float16)
    minimum = (-rng.random(groups) / 2).astype(np.float16) if f.zero == "min" else None
    return Quantized(f, code, scale, minimum, random_mask(rng, f))
