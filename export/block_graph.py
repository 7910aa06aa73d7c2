"""A decoder block in the graph: one operator, or the operators and standard nodes that it stands for.

Both take x [T, hidden], cos and sin [T, rotary/2] and the names of the layer's key, value, position and score buffers,
and add outputs "<name>.out" for these. Of the last layer only the rows that the graph's input `rows` names are worked
out.
"""

from __future__ import annotations

from typing import Any

from onnx import helper

from edgellm.export.adapt_carriers import LORA_SCALE
from edgellm.export.architectures import Architecture
from edgellm.export.nodes import Nodes

MATRICES = {"q": 9, "o": 10, "gate_up": 11, "down": 12, "k": 15, "v": 16}
"""DecoderLayer's packed matrices: the role that begins the names of the format's attributes, and which input it is."""


def fused_block(b: Nodes, arch: Architecture, layer: int, x: str, rotation: tuple[str, str], caches: list[str]) -> str:
    """The block as one DecoderLayer node (kernels/layer_reference.py)."""
    at = f"layers.{layer}"
    joined = f"{at}.qkv" in b.placed
    matrices = {"q": "qkv" if joined else "q", "o": "o", "gate_up": "gate_up", "down": "down"}
    matrices |= {} if joined else {"k": "k", "v": "v"}
    biases = ["qkv_bias" if joined else "q_bias", "k_bias", "v_bias", "o_bias"]
    inputs = [x, *rotation, "positions", "control", *caches]
    inputs += [b.stored(f"{at}.{matrices[role]}") for role in ("q", "o", "gate_up", "down")]
    inputs += [b.stored(f"{at}.{norm}") for norm in ("attention_norm", "mlp_norm")]
    optional = [*(["k", "v"] if not joined else ("", "")), *biases, "q_norm", "k_norm"]
    optional += ["post_attention_norm", "post_mlp_norm"]
    inputs += [b.stored(f"{at}.{name}") if f"{at}.{name}" in b.placed else "" for name in optional]
    inputs += ["rows" if layer == arch.layers - 1 else "", _key_shift(b, at)]
    while not inputs[-1]:
        inputs.pop()
    attributes: dict[str, Any] = attention_attributes(arch, layer) | {
        "epsilon": arch.norm_eps,
        "activation": arch.activation,
    }
    attributes |= {"k.n_out": 0}
    for role, name in matrices.items():
        form = b.placed[f"{at}.{name}"].format
        assert form is not None
        attributes |= {f"{role}.{key}": value for key, value in form.attributes().items()}
    outputs = [f"{at}.out", *(f"{name}.out" for name in caches)]
    b.nodes.append(helper.make_node("DecoderLayer", inputs, outputs, name=at, domain="edgellm", **attributes))
    return outputs[0]


def separate_block(
    b: Nodes, arch: Architecture, layer: int, x: str, rotation: tuple[str, str], caches: list[str], lora: bool = False
) -> str:
    """The block as NMMatMul, PrunedKVAttention and standard operators. lora: with updates of q and v."""
    at, eps = f"layers.{layer}", arch.norm_eps

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
    if lora:
        qkv = _updated(b, arch, layer, x, qkv)
    mixed = f"{at}.mixed"
    inputs, sizes = [qkv, *rotation, "positions", "control", *caches], attention_attributes(arch, layer)
    if arch.qk_norm:
        inputs += [b.stored(f"{at}.{role}_norm") for role in ("q", "k")]
        sizes |= {"epsilon": eps}
    elif _key_shift(b, at):
        inputs += ["", "", _key_shift(b, at)]
    outputs = [mixed, *(f"{name}.out" for name in caches)]
    b.nodes.append(helper.make_node("PrunedKVAttention", inputs, outputs, name=mixed, domain="edgellm", **sizes))
    if layer == arch.layers - 1:
        x, mixed = (b.node("Gather", [y, "rows"], f"{name}.wanted", axis=0) for y, name in ((x, "x"), (mixed, "mixed")))
    x = added(x, mixed, "o", "post_attention_norm", f"{at}.attended")
    hidden = b.matmul(x, f"{at}.gate_up", f"{at}.gated", arch.activation, norm=f"{at}.mlp_norm", epsilon=eps)
    return added(x, hidden, "down", "post_mlp_norm", f"{at}.out")


def _updated(b: Nodes, arch: Architecture, layer: int, x: str, qkv: str) -> str:
    """qkv + LORA_SCALE * norm(x) down up, of the graph's inputs down.L and up.L; the very qkv where up is 0.

    Gemm adds to its product, whether qkv came from one matrix or from three.
    """
    at = f"layers.{layer}"
    normed = b.norm(x, f"{at}.attention_norm", arch.norm_eps, f"{at}.normed")
    low = b.node("Gemm", [normed, f"down.{layer}"], f"{at}.low", alpha=LORA_SCALE)
    return b.node("Gemm", [low, f"up.{layer}", qkv], f"{at}.qkv.updated")


def _key_shift(b: Nodes, at: str) -> str:
    """The vector taken off the layer's keys, or "" where it has none (key_shift.py)."""
    return b.stored(f"{at}.k_shift") if f"{at}.k_shift" in b.placed else ""


def attention_attributes(arch: Architecture, layer: int) -> dict[str, Any]:
    """What DecoderLayer and PrunedKVAttention know of a layer's attention."""
    return {
        "heads": arch.heads,
        "kv_heads": arch.kv_heads,
        "head_dim": arch.head_dim,
        "scale": arch.attention_scale,
        "window": arch.layers_as[layer].window,
        "softcap": arch.attention_softcap,
        "layer": layer,
    }
