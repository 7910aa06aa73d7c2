"""Which kernels there are to compile: for a format of weights, for a size of heads, and a list of what is usual."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from edgellm.kernels.layout import Format

TARGETS = (80, 86, 87, 89, 90, 110, 120, 121)
"""Compute capabilities, times ten: A100, RTX 30, Jetson Orin, RTX 40, H100, Jetson Thor, RTX 50, DGX Spark."""

_POINTERS = {
    "u8": ("tiles",), "i32": ("position", "scratch"), "i64": ("ids", "positions", "control"),
    "fp16": ("key", "value", "query"), "fp32": ("cos", "sin", "score", "extent", "sums", "logits"),
}  # fmt: skip
_ACTIVATIONS = ("x", "bias", "residual", "qkv", "q_norm", "k_norm", "y")
_FLOATS = ("epsilon", "scale", "softcap")


@dataclass(frozen=True)
class Variant:
    """One kernel to compile. name: of its file; entry: the Triton function, in module edgellm.kernels.gpu.`module`;
    constants: its constexpr arguments; activations: fp16 | bf16; result: y's type; warps, stages: Triton's options."""

    module: str
    entry: str
    name: str
    constants: dict[str, Any]
    activations: str = "fp16"
    result: str = "fp16"
    warps: int = 4
    stages: int = 3
    aligned: tuple[str, ...] = field(default=("k_in",))

    def type_of(self, argument: str) -> str:
        """Triton's name of an argument's type."""
        if argument in self.constants:
            return "constexpr"
        if argument == "y":
            return f"*{self.result}"
        if argument in _ACTIVATIONS:
            return f"*{self.activations}"
        if argument in _FLOATS:
            return "fp32"
        return next((f"*{kind}" for kind, names in _POINTERS.items() if argument in names), "i32")


def format_named(name: str) -> Format:
    """The format of a name: 4g64 | 8g32m (with minima) | 4g64-2of4in. Raises ValueError for what is none."""
    found = re.fullmatch(r"(\d+)g(\d+)(m?)(?:-(\d+)of(\d+)(in|out))?", name)
    if not found:
        raise ValueError(f"{name!r} names no format; expected one such as 4g64m (bits, group, minima) or 4g64-2of4in")
    bits, group, minima, n, m, axis = found.groups()
    zero = "min" if minima else "symmetric"
    return Format(16, 128, int(bits), int(group), zero, int(n or 1), int(m or 1), axis or "in")  # sizes are arguments


def format_name(f: Format) -> str:
    """The name of a format, of whatever size."""
    sparse = f"-{f.n}of{f.m}{f.axis}" if f.sparse else ""
    return f"{f.bits}g{f.group}{'m' if f.zero == 'min' else ''}{sparse}"


def of_format(f: Format) -> dict[str, Any]:
    """The constants of a format."""
    return dict(BITS=f.bits, GROUP=f.group, MINIMA=f.zero == "min", N=f.n, M=f.m, OUT=f.axis == "out")


def matmul(f: Format, activation: str = "none", kind: str = "fp16", result: str = "") -> Iterator[Variant]:
    """NMMatMul of a format: one row, up to 16, more. kind: fp16 | bf16; result: y's type where it is another (fp32)."""
    result = result or kind
    name = ".".join([format_name(f), *([activation] if activation != "none" else []), kind])
    name += "" if result == kind else f".{result}"
    constants = of_format(f) | {"ACTIVATION": activation}
    yield Variant("matmul", "nm_decode", f"nm_decode.{name}", constants | {"TILES": 4}, kind, result)
    for rows, panels, tiles in ((16, 2, 2), (64, 4, 1)):
        sizes = {"TILES": tiles, "ROWS": rows, "PANELS": panels}
        warps = 8 if rows == 64 and activation != "none" else 4
        yield Variant("matmul", "nm_rows", f"nm_rows{rows}.{name}", constants | sizes, kind, result, warps)


def gather(f: Format, kind: str = "fp16") -> Variant:
    """QuantGather of a format."""
    return Variant(
        "gather", "quant_gather", f"quant_gather.{format_name(f)}.{kind}", of_format(f) | {"TILES": 2}, kind, kind
    )


def attention(head_dim: int, group: int, kind: str = "fp16") -> Iterator[Variant]:
    """PrunedKVAttention for a head size and `group` query heads a KV head."""
    wide, padded = max(16, power(head_dim)), power(group)
    sizes = {"HEAD_DIM": head_dim, "WIDE": wide}
    warps, slots = (8 if wide >= 128 else 4), (64 if wide < 256 else 32)
    name = f"{head_dim}.{kind}"
    yield Variant("commit", "commit", f"commit.{head_dim}", sizes | {"BLOCK": 512, "ROWS": 16})
    yield Variant("stage", "stage", f"stage.{name}", sizes | {"TOKENS": 16}, kind, kind, warps)
    for rows in (16, 32, 64):
        few = sizes | {"ROWS": rows, "SLOTS": slots, "SPLIT": 256}
        yield Variant(
            "attend_few", "attend_few", f"attend_few{rows}.{head_dim}", few, warps=warps if rows == 64 else 4, stages=2
        )
    combine = sizes | {"GROUP": padded, "TOKENS": max(1, 16 // padded), "SPLIT": 256}
    yield Variant("attend_few", "combine_few", f"combine_few.{head_dim}.{padded}.{kind}", combine, kind, kind, warps)
    many = sizes | {"ROWS": 64, "SLOTS": slots}
    yield Variant("attend_many", "attend_many", f"attend_many.{name}", many, kind, kind, warps, stages=2)
    score = sizes | {"GROUP": padded, "TOKENS": max(1, 64 // padded), "SLOTS": 64}
    yield Variant("attend_many", "score_many", f"score_many.{head_dim}.{padded}", score, warps=warps, stages=2)


def power(n: int) -> int:
    """The least power of two that is at least n."""
    return 1 << (n - 1).bit_length()


def of_weights(name: str) -> list[Variant]:
    """NMMatMul and QuantGather for FORMAT[.ACTIVATION][.fp16|bf16[.fp32]], such as 4g64m.silu. Raises ValueError."""
    first, *rest = name.split(".")
    f = format_named(first)
    activation = rest.pop(0) if rest and rest[0] in ("silu", "gelu_tanh") else "none"
    kind, result = [*rest, *["fp16", ""][len(rest) :]][:2]
    if len(rest) > 2 or kind not in ("fp16", "bf16") or result not in ("", "fp32"):
        raise ValueError(f"{name!r}: expected FORMAT[.silu|.gelu_tanh][.fp16|.bf16[.fp32]]")
    found = list(matmul(f, activation, kind, result))
    return found if activation != "none" or result else [*found, gather(f, kind)]


def of_heads(name: str) -> list[Variant]:
    """PrunedKVAttention for HEAD_DIM:GROUP[.fp16|.bf16], such as 64:3. Raises ValueError."""
    found = re.fullmatch(r"(\d+):(\d+)(?:\.(fp16|bf16))?", name)
    if not found or int(found[1]) % 16 or not 0 < int(found[1]) <= 256 or not 0 < int(found[2]) <= 64:
        raise ValueError(f"{name!r}: expected HEAD_DIM:GROUP[.fp16|.bf16]; a head has 16 to 256 dimensions, by 16")
    return list(attention(int(found[1]), int(found[2]), found[3] or "fp16"))


WEIGHTS = "4g64m 8g32 4g64-2of4in 4g64-2of4out 4g64-4of8in 4g64m.silu"
HEADS = "64:3 80:1 96:4 128:8 256:4"
"""A recipe of each kind, every size of heads: what is compiled where nothing else is asked for."""


def chosen(weights: str = WEIGHTS, heads: str = HEADS) -> list[Variant]:
    """All kernels for these names, each once."""
    found = [v for name in weights.split() for v in of_weights(name)] + [v for h in heads.split() for v in of_heads(h)]
    return list({v.name: v for v in found}.values())
