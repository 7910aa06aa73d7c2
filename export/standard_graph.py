"""A graph of standard operators, as Optimum exports it, made small: ONNX Runtime's own quantizer, one data file."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgellm.export.level import GROUP
from edgellm.export.nodes import DATA, Placed
from edgellm.export.optimum_exporter import quiet
from edgellm.runtime.errors import EdgellmError
from edgellm.runtime.onnx_graph import first_line

INT8_ACTIVATIONS = 4
"""MatMulNBits' accuracy_level. Without it ONNX Runtime dequantizes 8-bit weights whole at every token, 140 times slower
(measured, AVX512-VNNI). With it a product is off by 0.8 % instead of 0.5 % at 8 bits, by 9 % either way at 4."""
EXTERNAL = 1024  # bytes: from this size on, tensors go into the data file


def quantize(model: onnx.ModelProto, bits: int, head_bits: int, vocabulary: int) -> onnx.ModelProto:
    """Weights of every linear layer in `bits` (the head's in `head_bits`), groups of 64 inputs with a zero point; the
    embedding, of which a token reads a row, in float16. `model` is used up.

    bits, head_bits: 4 or 8. Raises EdgellmError where onnxruntime's quantizer fails.
    """
    _gemm_as_matmul(model.graph)
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    products = [node for node in model.graph.node if node.op_type == "MatMul" and node.input[1] in weights]
    head = [node.name for node in products if weights[node.input[1]].dims[-1] == vocabulary]
    for width, without in ((bits, head), (head_bits, [])):  # the second time only the head is left
        model = _rounded(model, width, without)
    _halve_embeddings(model.graph)
    return model


def matrices(graph: onnx.GraphProto, vocabulary: int) -> list[dict[str, Any]]:
    """The manifest's "matrices": quantized ones, and those that stay floats, whose group is 1."""
    stored = {tensor.name: tensor for tensor in graph.initializer}
    found = []
    for node in graph.node:
        if node.op_type == "MatMulNBits":
            said = {entry.name: entry.i for entry in node.attribute}
            shape, size = (said["N"], said["K"]), sum(_nbytes(stored[name]) for name in node.input[1:])
            name = "head" if said["N"] == vocabulary else _plain_name(node.name)
            found.append(_entry(name, shape, said["bits"], said["block_size"], "min", size))
            for used in node.input[1:]:
                stored.pop(used, None)
    for tensor in stored.values():
        *rows, columns = [*tensor.dims] or [1]
        if tensor.data_type in (TensorProto.FLOAT, TensorProto.FLOAT16) and int(np.prod(rows)) > 1 < columns:
            name = "embedding" if rows == [vocabulary] else _plain_name(tensor.name)
            bits = 8 * _nbytes(tensor) // (int(np.prod(rows)) * columns)
            found.append(_entry(name, (int(np.prod(rows)), columns), bits, 1, "symmetric", _nbytes(tensor)))
    return found


def place(model: onnx.ModelProto, append: Callable[[str, list[NDArray[Any]]], Placed]) -> bytes:
    """Move tensors to the data file with `append`, and return what is left as model.onnx's bytes."""
    for tensor in model.graph.initializer:
        if _nbytes(tensor) < EXTERNAL:
            continue
        at = append(tensor.name, [numpy_helper.to_array(tensor)])
        tensor.ClearField("raw_data")
        tensor.ClearField("float_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", DATA), ("offset", at.offset), ("length", at.nbytes)):
            tensor.external_data.add(key=key, value=str(value))
    return bytes(model.SerializeToString())


def _rounded(model: onnx.ModelProto, bits: int, without: list[str]) -> onnx.ModelProto:
    with quiet():
        from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

        logging.getLogger(MatMulNBitsQuantizer.__module__).setLevel(logging.ERROR)
        quantizer = MatMulNBitsQuantizer(
            model, bits=bits, block_size=GROUP, accuracy_level=INT8_ACTIVATIONS, nodes_to_exclude=without
        )
        try:
            quantizer.process()
        except Exception as error:
            raise EdgellmError(
                f"ONNX Runtime's quantizer cannot round this graph: {first_line(error)}",
                "Nothing was written. Report this with the model's name.",
            ) from error
    rounded: onnx.ModelProto = quantizer.model.model
    return rounded


def _gemm_as_matmul(graph: onnx.GraphProto) -> None:
    """x W + b in two nodes where torch's exporter wrote one: the quantizer sees MatMul only."""
    weights = {tensor.name: tensor for tensor in graph.initializer}
    nodes = []
    for node in graph.node:
        said = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
        plain = said.get("alpha", 1.0) == said.get("beta", 1.0) == 1.0 and not said.get("transA")
        if node.op_type != "Gemm" or node.input[1] not in weights or not plain:
            nodes.append(node)
            continue
        weight, product = node.input[1], f"{node.output[0]}.product"
        if said.get("transB"):
            array = numpy_helper.to_array(weights[weight])
            weight = f"{weight}.transposed"
            graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array.T), weight))
        biased = len(node.input) > 2 and node.input[2]
        to = product if biased else node.output[0]
        nodes.append(helper.make_node("MatMul", [node.input[0], weight], [to], name=node.name))
        if biased:
            nodes.append(helper.make_node("Add", [product, node.input[2]], [node.output[0]], name=f"{node.name}.bias"))
    del graph.node[:]
    graph.node.extend(nodes)


def _halve_embeddings(graph: onnx.GraphProto) -> None:
    """float32 matrices that only Gather reads become float16, and the rows read are cast back."""
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    for tensor in graph.initializer:
        reading = readers.get(tensor.name, [])
        if tensor.data_type != TensorProto.FLOAT or len(tensor.dims) != 2 or not reading:
            continue
        array = numpy_helper.to_array(tensor)
        if any(n.op_type != "Gather" or n.input[0] != tensor.name for n in reading) or np.abs(array).max() > 65504:
            continue
        tensor.CopyFrom(numpy_helper.from_array(array.astype(np.float16), tensor.name))
        for node in reading:
            row, node.output[0] = node.output[0], f"{node.output[0]}.float16"
            place = list(graph.node).index(node) + 1
            graph.node.insert(place, helper.make_node("Cast", [node.output[0]], [row], to=TensorProto.FLOAT))


def _entry(name: str, shape: tuple[int, int], bits: int, group: int, zero: str, size: int) -> dict[str, Any]:
    form = {"bits": bits, "group": group, "zero": zero, "n": 1, "m": 1, "axis": "in"}
    return {"name": name, "n_out": shape[0], "k_in": shape[1], **form, "bytes": size}


def _plain_name(name: str) -> str:
    """ "/gpt_neox/layers.3/mlp/dense_h_to_4h/MatMul_Q8" -> "layers.3.mlp.dense_h_to_4h"."""
    dotted = re.sub(r"/(MatMul|Gemm)(_\d+)?(_Q\d)?$", "", name).replace("/", ".").strip(".").removesuffix(".weight")
    layer = re.search(r"(?:^|\.)[a-z_]+\.(\d+)\.(.+)$", dotted)
    return f"layers.{layer[1]}.{layer[2]}" if layer else dotted


def _nbytes(tensor: TensorProto) -> int:
    kind = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    return int(np.prod(tensor.dims, dtype=np.int64) * kind.itemsize)
