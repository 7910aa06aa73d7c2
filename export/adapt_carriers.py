"""What test-time adaptation can learn, and the shapes of it."""

from __future__ import annotations

from edgellm.export.architectures import Architecture
from edgellm.runtime.adapter import RANK

LORA_SCALE = 2.0  # alpha / rank; LLaMA-Factory's alpha = 16 (SyTTA's could not be looked up)

CARRIERS = ("prefix", "soft", "lora")
"""What is adapted. prefix: keys (rotated) and values of P tokens before the others, at positions 0 to P - 1 in every
layer. soft: P rows of the embedding before the others; the graph also gives their keys and values, which make a prefix
of them. lora: low-rank updates of q and v (arXiv 2106.09685)."""


def carrier_shapes(arch: Architecture, carrier: str) -> dict[str, list[int | str]]:
    """The carrier's tensors, float32, by name."""
    if carrier == "soft":
        return {"soft": ["P", arch.hidden]}
    if carrier == "prefix":
        return {name: [arch.layers, arch.kv_heads, "P", arch.head_dim] for name in ("key", "value")}
    shapes: dict[str, list[int | str]] = {}
    for role in ("q", "v"):
        shapes[f"{role}.down"] = [arch.layers, arch.hidden, RANK]
        shapes[f"{role}.up"] = [arch.layers, RANK, arch.shape(f"layers.0.{role}")[0]]
    return shapes
