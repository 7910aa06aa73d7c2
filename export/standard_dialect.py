"""The decoder in standard ONNX operators only (opset 24), for TensorRT: the same packed weights, nothing rounded again.

Matrices are INT4 or INT8 DequantizeLinear in blocks before a MatMul in half precision, minima a second small MatMul
(integer_weights.py); keys and values are appended by TensorScatter in place and read by Attention under a boolean mask.
What is added up along the layers, norms, rotation and the gate are float32: some models' sums pass half precision's
largest number. So may what "down" reads and gives: it is made smaller by a power of two on the way, which is exact.

Inputs: embedded float32 [T, hidden], the rows of the embedding (the runtime reads them from the packed matrix: a token
needs one row, and no device memory is spent on the rest); positions int64 [T]; start int64 [1], the slot of the first
of them; rows int64 [R]; per layer key.L and value.L fp16 [1, kv_heads, C, head_dim], slot = position. Outputs: logits
float32 [R, vocabulary], and key.L.out, value.L.out, which are to be the inputs' memory.
Every token of the sequence stays: there is no eviction in standard operators (KV policy full).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from edgellm.export.architectures import Architecture
from edgellm.export.graph import rotations
from edgellm.export.integer_weights import integer_weights
from edgellm.export.mixed_precision import F16, F32, I64, MixedPrecision, Store
from edgellm.export.nodes import Placed
from edgellm.kernels.layout import Format

OPSET = 24
"""The first standard opset with TensorScatter."""
EXACT = 2**-5
"""What "down" reads is multiplied by, and its result divided by: a power of two rounds nothing."""


def standard_decoder(
    arch: Architecture, placed: dict[str, Placed], data: Path, capacity: int, store: Store
) -> onnx.ModelProto:
    """The whole decoder over the packed tensors `placed` in the file `data`. capacity: C; TensorRT wants it fixed."""
    g = _Dialect(arch, placed, data, store)
    b = g.b
    x = "embedded"
    if arch.embedding_scale != 1:
        x = b.node("Mul", [x, b.constant("embedding_scale", np.float32(arch.embedding_scale))], "scaled")
    turns = {rope: g.batched(pair) for rope, pair in rotations(b, arch).items()}
    masks = g.masks(capacity)
    ends = []
    for layer, facts in enumerate(arch.layers_as):
        x = g.block(layer, x, turns[facts.rope], masks[facts.window])
        ends += [f"{kind}.{layer}" for kind in ("key", "value")]
    normed = g.norm(x, "norm", "normed")
    logits = g.linear(normed, "embedding" if arch.tied else "head", "uncapped" if arch.final_softcap else "logits")
    if arch.final_softcap:
        b.capped(logits, arch.final_softcap, "logits")
    slots = [1, arch.kv_heads, capacity, arch.head_dim]
    value = helper.make_tensor_value_info
    inputs = [value("embedded", F32, ["T", arch.hidden]), value("positions", I64, ["T"])]
    inputs += [value("start", I64, [1]), value("rows", I64, ["R"]), *(value(name, F16, slots) for name in ends)]
    outputs = [value("logits", F32, ["R", arch.vocabulary])]
    outputs += [value(f"{name}.out", F16, slots) for name in ends]
    graph = helper.make_graph(b.nodes, "decoder", inputs, outputs, [*b.constants, *b.used.values()])
    opsets = [helper.make_opsetid("", OPSET)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=11, producer_name="edgellm")


class _Dialect(MixedPrecision):
    """The pieces of the graph; every method appends nodes and returns the name of what they give."""

    def batched(self, pair: tuple[str, str]) -> tuple[str, str]:
        """cos and sin [T, rotary/2] -> [1, T, rotary/2]."""
        first = self.b.constant("first", np.array([0], np.int64))
        cos, sin = (self.b.node("Unsqueeze", [wave, first], f"{wave}.batched") for wave in pair)
        return cos, sin

    def masks(self, capacity: int) -> dict[int, str]:
        """Window -> bool [1, 1, T, C], where a token sees a slot: at or before its own, and not a window away."""
        b = self.b
        slots = b.constant("slots", np.arange(capacity, dtype=np.int64))
        at = b.node("Unsqueeze", ["positions", b.constant("column", np.array([1], np.int64))], "at")
        seen = b.node("LessOrEqual", [slots, at], "seen")
        found = {}
        for window in sorted({layer.window for layer in self.arch.layers_as}):
            near = seen
            if window:
                oldest = b.node("Sub", [at, b.constant(f"window.{window}", np.int64(window))], f"oldest.{window}")
                later = b.node("Greater", [slots, oldest], f"later.{window}")
                near = b.node("And", [seen, later], f"near.{window}")
            both = b.constant("outer", np.array([0, 1], np.int64))
            found[window] = b.node("Unsqueeze", [near, both], f"mask.{window}")
        return found

    def block(self, layer: int, x: str, turn: tuple[str, str], mask: str) -> str:
        """A decoder block, [T, hidden] -> [T, hidden]; of the last layer, attention on, only the rows asked for."""
        b, arch, at = self.b, self.arch, f"layers.{layer}"
        query, key, value = self.heads(layer, self.norm(x, f"{at}.attention_norm", f"{at}.normed"))
        query, key = (self.turned(y, f"{at}.{role}_norm", turn) for y, role in ((query, "q"), (key, "k")))
        caches = []
        for kind, new in (("key", key), ("value", value)):
            inputs = [f"{kind}.{layer}", self.half(new), "start"]
            caches.append(b.node("TensorScatter", inputs, f"{kind}.{layer}.out", axis=-2, mode="linear"))
        mixed = self.attention(self.half(query), caches[0], caches[1], mask, f"{at}.mixed")
        flat = b.constant("flat", np.array([-1, arch.heads * arch.head_dim], np.int64))
        mixed = b.node("Reshape", [b.node("Transpose", [mixed], f"{mixed}.rows", perm=[0, 2, 1, 3]), flat], f"{at}.y")
        if layer == arch.layers - 1:
            x, mixed = (b.node("Gather", [y, "rows"], f"{y}.wanted", axis=0) for y in (x, mixed))
        x = self.added(layer, x, self.linear(mixed, f"{at}.o", f"{at}.o.out"), "post_attention_norm")
        normed = self.norm(x, f"{at}.mlp_norm", f"{at}.mlp_normed")
        both = self.linear(normed, f"{at}.gate_up", f"{at}.gate_up.out", interleaved=True)
        gate, up = f"{at}.gate", f"{at}.up"
        b.nodes.append(helper.make_node("Split", [both], [gate, up], name=f"{at}.halves", axis=1, num_outputs=2))
        inner = b.node("Mul", [self.activated(gate), up], f"{at}.inner")
        small = b.node("Mul", [inner, b.constant("exact", np.float32(EXACT))], f"{at}.small")
        down = self.linear(small, f"{at}.down", f"{at}.down.small")
        down = b.node("Mul", [down, b.constant("exact.back", np.float32(1 / EXACT))], f"{at}.down.out")
        return self.added(layer, x, down, "post_mlp_norm")

    def heads(self, layer: int, normed: str) -> list[str]:
        """q, k, v float32 [1, heads, T, head_dim] each."""
        b, arch, at = self.b, self.arch, f"layers.{layer}"
        widths = [count * arch.head_dim for count in (arch.heads, arch.kv_heads, arch.kv_heads)]
        names = [f"{at}.{role}.out" for role in ("q", "k", "v")]
        if f"{at}.qkv" in self.placed:
            qkv = self.linear(normed, f"{at}.qkv", f"{at}.qkv.out")
            cut = [qkv, b.constant("qkv", np.array(widths, np.int64))]
            b.nodes.append(helper.make_node("Split", cut, names, name=f"{at}.qkv.cut", axis=1))
        else:
            names = [self.linear(normed, f"{at}.{role}", f"{at}.{role}.out") for role in ("q", "k", "v")]
        found = []
        for name, count in zip(names, (arch.heads, arch.kv_heads, arch.kv_heads), strict=True):
            cut = [name, b.constant(f"heads.{count}", np.array([1, -1, count, arch.head_dim], np.int64))]
            apart = b.node("Reshape", cut, f"{name}.heads")
            found.append(b.node("Transpose", [apart], f"{name}.first", perm=[0, 2, 1, 3]))
        return found

    def turned(self, y: str, norm: str, turn: tuple[str, str]) -> str:
        """Heads normed, where the model does, and rotated."""
        if norm in self.placed:
            y = self.norm(y, norm, f"{y}.normed")
        dims = 2 * len(self.arch.layers_as[int(norm.split(".")[1])].rope.frequencies())
        part: dict[str, Any] = {} if dims == self.arch.head_dim else {"rotary_embedding_dim": dims}
        return self.b.node("RotaryEmbedding", [y, *turn], f"{y}.turned", **part)

    def attention(self, query: str, key: str, value: str, mask: str, output: str) -> str:
        """fp16 [1, heads, T, head_dim]; logits with a soft cap in separate nodes, which TensorRT's Attention lacks."""
        b, arch = self.b, self.arch
        if not arch.attention_softcap:
            return b.node("Attention", [query, key, value, mask], output, scale=arch.attention_scale)
        group = arch.heads // arch.kv_heads
        apart = b.constant("groups", np.array([1, arch.kv_heads, group, -1, arch.head_dim], np.int64))
        third = b.constant("third", np.array([2], np.int64))
        q = b.node("Reshape", [query, apart], f"{output}.q")
        k, v = (b.node("Unsqueeze", [y, third], f"{output}.{name}") for y, name in ((key, "k"), (value, "v")))
        k = b.node("Transpose", [k], f"{output}.kt", perm=[0, 1, 2, 4, 3])
        logits = self.single(b.node("MatMul", [q, k], f"{output}.qk"))
        scale = b.constant("attention_scale", np.float32(arch.attention_scale))
        capped = b.capped(
            b.node("Mul", [logits, scale], f"{output}.scaled"), arch.attention_softcap, f"{output}.capped"
        )
        hidden = b.constant("hidden", np.float32(-1e30))
        masked = b.node("Where", [mask, capped, hidden], f"{output}.masked")
        weights = self.half(b.node("Softmax", [masked], f"{output}.weights", axis=-1))
        together = b.constant("together", np.array([1, arch.heads, -1, arch.head_dim], np.int64))
        return b.node("Reshape", [b.node("MatMul", [weights, v], f"{output}.grouped"), together], output)

    def activated(self, gate: str) -> str:
        """silu or gelu_tanh."""
        if self.arch.activation == "gelu_tanh":
            return self.b.node("Gelu", [gate], f"{gate}.active", approximate="tanh")
        return self.b.node("Mul", [gate, self.b.node("Sigmoid", [gate], f"{gate}.sigmoid")], f"{gate}.active")

    def linear(self, x: str, name: str, output: str, interleaved: bool = False) -> str:
        """x, at half precision, times the matrix `name`, plus its bias: float32 [T, n_out]."""
        b, at = self.b, self.placed[name]
        f = at.format
        assert f is not None
        self.keep(name, at, f, interleaved)
        half = self.half(x)
        blocks = [f"{name}.codes", f"{name}.scale"]
        matrix = b.node("DequantizeLinear", blocks, f"{output}.weights", axis=0, block_size=f.group)
        parts = [self.single(b.node("MatMul", [half, matrix], f"{output}.product"))]
        if f.zero == "min":
            cut = b.constant(f"groups.{f.k_in}.{f.group}", np.array([-1, f.k_in // f.group, f.group], np.int64))
            apart = b.node("Reshape", [half, cut], f"{output}.groups")
            last = b.constant("last", np.array([-1], np.int64))
            sums = self.half(b.node("ReduceSum", [self.single(apart), last], f"{output}.sums", keepdims=0))
            parts.append(self.single(b.node("MatMul", [sums, f"{name}.minimum"], f"{output}.minima")))
        if f"{name}_bias" in self.placed:
            parts.append(self.vector(f"{name}_bias"))
        while len(parts) > 2:
            parts[:2] = [b.node("Add", parts[:2], f"{output}.unbiased")]
        return b.node("Identity" if len(parts) == 1 else "Add", parts, output)

    def keep(self, name: str, at: Placed, f: Format, interleaved: bool) -> None:
        """Store a matrix: NAME.codes, NAME.scale, and NAME.minimum where it has minima."""
        weights = integer_weights(self.data, at, interleaved)
        kind, groups = TensorProto.INT4 if f.bits == 4 else TensorProto.INT8, (f.k_in // f.group, f.n_out)
        self.b.used[f"{name}.codes"] = self.store(f"{name}.codes", kind, (f.k_in, f.n_out), weights.codes)
        self.b.used[f"{name}.scale"] = self.store(f"{name}.scale", F16, groups, weights.scale)
        if weights.minimum is not None:
            self.b.used[f"{name}.minimum"] = self.store(f"{name}.minimum", F16, groups, weights.minimum)
