"""The decoder of adapt.onnx, from ids to normed states, on a tape that can go back (tape.py)."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from edgellm.export.adapt_carriers import LORA_SCALE, carrier_shapes
from edgellm.export.architectures import Architecture, Layer
from edgellm.export.rope import Rope
from edgellm.export.tape import Tape
from edgellm.runtime.adapter import RANK

HIDDEN = -1e30  # what a score gets where a query may not look: its probability is exactly 0


class Forward:
    """The nodes of a forward pass with one carrier's tensors in place. kept: names of a soft prompt's keys and values,
    float32 [1, kv_heads, P, head_dim], a layer each.
    """

    def __init__(self, arch: Architecture, tape: Tape, carrier: str) -> None:
        self.arch, self.tape, self.carrier = arch, tape, carrier
        self.kept: dict[str, list[str]] = {"key": [], "value": []}
        self._turns: dict[Rope, tuple[str, str]] = {}
        self._masks: dict[int, str] = {}
        place = tape.node("Cast", "positions", to=TensorProto.FLOAT)
        self._places = tape.node("Unsqueeze", place, tape.integers(1))
        self._seen = "positions"
        if carrier == "prefix":
            length = tape.node("Squeeze", tape.node("Shape", "key", start=2, end=3))
            zero, one = (_integer(tape, value) for value in (0, 1))
            self._seen = tape.node("Concat", tape.node("Range", zero, length, one), "positions", axis=0)
        names = [name for name in carrier_shapes(arch, carrier) if carrier != "soft"]
        ones = tape.integers(*[1] * arch.layers)
        self._own = {name: tape.split(name, ones, arch.layers, 0) for name in names}

    def states(self) -> list[str]:
        """What the head reads: at the prompt's rows, and at the answer's."""
        arch, tape = self.arch, self.tape
        x = tape.b.packed("QuantGather", "ids", "embedding", "embedded")
        if self.carrier == "soft":
            x = tape.concat(["soft", x], 0)
        if arch.embedding_scale != 1:
            x = tape.times(x, tape.number(arch.embedding_scale))
        for layer in range(arch.layers):
            x = self._block(layer, x)
        normed = tape.norm(x, tape.b.stored("norm"), arch.norm_eps)
        sizes = [tape.node("Shape", name) for name in ("prompt_rows", "answer_rows")]
        return tape.split(normed, tape.node("Concat", *sizes, axis=0), 2, 0)

    def _block(self, layer: int, x: str) -> str:
        arch, tape, at = self.arch, self.tape, f"layers.{layer}"

        def linear(role: str, y: str) -> str:
            bias = tape.b.stored(f"{at}.{role}_bias") if f"{at}.{role}_bias" in tape.b.placed else ""
            return tape.linear(y, f"{at}.{role}", bias)

        def norm(role: str, y: str) -> str:
            return tape.norm(y, tape.b.stored(f"{at}.{role}"), arch.norm_eps)

        normed = norm("attention_norm", x)
        widths = [arch.shape(f"{at}.{role}")[0] for role in ("q", "k", "v")]
        if f"{at}.qkv" in tape.b.placed:
            q, k, v = tape.split(linear("qkv", normed), tape.integers(*widths), 3, 1)
        else:
            q, k, v = (linear(role, normed) for role in ("q", "k", "v"))
        if self.carrier == "lora":
            q, v = (tape.add(y, self._update(role, layer, normed)) for role, y in (("q", q), ("v", v)))
        mixed = self._attention(layer, q, k, v)
        if layer == arch.layers - 1:  # nothing is asked of the other rows
            wanted = tape.node("Concat", "prompt_rows", "answer_rows", axis=0)
            x, mixed = tape.rows(x, wanted), tape.rows(mixed, wanted)
        y = linear("o", mixed)
        x = tape.add(x, norm("post_attention_norm", y) if arch.post_norms else y)
        y = linear("down", self._gated(linear("gate_up", norm("mlp_norm", x))))
        return tape.add(x, norm("post_mlp_norm", y) if arch.post_norms else y)

    def _update(self, role: str, layer: int, normed: str) -> str:
        down, up = (
            self.tape.reshape(self._own[f"{role}.{part}"][layer], self.tape.integers(*shape))
            for part, shape in (("down", (-1, RANK)), ("up", (RANK, -1)))
        )
        update = self.tape.matmul(self.tape.matmul(normed, down, 2), up, 2)
        return self.tape.times(update, self.tape.number(LORA_SCALE))

    def _gated(self, both: str) -> str:
        """act(gate) * up of [T, 2 * ff], 16 gate, 16 up, 16 gate, … (pack.interleave)."""
        arch, tape = self.arch, self.tape
        pairs = tape.reshape(both, tape.integers(-1, arch.ff // 16, 2, 16))
        gate, up = tape.split(pairs, tape.integers(1, 1), 2, 2)
        bent = {"silu": tape.silu, "gelu_tanh": tape.gelu_tanh}[arch.activation](gate)
        return tape.reshape(tape.product(bent, up), tape.integers(-1, arch.ff))

    def _attention(self, layer: int, q: str, k: str, v: str) -> str:
        """Query heads of a group lie side by side, [kv_heads, group * T, head_dim], so that keys are never repeated."""
        arch, tape, facts = self.arch, self.tape, self.arch.layers_as[layer]
        heads, dim, group = arch.kv_heads, arch.head_dim, arch.heads // arch.kv_heads
        q = tape.transpose(tape.reshape(q, tape.integers(-1, heads, group, dim)), 1, 2, 0, 3)
        k, v = (tape.transpose(tape.reshape(y, tape.integers(-1, heads, dim)), 1, 0, 2) for y in (k, v))
        if arch.qk_norm:
            names = [tape.b.stored(f"layers.{layer}.{role}_norm") for role in ("q", "k")]
            q, k = (tape.norm(y, name, arch.norm_eps) for y, name in zip((q, k), names, strict=True))
        q, k = (self._rotated(y, facts.rope, axis) for y, axis in ((q, 3), (k, 2)))
        if self.carrier == "prefix":
            shape = tape.integers(heads, -1, dim)
            key, value = (tape.reshape(self._own[name][layer], shape) for name in ("key", "value"))
            k, v = tape.concat([key, k], 1), tape.concat([value, v], 1)
        if self.carrier == "soft":
            length = tape.node("Shape", "soft", start=0, end=1)
            for name, y in (("key", k), ("value", v)):
                part = tape.node("Slice", y, tape.integers(0), length, tape.integers(1))
                self.kept[name].append(tape.node("Unsqueeze", part, tape.integers(0)))
        mask = self._mask(facts)
        flat = tape.integers(heads, -1, dim)
        q = tape.times(tape.reshape(q, flat), tape.number(arch.attention_scale))
        scores = tape.matmul(q, tape.transpose(k, 0, 2, 1), 3)
        square = tape.node("Concat", tape.integers(heads, group), tape.node("Shape", mask), axis=0)
        scores = tape.reshape(scores, square)
        if arch.attention_softcap:
            scores = tape.capped(scores, arch.attention_softcap)
        paid = tape.softmax(tape.plus(scores, mask))
        last = tape.node("Concat", tape.integers(heads, -1), tape.node("Shape", mask, start=1, end=2), axis=0)
        mixed = tape.matmul(tape.reshape(paid, last), v, 3)
        queries = tape.node("Concat", tape.integers(heads, group), tape.node("Shape", mask, start=0, end=1), axis=0)
        mixed = tape.reshape(mixed, tape.node("Concat", queries, tape.integers(dim), axis=0))
        return tape.reshape(tape.transpose(mixed, 2, 0, 1, 3), tape.integers(-1, arch.heads * dim))

    def _rotated(self, y: str, rope: Rope, axis: int) -> str:
        """y * C + swapped(y) * S over head_dim, the halves of the rotated dimensions swapped and S signed for it."""
        tape, half = self.tape, rope.dims // 2
        rest = self.arch.head_dim - rope.dims
        sizes = [half, half, *([rest] if rest else [])]
        cos, sin = self._turn(rope, rest)

        parts = tape.split(y, tape.integers(*sizes), len(sizes), axis)
        swapped = tape.concat([parts[1], parts[0], *parts[2:]], axis)
        return tape.add(tape.times(y, cos), tape.times(swapped, sin))

    def _turn(self, rope: Rope, rest: int) -> tuple[str, str]:
        """cos and signed sin, [T, head_dim]."""
        if rope not in self._turns:
            tape, number = self.tape, len(self._turns)
            frequencies = tape.b.constant(f"frequencies.{number}", rope.frequencies()[None])
            angle = tape.node("Mul", self._places, frequencies)
            large = tape.number(rope.magnitude)
            cos, sin = (tape.node("Mul", tape.node(kind, angle), large) for kind in ("Cos", "Sin"))
            still = tape.node("Mul", self._places, tape.b.constant(f"rest.{rest}", np.zeros((1, rest), np.float32)))
            sides = [[cos, cos, tape.node("Cos", still)], [tape.node("Neg", sin), sin, still]]
            self._turns[rope] = (tape.node("Concat", *sides[0], axis=1), tape.node("Concat", *sides[1], axis=1))
        return self._turns[rope]

    def _mask(self, facts: Layer) -> str:
        """float32 [T, P + T]: 0 where a query sees a key, HIDDEN where it is later or beyond the window."""
        if facts.window not in self._masks:
            tape = self.tape
            at = tape.node("Unsqueeze", "positions", tape.integers(1))
            seen = tape.node("Unsqueeze", self._seen, tape.integers(0))
            hidden = tape.node("Greater", seen, at)
            if facts.window:
                before = tape.node("Sub", at, _integer(tape, facts.window))
                hidden = tape.node("Or", hidden, tape.node("LessOrEqual", seen, before))
            self._masks[facts.window] = tape.node("Where", hidden, tape.number(HIDDEN), tape.number(0.0))
        return self._masks[facts.window]


def _integer(tape: Tape, value: int) -> str:
    """An int64 scalar."""
    return tape.b.constant(f"integer.{value}", np.int64(value))
