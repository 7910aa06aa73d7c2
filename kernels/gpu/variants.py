"""Which kernels there are to compile: for a format of weights, for a size of attention heads, and the list that ships."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from edgellm.kernels.layout import Format

TARGETS = (80, 86, 87, 89, 90, 110, 120, 121)
"""Compute capabilities, times ten: A100, RTX 30, Jetson Orin, RTX 40, H100, Jetson Thor, RTX 50, DGX Spark."""

_POINTERS = {
    "u8": ("tiles",), "i32": ("position", "scratch"), "i64": ("ids", "positions", "control"), "fp16": ("key", "value", "query"),
    "fp32": ("cos", "sin", "score", "extent", "sums", "logits"),
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


def format_name(f: Format) -> str:
    """A format in a file's name: 4g64 | 8g32m (with minima) | 4g64-2of4in."""
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
    return Variant("gather", "quant_gather", f"quant_gather.{format_name(f)}.{kind}", of_format(f) | {"TILES": 2}, kind, kind)


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
        yield Variant("attend_few", "attend_few", f"attend_few{rows}.{head_dim}", few, warps=warps if rows == 64 else 4, stages=2)
    combine = sizes | {"GROUP": padded, "TOKENS": max(1, 16 // padded), "SPLIT": 256}
    yield Variant("attend_few", "combine_few", f"combine_few.{head_dim}.{padded}.{kind}", combine, kind, kind, warps)
    many = sizes | {"ROWS": 64, "SLOTS": slots}
    yield Variant("attend_many", "attend_many", f"attend_many.{name}", many, kind, kind, warps, stages=2)
    score = sizes | {"GROUP": padded, "TOKENS": max(1, 64 // padded), "SLOTS": 64}
    yield Variant("attend_many", "score_many", f"score_many.{head_dim}.{padded}", score, warps=warps, stages=2)


def power(n: int) -> int:
    """The least power of two that is at least n."""
    return 1 << (n - 1).bit_length()


def listed() -> list[Variant]:
    """What `python -m edgellm.kernels.gpu.compile` makes: recipes of the exporter, all head sizes, a kernel of each once."""
    stored = [Format(16, 128, 4, 64), Format(16, 128, 4, 64, "min"), Format(16, 128, 4, 32, "min"), Format(16, 128, 8, 32)]
    pruned = [Format(16, 128, 4, 64, "symmetric", 2, 4, axis) for axis in ("in", "out")]
    others = [Format(16, 128, 4, 32), Format(16, 128, 8, 64), Format(16, 128, 4, 128), Format(16, 128, 8, 64, n=2, m=4, axis="out")]
    others += [Format(16, 128, 4, 64, n=n, m=8, axis=axis) for n, axis in ((4, "in"), (4, "out"), (2, "in"))]
    found = [v for f in stored + pruned for v in matmul(f)] + [next(matmul(f)) for f in others]
    found += [v for f in (stored[1], pruned[1]) for v in matmul(f, "silu")] + [next(matmul(stored[1], "gelu_tanh"))]
    found += [*matmul(stored[1], kind="bf16"), next(matmul(stored[3], result="fp32"))]
    found += [gather(f) for f in stored[1:]]
    found += [v for size in (64, 80, 96, 128, 256) for v in attention(size, 4) if size in (64, 256) or "few32" not in v.name]
    found += [v for group in (1, 2, 8, 16) for v in attention(64, group)]
    found += list(attention(128, 4, "bf16"))
    return list({v.name: v for v in found}.values())
