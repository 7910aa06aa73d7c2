"""N:M at 4 bits against dense 3 bits in the same bytes: the MLP's matrices each way, everything else dense at 4 bits.

    python -m tests.benchmarks.equal_bytes MODEL.gguf TEXT.txt CALIBRATION.json -o build/bench/equal_bytes.json

2:4 and 4:8 with SparseGPT's masks take 3.25 bits a weight, 3 bits in groups of 64 take 3.25 without and 3.5 with a
minimum; all by the export's own sweep, states re-propagated through what was done before. Windows of 1024 over the
first 20k tokens of TEXT; 95 % intervals of the difference in log-perplexity to dense 3 bits of 3.25, by a paired
bootstrap over windows. 3 bits are simulated: no tile holds them.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

from edgellm.export.architectures import MATRICES, role
from edgellm.export.calibrate import calibration_ids, statistics
from edgellm.export.checkpoint import open_checkpoint
from edgellm.export.compress import Read, read_by_head, rounded
from edgellm.export.config import ExportConfig
from edgellm.export.decoder import load_block, propagate, window_losses
from edgellm.export.hessian import Hessians
from edgellm.export.level import GROUP, Level, Sparsity
from edgellm.export.prune import SCOPES
from edgellm.export.sparsegpt import simulated
from edgellm.export.vocabulary import embed
from edgellm.kernels.layout import dequantize
from tests.benchmarks.prune_table import WINDOW, Weights, dense, interval

THREE = {"dense 3": "symmetric", "dense 3 with a minimum": "min"}  # the first is what others are compared with
LEVELS = {name: Level(4, Sparsity.parse(f"sparsegpt:{name}")) for name in ("2:4", "4:8")} | {"dense 4": Level(4)}


def compressed(kind: str, name: str, weight: Tensor, read: Read, model: Path) -> Tensor:
    """A matrix as this row of the table has it."""
    mlp = role(name) in SCOPES["mlp"]
    if mlp and kind in THREE:
        return simulated(weight, read.hessians.feedback(role(name), GROUP), GROUP, 3, THREE[kind])
    config = ExportConfig(model, model, levels={name: LEVELS[kind] if mlp else Level(4)})
    return torch.from_numpy(dequantize(rounded(config, name, weight, read)))


@click.command()
@click.argument("model", type=Path)
@click.argument("text", type=Path)
@click.argument("calibration", type=Path)
@click.option("-o", "--output", type=Path, default=Path("build/bench/equal_bytes.json"))
@click.option("--tokens", default=20_000)
@click.option("--sequences", default=32, help="Calibration sequences of 512 tokens.")
def main(model: Path, text: Path, calibration: Path, output: Path, tokens: int, sequences: int) -> None:
    checkpoint = open_checkpoint(model)
    arch, tensors, tokenizer = checkpoint.architecture, dense(checkpoint), checkpoint.tokenizer_json()
    words = calibration_ids(tokenizer, calibration, sequences, min(512, arch.context))
    ids = calibration_ids(tokenizer, text, 1, tokens).flatten()
    head = read_by_head(arch, Weights(tensors), words, "embedding") if arch.tied else None
    rows: list[dict[str, Any]] = []
    losses: dict[str, Tensor] = {}
    for kind in (*THREE, *LEVELS):
        made = dict(tensors)
        source = Weights(made)
        if head is not None:
            made["embedding"] = compressed("dense 4", "embedding", tensors["embedding"], head, model)
        x = embed(arch, source, words)
        for layer in range(arch.layers):
            block, hessians = load_block(arch, source, layer), Hessians()
            read = Read(statistics(arch, layer, block, x, hessians.add), hessians)
            for part in MATRICES:
                name = f"layers.{layer}.{part}"
                block[part] = made[name] = compressed(kind, name, block[part], read, model)
            x = propagate(arch, layer, block, x)
        losses[kind], counts = window_losses(arch, source, ids, WINDOW)
        row: dict[str, Any] = {"mlp": kind, "perplexity": math.exp(float(losses[kind].sum() / counts.sum()))}
        row["log_ratio_to_dense_3"] = interval(losses[kind], losses["dense 3"], counts)
        rows.append(row)
        print(json.dumps(row), file=sys.stderr, flush=True)
        output.parent.mkdir(parents=True, exist_ok=True)
        facts: dict[str, Any] = {"model": model.name, "text": text.name, "tokens": ids.numel(), "window": WINDOW}
        facts["calibration"] = f"{calibration.name}, {words.numel()} tokens"
        output.write_text(json.dumps({**facts, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
