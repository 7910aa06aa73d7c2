"""`--fit`: the recipe of at most a size that loses least. Levels of every unit are compressed once (bank.py), what each
costs is measured (KL to the dense model with that unit alone compressed), a closed form says where to begin
(allocate.py), and mutations go on from there (evopress.py)."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path

from torch import Tensor

from edgellm.export.allocate import Choice, Option, Options, allocate, nearest, size, smallest_first
from edgellm.export.architectures import Architecture
from edgellm.export.bank import DENSE, Bank
from edgellm.export.checkpoint import Checkpoint
from edgellm.export.config import ExportConfig
from edgellm.export.divergence import Divergence
from edgellm.export.evopress import Parent, evolve
from edgellm.export.level import Level, Sparsity
from edgellm.export.units import nbytes, offered, units
from edgellm.runtime.errors import EdgellmError

STAGES = (1, 4)  # sequences of the calibration text that a stage of the search scores on
FOUND = "levels.json"
AT_ONCE = 16  # units whose cost is measured side by side

Progress = Callable[[str, int, int], None]


def levels_by_size(arch: Architecture, budget: int, page: int) -> dict[str, Level]:
    """Some recipe of at most `budget` bytes, from sizes alone: what an estimate can know before the search. page: that
    a matrix's bytes are counted in.

    Raises EdgellmError, with the least that would do, when none is so small.
    """
    rows = []
    for unit in units(arch):
        sizes = {nbytes(arch, unit, level, page): level for level in offered(arch, unit, "wanda")}
        rows.append((unit, sorted(sizes.items())))
    options = [[Option(count, 0.0) for count, _ in found] for _, found in rows]
    choice = smallest_first(options, budget)
    if choice is None:
        least = size(options, tuple(0 for _ in options))
        raise EdgellmError(
            f"the smallest recipe takes {least / 1e6:.2f} MB of weights, --fit leaves {max(budget, 0) / 1e6:.2f} MB",
            "Give a larger size, or a smaller model.",
        )
    return {name: found[i][1] for (unit, found), i in zip(rows, choice, strict=True) for name in unit.members}


def search(
    config: ExportConfig, checkpoint: Checkpoint, text: Tensor, budget: int, work: Path, progress: Progress
) -> dict[str, Level]:
    """What each matrix is given, by canonical name, in at most `budget` bytes of packed matrices.

    text: int64 [N, T], N >= 2; its last rows, up to STAGES', are scored on, the others compress. work: the folder that
    a killed search goes on from. Raises EdgellmError for a text too short.
    """
    done = _read(work / FOUND)  # what was packed since then is of these levels
    if done is not None:
        return done
    scored = min(STAGES[-1], len(text) // 2)
    if scored < 1:
        raise EdgellmError(
            "the calibration text is too short to search with: some of it compresses, some of it scores",
            "Give a longer --calibration text.",
        )
    bank = Bank(config, checkpoint, work / "bank")
    bank.fill(text[:-scored], lambda done, total: progress("levels", done, total))
    found = choose(bank, text[-scored:], budget, config, work, progress)
    levels = bank.levels(found.choice)
    (work / FOUND).write_text(json.dumps({name: asdict(level) for name, level in levels.items()}), encoding="utf-8")
    return levels


def choose(bank: Bank, text: Tensor, budget: int, config: ExportConfig, work: Path, progress: Progress) -> Parent:
    """The search over a filled bank: text int64 [N, T] is scored on, config gives seed and minutes."""
    stages = [Divergence(bank, text[-rows:]) for rows in STAGES]
    weights = [sum(rows * columns for rows, columns in map(bank.arch.shape, unit.members)) for unit in bank.units]
    options = _options(bank, weights, stages[0], work / "costs.json", progress)
    starts = [allocate(options, weights, budget), *uniform(bank, options, budget)]
    losses = stages[-1].of(starts)
    return evolve(
        options, starts[losses.index(min(losses))], budget, lambda choices, stage: stages[stage].of(choices),
        config.seed, config.fit_minutes, work / "parent.json", lambda done, total: progress("search", done, total),
    )  # fmt: skip


def _read(record: Path) -> dict[str, Level] | None:
    try:
        found = json.loads(record.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return {name: Level(**{**entry, "sparsity": Sparsity(**entry["sparsity"])}) for name, entry in found.items()}


def _options(
    bank: Bank, weights: Sequence[int], divergence: Divergence, record: Path, progress: Progress
) -> list[list[Option]]:
    """Each unit's levels with what they are modelled to cost: measured with that unit alone at about 4.5 bits, and at
    its other levels in proportion to their error (bank.Kept)."""
    rows = [[Option(kept.nbytes, kept.error) for kept in row] for row in bank.kept]
    probes = [nearest(row, n, 4.5) for row, n in zip(rows, weights, strict=True)]
    try:
        measured: list[float] = json.loads(record.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        measured = []
    total = len(bank.units)
    for start in range(len(measured), total, AT_ONCE):
        progress("costs", start, total)
        alone: list[Choice] = [
            tuple(probes[place] if place == unit else DENSE for place in range(total))
            for unit in range(start, min(start + AT_ONCE, total))
        ]
        measured += [max(loss, 0.0) for loss in divergence.of(alone)]
        record.write_text(json.dumps(measured), encoding="utf-8")
    progress("costs", total, total)
    return [
        [Option(option.nbytes, loss * option.loss / max(row[probe].loss, 1e-30)) for option in row]
        for row, probe, loss in zip(rows, probes, measured, strict=True)
    ]


def uniform(bank: Bank, options: Options, budget: int) -> list[Choice]:
    """Of the recipes that fit with one level for all layers and one for embedding and head, the one that is modelled to
    lose least, or none: what a search has to beat."""
    fitting = []
    bodies = {kept.level for row in bank.kept for kept in row}
    for body, vocabulary in product(sorted(bodies, key=str), (Level(8), Level(4))):
        wanted = [vocabulary if unit.name in ("embedding", "head") else body for unit in bank.units]
        places = [
            next((i for i, kept in enumerate(row) if kept.level == level), None)
            for row, level in zip(bank.kept, wanted, strict=True)
        ]
        choice = tuple(place for place in places if place is not None)
        if len(choice) == len(places) and size(options, choice) <= budget:
            loss = sum(row[index].loss for row, index in zip(options, choice, strict=True))
            fitting.append((loss, choice))
    return [choice for _, choice in sorted(fitting)[:1]]
