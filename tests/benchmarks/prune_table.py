"""Perplexity of magnitude, Wanda and DaSS masks at 2:4 and 4:8 (MLP only), unquantized and at 4 bits, beside dense.

    python -m tests.benchmarks.prune_table MODEL.gguf TEXT.txt CALIBRATION.json -o build/bench/prune_table.json

Windows of 1024 over the first 20k tokens of TEXT. "4 bits": every matrix rounded, symmetric, groups of 64, the head at
8. Weights live in memory as float32; masks, rounding and re-propagation are the export's own functions. Differences
carry a 95 % interval from a paired bootstrap over windows of the log-perplexity.
"""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

from edgellm.export import prune
from edgellm.export.architectures import MATRICES, Architecture
from edgellm.export.calibrate import calibration_ids, statistics
from edgellm.export.checkpoint import Checkpoint, open_checkpoint
from edgellm.export.decoder import load_block, propagate, window_losses
from edgellm.export.quantize import round_to_nearest
from edgellm.export.vocabulary import embed
from edgellm.kernels.layout import dequantize

WINDOW = 1024


class Weights:
    """A source of float32 weights by canonical name, in memory."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.tensors = tensors

    def matrix(self, name: str, rows: slice | None = None) -> Tensor:
        return self.tensors[name] if rows is None else self.tensors[name][rows]

    vector = matrix


def dense(checkpoint: Checkpoint) -> dict[str, Tensor]:
    vectors = {name for name, shape in checkpoint.architecture.tensors() if not shape[1]}
    names = [name for name, _ in checkpoint.architecture.tensors()]
    return {name: checkpoint.vector(name) if name in vectors else checkpoint.matrix(name) for name in names}


def rounded(weight: Tensor, bits: int, *nm: Any) -> Tensor:
    return torch.from_numpy(dequantize(round_to_nearest(weight, bits, 64, "symmetric", *nm)))


def make(
    arch: Architecture, tensors: dict[str, Tensor], text: Tensor, method: str, n: int, m: int, bits: int, head: int
) -> Weights:
    """The weights of one cell: masks layer by layer, statistics re-propagated through what was done before."""
    made = dict(tensors)
    x = embed(arch, Weights(tensors), text) if method in ("wanda", "dass") else None
    source = Weights(made)
    for layer in range(arch.layers):
        block = load_block(arch, source, layer)
        stats = statistics(arch, layer, block, x) if x is not None else None
        for role in MATRICES:
            pruned = method != "none" and role in prune.SCOPES["mlp"]
            weight = block[role]
            mask = prune.mask(method, role, weight, stats, n, m) if pruned else None
            nm = (n, m, prune.axis(method, role), mask) if pruned else ()
            block[role] = rounded(weight, bits, *nm) if bits else weight if mask is None else weight * mask
            made[f"layers.{layer}.{role}"] = block[role]
        if x is not None:
            x = propagate(arch, layer, block, x)
    if head:
        made["embedding"] = rounded(tensors["embedding"], head)
    return source


def interval(a: Tensor, b: Tensor, counts: Tensor, draws: int = 2000) -> tuple[float, float]:
    """95 % paired bootstrap interval of log-perplexity(a) - log-perplexity(b) over windows."""
    pick = torch.randint(len(counts), (draws, len(counts)), generator=torch.Generator().manual_seed(0))
    differences = (a - b)[pick].sum(dim=1) / counts[pick].sum(dim=1)
    low, high = differences.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high


@click.command()
@click.argument("model", type=Path)
@click.argument("text", type=Path)
@click.argument("calibration", type=Path)
@click.option("-o", "--output", type=Path, default=Path("build/bench/prune_table.json"))
@click.option("--tokens", default=20_000)
@click.option("--sequences", default=32, help="Calibration sequences of 512 tokens.")
def main(model: Path, text: Path, calibration: Path, output: Path, tokens: int, sequences: int) -> None:
    checkpoint = open_checkpoint(model)
    arch, tensors, tokenizer = checkpoint.architecture, dense(checkpoint), checkpoint.tokenizer_json()
    words = calibration_ids(tokenizer, calibration, sequences, 512)
    ids = calibration_ids(tokenizer, text, 1, tokens).flatten()
    cells: list[tuple[str, int, int, int, int]] = [("none", 1, 1, b, h) for b, h in ((0, 0), (8, 8), (4, 8), (4, 4))]
    cells += [(method, n, m, bits, 8 if bits else 0)
              for method in ("magnitude", "wanda", "dass") for n, m in ((2, 4), (4, 8)) for bits in (0, 4)]  # fmt: skip
    rows: list[dict[str, Any]] = []
    losses: dict[tuple[str, int, int, int, int], Tensor] = {}
    for cell in cells:
        started = time.perf_counter()
        method, n, m, bits, head = cell
        sums, counts = window_losses(arch, make(arch, tensors, words, method, n, m, bits, head), ids, WINDOW)
        losses[cell] = sums
        row: dict[str, Any] = {"method": method, "nm": f"{n}:{m}", "bits": bits or "fp32", "head_bits": head or "fp32"}
        row["perplexity"] = math.exp(float(sums.sum() / counts.sum()))
        for other in ("wanda", "magnitude"):
            rival = (other, n, m, bits, head)
            if method == "dass" and rival in losses:
                row[f"log_ratio_to_{other}"] = interval(sums, losses[rival], counts)
        rows.append(row)
        print(json.dumps(row), f"{time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
    output.parent.mkdir(parents=True, exist_ok=True)
    facts = {"model": model.name, "text": text.name, "tokens": ids.numel(), "window": WINDOW,
             "calibration": f"{calibration.name}, {words.numel()} tokens", "rows": rows}  # fmt: skip
    output.write_text(json.dumps(facts, indent=1))


if __name__ == "__main__":
    main()
