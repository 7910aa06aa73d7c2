"""What a token's kernels read on a GPU, against what no kernel can do without: computed from shapes, nothing is run.

    python -m tests.benchmarks.gpu_bytes [--kept 1024]

The bound is packed weights, keys and values. Each kernel's reads are counted once (tests/gpu/test_bytes.py counts
weights, keys and values as they are loaded); x, which every program of a product reads, comes from the second-level
cache.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from edgellm.kernels.layout import Format

SPLIT, HALF, WORD = 256, 2, 4  # slots a program; bytes of an activation and of a float32


@dataclass(frozen=True)
class Model:
    """A decoder's sizes. head: the vocabulary's matrix is read once a token."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    wide: int
    vocabulary: int


MODELS = {
    "SmolLM2-135M": Model(576, 30, 9, 3, 64, 1536, 49152),
    "Llama-3.2-1B": Model(2048, 16, 32, 8, 64, 8192, 128256),
    "Mistral-7B v0.3": Model(4096, 32, 32, 8, 128, 14336, 32768),
}
RECIPES = {"4 bits": (1, 1, "min"), "2:4 MLP, 4 bits": (2, 4, "symmetric")}


def matrices(model: Model, n: int, m: int, zero: str) -> list[Format]:
    """A layer's, then the head."""
    attention, mlp = {"zero": "min"}, {"zero": zero, "n": n, "m": m}
    rows = (model.heads + 2 * model.kv_heads) * model.head_dim
    return [
        Format(rows, model.hidden, 4, 64, **attention),
        Format(model.hidden, model.heads * model.head_dim, 4, 64, **attention),
        Format(2 * model.wide, model.hidden, 4, 64, **mlp, axis="out" if n < m else "in"),
        Format(model.hidden, model.wide, 4, 64, **mlp, axis="in"),
        Format(model.vocabulary, model.hidden, 4, 64, **attention),
    ]


def attention_reads(model: Model, kept: int, planes: int) -> int:
    """Of a layer's attention, keys and values apart: positions twice, the query, splits' sums, logits, scores twice."""
    splits = -(-(kept + 1) // SPLIT)
    sums = model.heads * splits * (model.head_dim + 2) * WORD
    once = (model.heads * 2 + 2 * model.kv_heads) * model.head_dim * HALF
    logits = model.heads * (kept + 1) * WORD if planes else 0
    return once + sums + logits + 2 * model.kv_heads * (kept + 1) * WORD * (1 + planes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kept", type=int, default=1024, help="tokens in the cache")
    kept = parser.parse_args().kept
    print("| model | recipe | weights MB | keys and values MB | the rest MB | over the bound | x from the cache MB |")
    print("|---|---|---|---|---|---|---|")
    for name, model in MODELS.items():
        for recipe, kind in RECIPES.items():
            *layer, head = matrices(model, *kind)
            every = layer * model.layers + [head]
            weights = sum(f.nbytes for f in every)
            cache = model.layers * 2 * model.kv_heads * (kept + 1) * model.head_dim * HALF
            rest = model.layers * attention_reads(model, kept, planes=2) + sum(f.k_in * HALF for f in every)
            again = sum(f.panels * f.k_in * HALF for f in every)
            cells = [f"{size / 1e6:.1f}" for size in (weights, cache, rest)]
            over = f"{(weights + cache + rest) / (weights + cache) - 1:.1%}"
            print("|", " | ".join([name, recipe, *cells, over, f"{again / 1e6:.1f}"]), "|")


if __name__ == "__main__":
    main()
