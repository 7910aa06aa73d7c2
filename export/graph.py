"""The ONNX graph of a decoder: standard operators around DecoderLayer, QuantGather and NMMatMul (design.md).

Inputs: ids, positions, rows int64; control int64 [layers, fields of edgellm.kernels.control]; per layer key.L and
value.L fp16 [kv_heads, capacity, head_dim], or int8 rows (edgellm.kernels.kv_rows), position.L int32 [kv_heads,
capacity] and score.L float32 [kv_heads, capacity, planes], the capacity its own. Outputs: logits float32 [R,
vocabulary] of the rows asked for, and the caches. With LoRA (model-lora.onnx) also, per layer, down.L float32 [hidden,
2 RANK] and up.L float32 [2 RANK, width of q, k and v]: what edgellm.runtime.low_rank makes of an adapter.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import onnx
from onnx import TensorProto, helper

from edgellm.export.architectures import Architecture
from edgellm.export.block_graph import fused_block, separate_block
from edgellm.export.nodes import Nodes, Placed
from edgellm.export.rope import Rope
from edgellm.kernels.control import FIELDS
from edgellm.kernels.kv_rows import row_width
from edgellm.runtime.adapter import RANK

KV = {16: TensorProto.FLOAT16, 8: TensorProto.INT8}


def decoder_graph(
    arch: Architecture, placed: dict[str, Placed], fused: bool = True, kv_bits: int = 16, lora: bool = False
) -> onnx.ModelProto:
    """The whole decoder over the tensors placed in the data file, by canonical name (gate and up as "gate_up").

    fused: a block is one DecoderLayer; otherwise NMMatMul, PrunedKVAttention and standard operators, for devices that
    have no such operator, with the same results. kv_bits: of keys and values, 16 or 8. lora: with LoRA's updates of q
    and v, which no DecoderLayer has.
    """
    b = Nodes(placed)
    x = b.packed("QuantGather", "ids", "embedding", "embedded")
    if arch.embedding_scale != 1:
        x = b.node("Mul", [x, b.constant("embedding_scale", np.float32(arch.embedding_scale))], "scaled")
    turns = rotations(b, arch)
    caches_in, caches_out, updates = [], [], []
    block = fused_block if fused and not lora else partial(separate_block, lora=lora)
    for layer in range(arch.layers):
        slots = [arch.kv_heads, f"capacity.{layer}"]
        shapes = [(KV[kv_bits], [*slots, row_width(arch.head_dim, kv_bits)])] * 2
        shapes += [(TensorProto.INT32, slots), (TensorProto.FLOAT, [*slots, "planes"])]
        caches = [f"{name}.{layer}" for name in ("key", "value", "position", "score")]
        x = block(b, arch, layer, x, turns[arch.layers_as[layer].rope], caches)
        for name, shape in zip(caches, shapes, strict=True):
            caches_in.append(helper.make_tensor_value_info(name, *shape))
            caches_out.append(helper.make_tensor_value_info(f"{name}.out", *shape))
        if lora:
            width = sum(arch.shape(f"layers.{layer}.{role}")[0] for role in ("q", "k", "v"))
            for name, size in (("down", [arch.hidden, 2 * RANK]), ("up", [2 * RANK, width])):
                updates.append(helper.make_tensor_value_info(f"{name}.{layer}", TensorProto.FLOAT, size))
    head, cap = "embedding" if arch.tied else "head", arch.final_softcap
    logits = b.matmul(x, head, "uncapped" if cap else "logits", norm="norm", epsilon=arch.norm_eps)
    if cap:
        b.capped(logits, cap, "logits")

    sizes: dict[str, list[int | str]] = {"ids": ["T"], "positions": ["T"], "rows": ["R"]}
    sizes["control"] = [arch.layers, FIELDS]
    integers = [helper.make_tensor_value_info(name, TensorProto.INT64, size) for name, size in sizes.items()]
    result = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["R", arch.vocabulary])
    return b.model("decoder", [*integers, *caches_in, *updates], [result, *caches_out])


def rotations(b: Nodes, arch: Architecture) -> dict[Rope, tuple[str, str]]:
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
