"""`--fit` beside the uniform recipe of the same size: perplexity of both, assembled from one bank of levels.

    python -m tests.benchmarks.fit_table MODEL.gguf TEXT CALIBRATION -o build/bench/fit_table.json

Sizes are those of uniform recipes: every MLP at one level, attention at another, embedding and head at a third. Windows
of 1024 over the first 20k tokens of TEXT; a 95 % interval of the difference in log-perplexity from a paired bootstrap
over windows. Neither side's layers see what earlier ones lost, as they do in an export: the bank's levels are of the
dense model's inputs. What is in the work folder is not done again, so that it can be run in turns.

--without leaves levels out. A Q4_1 checkpoint lies on the grid of "4 in 32s": that level is its own weights, for free.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import click
import torch

from edgellm.export import units
from edgellm.export.allocate import Choice
from edgellm.export.architectures import role
from edgellm.export.bank import Bank
from edgellm.export.budget import Budget
from edgellm.export.calibrate import calibration_ids
from edgellm.export.checkpoint import open_checkpoint
from edgellm.export.config import FROM_FILE, ExportConfig
from edgellm.export.decoder import window_losses
from edgellm.export.level import Level, Sparsity
from edgellm.export.search import STAGES, choose
from tests.benchmarks.prune_table import WINDOW, interval

HALF = Sparsity("sparsegpt", 4, 8)
UNIFORM = {  # MLP, attention, vocabulary
    "dense 4, head 4": (Level(4), Level(4), Level(4)),
    "MLP 4:8 at 4 bits, the rest 4": (Level(4, HALF), Level(4), Level(4)),
    "dense 4, head 8": (Level(4), Level(4), Level(8)),
    "MLP 4, the rest 8": (Level(4), Level(8), Level(8)),
}


def uniform(bank: Bank, mlp: Level, attention: Level, vocabulary: Level) -> Choice:
    """The choice with one level for all of a kind."""
    kinds = {"embedding": vocabulary, "head": vocabulary, "gate_up": mlp, "down": mlp}
    wanted = [kinds.get(role(unit.name), attention) for unit in bank.units]
    found = [[kept.level for kept in row] for row in bank.kept]
    return tuple(row.index(level) for row, level in zip(found, wanted, strict=True))


@click.command()
@click.argument("model", type=Path)
@click.argument("text", type=Path)
@click.argument("calibration", type=Path)
@click.option("--work", type=Path, default=Path("build/bench/fit"))
@click.option("-o", "--output", type=Path, default=Path("build/bench/fit_table.json"))
@click.option("--tokens", default=20_000)
@click.option("--minutes", default=5.0, help="Of mutations, a size.")
@click.option("--sequences", default=FROM_FILE[0], help="Calibration sequences of 512 tokens; the last few score.")
@click.option("--without", multiple=True, help="Levels of dense weights to leave out, such as '4 in 32s'.")
@click.option("--only", multiple=True, help="Names of sizes; may be given again.")
def main(
    model: Path, text: Path, calibration: Path, work: Path, output: Path, tokens: int, minutes: float,
    sequences: int, without: tuple[str, ...], only: tuple[str, ...],
) -> None:  # fmt: skip
    units.DENSE = tuple(level for level in units.DENSE if str(level) not in without)
    checkpoint = open_checkpoint(model)
    arch, tokenizer = checkpoint.architecture, checkpoint.tokenizer_json()
    ids = calibration_ids(tokenizer, text, 1, tokens).flatten()
    words = calibration_ids(tokenizer, calibration, sequences, FROM_FILE[1])
    config = ExportConfig(model, output, calibration=calibration, fit=Budget.parse("1bits"), fit_minutes=minutes)
    work.mkdir(parents=True, exist_ok=True)
    bank = Bank(config, checkpoint, work / "bank")
    started = time.perf_counter()

    def progress(step: str, done: int, total: int) -> None:
        print(f"{step} {done}/{total} {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)

    bank.fill(words[: -STAGES[-1]], lambda done, total: progress("levels", done, total))
    weights = sum(rows * columns for unit in bank.units for rows, columns in map(arch.shape, unit.members))
    facts: dict[str, Any] = {"model": model.name, "text": text.name, "tokens": ids.numel(), "window": WINDOW,
                             "calibration": f"{calibration.name}, {words.numel()} tokens", "rows": []}  # fmt: skip
    for name, levels in UNIFORM.items():
        if only and name not in only:
            continue
        plain = uniform(bank, *levels)
        budget = sum(row[index].nbytes for row, index in zip(bank.kept, plain, strict=True))
        folder = work / name
        folder.mkdir(exist_ok=True)
        if (work / "costs.json").exists():
            (folder / "costs.json").write_bytes((work / "costs.json").read_bytes())
        found = choose(bank, words[-STAGES[-1] :], budget, config, folder, progress)
        (work / "costs.json").write_bytes((folder / "costs.json").read_bytes())
        row: dict[str, Any] = {"uniform": name, "bits_per_weight": 8 * budget / weights}
        row |= {"generations": found.generation, "divergence": found.loss, "levels": {}}
        for unit, levels_of, index in zip(bank.units, bank.kept, found.choice, strict=True):
            row["levels"][unit.name] = str(levels_of[index].level)
        losses = {}
        for side, choice in (("uniform", plain), ("fit", found.choice)):
            kept = work / f"{hashlib.sha256(repr((choice, tokens)).encode()).hexdigest()[:16]}.pt"
            if not kept.exists():
                torch.save(window_losses(arch, bank.source(choice), ids, WINDOW), kept)
            losses[side], counts = torch.load(kept)
            row[f"{side}_perplexity"] = math.exp(float(losses[side].sum() / counts.sum()))
        row["log_ratio"] = interval(losses["fit"], losses["uniform"], counts)
        facts["rows"].append(row)
        print(json.dumps({key: value for key, value in row.items() if key != "levels"}), file=sys.stderr, flush=True)
        output.write_text(json.dumps(facts, indent=1))


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
