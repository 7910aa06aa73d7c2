"""Perplexity of magnitude, Wanda, DaSS and SparseGPT masks at 2:4 and 4:8 (MLP only), unquantized and at 4 bits, beside
dense; each one-shot, updated and recovered (--recover none, sparsegpt and distill).

    python -m tests.benchmarks.prune_table MODEL.gguf TEXT.txt CALIBRATION.json -o build/bench/prune_table.json
    python -m tests.benchmarks.prune_table MODEL.gguf TEXT.txt CALIBRATION.json --only dass:2:4 --recover distill

Windows of 1024 over the first 20k tokens of TEXT. "4 bits": every matrix rounded as the export does, the head at 8.
Weights live in memory as float32; masks, rounding and re-propagation are the export's own functions. Differences carry
a 95 % interval from a paired bootstrap over windows of the log-perplexity. Rows that the output has, of the same text
and settings, are not made again: a killed run goes on, and --only adds to the table.
"""

from __future__ import annotations

import json
import math
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

from edgellm.export import prune
from edgellm.export.architectures import Architecture, role
from edgellm.export.calibrate import calibration_ids
from edgellm.export.checkpoint import Checkpoint, open_checkpoint
from edgellm.export.compress import Read, read_by_head, rounded
from edgellm.export.config import TO_DISTILL, ExportConfig
from edgellm.export.decoder import window_losses
from edgellm.export.hessian import Hessians
from edgellm.export.level import GROUP, Sparsity
from edgellm.export.sparsegpt import updated
from edgellm.kernels.layout import dequantize
from tests.benchmarks.layerwise import layerwise
from tests.benchmarks.recovered import Weights, recovered

WINDOW = 1024
Cell = tuple[str, int, int, int, int, str]
"""Method, N, M, bits (0: float32), bits of the head, recover."""


def dense(checkpoint: Checkpoint) -> dict[str, Tensor]:
    vectors = {name for name, shape in checkpoint.architecture.tensors() if not shape[1]}
    names = [name for name, _ in checkpoint.architecture.tensors()]
    return {name: checkpoint.vector(name) if name in vectors else checkpoint.matrix(name) for name in names}


def one(config: ExportConfig, name: str, weight: Tensor, read: Read) -> Tensor:
    """A matrix as the recipe leaves it; config.bits None: pruned, perhaps updated, but not rounded."""
    if config.bits is not None:
        return torch.from_numpy(dequantize(rounded(config, name, weight, read)))
    method, n, m = config.sparsity.method, config.sparsity.n, config.sparsity.m
    if not config.prunes(name):
        return weight
    mask = None if method == prune.SWEPT else prune.mask(method, name, weight, read.stats, n, m)
    if not config.corrects(name):
        return weight * mask
    return updated(weight, read.hessians.feedback(role(name), GROUP), GROUP, n, m, mask)


def make(
    arch: Architecture, tensors: dict[str, Tensor], text: Tensor, config: ExportConfig, lessons: Tensor, steps: int
) -> Weights:
    """The weights of one cell: masks layer by layer, statistics re-propagated through what was done before."""
    made = dict(tensors)
    if config.head_bits == 4:
        read = read_by_head(arch, Weights(tensors), text, "embedding")
        made["embedding"] = one(config, "embedding", tensors["embedding"], read)
    elif config.head_bits:
        made["embedding"] = one(config, "embedding", tensors["embedding"], Read({}, Hessians()))
    if config.bits is None and config.sparsity.method == "none":
        return Weights(made)
    if config.distills:
        return recovered(arch, tensors, made, (text, lessons), config, steps, _told)
    return layerwise(arch, made, text, partial(one, config), config.recover != "none")


def _told(done: int, total: int) -> None:
    print(f"step {done} of {total}", file=sys.stderr, flush=True)


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
@click.option("--only", multiple=True, help="METHOD:N:M, none:1:1 for dense; may be given again.")
@click.option("--bits", "widths", type=int, multiple=True, help="0 (unquantized), 4 or 8 only; may be given again.")
@click.option("--recover", multiple=True, help="none, sparsegpt or distill only; may be given again.")
@click.option("--steps", default=300, help="Of 512 tokens, with distill, of the whole; 0: blocks only.")
@click.option("--bfloat16", is_flag=True, help="Of products in models, not of Hessians and updates: twice as fast.")
def main(
    model: Path, text: Path, calibration: Path, output: Path, tokens: int, sequences: int, only: tuple[str, ...],
    widths: tuple[int, ...], recover: tuple[str, ...], steps: int, bfloat16: bool,
) -> None:  # fmt: skip
    checkpoint = open_checkpoint(model)
    arch, tensors, tokenizer = checkpoint.architecture, dense(checkpoint), checkpoint.tokenizer_json()
    lessons = calibration_ids(tokenizer, calibration, max(sequences, TO_DISTILL), 512)
    words = lessons[:sequences]
    ids = calibration_ids(tokenizer, text, 1, tokens).flatten()
    cells: list[Cell] = [("none", 1, 1, b, h, "sparsegpt") for b, h in ((0, 0), (8, 8), (4, 8), (4, 4))]
    cells += [("none", 1, 1, 4, h, how) for how in ("none", "distill") for h in (8, 4)]
    cells += [(method, n, m, bits, 8 if bits else 0, how)
              for method in ("magnitude", "wanda", "dass", "sparsegpt") for n, m in ((2, 4), (4, 8)) for bits in (0, 4)
              for how in ("none", "sparsegpt", "distill") if (method, how) != ("sparsegpt", "none")]  # fmt: skip
    cells = [cell for cell in cells if not only or f"{cell[0]}:{cell[1]}:{cell[2]}" in only]
    cells = [cell for cell in cells if not widths or cell[3] in widths]
    cells = [cell for cell in cells if not recover or cell[5] in recover]
    facts = {"model": model.name, "text": text.name, "tokens": ids.numel(), "window": WINDOW,
             "calibration": f"{calibration.name}, {words.numel()} tokens", "steps": steps,
             "products": "bfloat16" if bfloat16 else "float32"}  # fmt: skip
    rows = earlier(output, facts)
    losses = {cell_of(row): torch.tensor(row["nats"], dtype=torch.float64) for row in rows}
    for cell in cells:
        if cell in losses:
            continue
        started = time.perf_counter()
        method, n, m, bits, head, how = cell
        config = ExportConfig(
            model, output, Sparsity(method, n, m), bits=bits or None, head_bits=head or None, recover=how
        )
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            sums, counts = window_losses(arch, make(arch, tensors, words, config, lessons, steps), ids, WINDOW)
        losses[cell] = sums
        row: dict[str, Any] = {"method": method, "nm": f"{n}:{m}", "bits": bits or "fp32", "head_bits": head or "fp32"}
        row |= {"recover": how, "perplexity": math.exp(float(sums.sum() / counts.sum()))}
        for other in ("wanda", "magnitude"):
            rival = (other, n, m, bits, head, how)
            if method == "dass" and rival in losses:
                row[f"log_ratio_to_{other}"] = interval(sums, losses[rival], counts)
        print(json.dumps(row), f"{time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
        rows.append({**row, "nats": sums.tolist()})
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps({**facts, "rows": rows}, indent=1))


def earlier(output: Path, facts: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of a file that was made with these facts; "nats" of each are its sums by window."""
    if not output.exists():
        return []
    found = json.loads(output.read_text())
    rows: list[dict[str, Any]] = found.pop("rows")
    if found != facts:
        raise click.ClickException(f"{output} has a table of other text or settings: give another -o")
    return rows


def cell_of(row: dict[str, Any]) -> Cell:
    """Which cell a row is."""
    n, m = map(int, row["nm"].split(":"))
    bits, head = (0 if row[name] == "fp32" else int(row[name]) for name in ("bits", "head_bits"))
    return row["method"], n, m, bits, head, row["recover"]


if __name__ == "__main__":
    main()
