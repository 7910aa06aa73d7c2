"""Evolutionary search over levels (EvoPress, arXiv 2410.14649): what a model of losses that add up cannot see.

One parent; a generation is OFFSPRING copies of it, each with a level switched up and others down so that the size stays
within the budget. Many are scored on few tokens, the better ones on more, and the last replaces the parent if it is
better on the most tokens. The paper has hundreds of generations on a GPU; these constants are ours, for two cores.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from edgellm.export.allocate import Choice, Options, size

OFFSPRING = 8
SURVIVORS = (2, 1)  # of each stage
GENERATIONS = 100
SWITCHES = 2  # at most, in one mutation

Score = Callable[[list[Choice], int], list[float]]
"""(choices, stage) -> a loss each, smaller is better; the last stage decides."""


@dataclass(frozen=True)
class Parent:
    """The best choice so far, its loss at the last stage, and after how many generations and seconds, of which the
    longest generation took `longest`."""

    choice: Choice
    loss: float
    generation: int = 0
    seconds: float = 0.0
    longest: float = 0.0


def mutate(options: Options, parent: Choice, budget: int, draw: random.Random) -> Choice:
    """A few units a level up, then others down until it fits, then up again what still fits; parent if nothing can."""
    choice = list(parent)
    raised = set()
    for _ in range(draw.randint(1, SWITCHES)):
        able = [unit for unit, row in enumerate(options) if choice[unit] + 1 < len(row) and unit not in raised]
        if able:
            unit = draw.choice(able)
            choice[unit] += 1
            raised.add(unit)
    lowered = set()
    while size(options, tuple(choice)) > budget:
        able = [unit for unit, index in enumerate(choice) if index > 0 and unit not in raised]
        if not able:
            return parent
        unit = draw.choice(able)
        choice[unit] -= 1
        lowered.add(unit)
    room = budget - size(options, tuple(choice))
    for unit in draw.sample(range(len(options)), len(options)):
        row = options[unit]
        if unit not in lowered and choice[unit] + 1 < len(row):
            more = row[choice[unit] + 1].nbytes - row[choice[unit]].nbytes
            if more <= room:
                choice[unit] += 1
                room -= more
    return tuple(choice)


def evolve(
    options: Options,
    start: Choice,
    budget: int,
    score: Score,
    seed: int,
    minutes: float,
    record: Path,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Parent:
    """The best choice of at most `budget` bytes that GENERATIONS find, or as many as fit into `minutes` on the clock.

    Of the same seed and as many generations the same. Never worse than `start` at the last stage. record: a file that
    a killed search goes on from.
    """
    parent = _read(record) or Parent(start, score([start], len(SURVIVORS) - 1)[0])
    for generation in range(parent.generation, GENERATIONS):
        progress(generation, GENERATIONS)
        if parent.seconds + parent.longest > 60 * minutes:
            break
        begun = time.monotonic()
        draw = random.Random(f"{seed} {generation}")
        born = dict.fromkeys(mutate(options, parent.choice, budget, draw) for _ in range(OFFSPRING))
        best = [choice for choice in born if choice != parent.choice]
        loss = parent.loss
        for stage, survivors in enumerate(SURVIVORS):
            losses = score(best, stage) if best else []
            ranked = sorted(zip(losses, best, strict=True))[:survivors]
            best, loss = [choice for _, choice in ranked], min(losses, default=parent.loss)
        better = bool(best) and loss < parent.loss
        taken = time.monotonic() - begun
        choice, loss = (best[0], loss) if better else (parent.choice, parent.loss)
        longest = max(parent.longest, taken)
        parent = Parent(choice, loss, generation + 1, parent.seconds + taken, longest)
        _write(record, parent)
    progress(GENERATIONS, GENERATIONS)
    return parent


def _read(record: Path) -> Parent | None:
    try:
        found = json.loads(record.read_text(encoding="utf-8"))
        return Parent(tuple(found["choice"]), found["loss"], found["generation"], found["seconds"], found["longest"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write(record: Path, parent: Parent) -> None:
    fresh = record.with_suffix(".new")
    fresh.write_text(json.dumps(asdict(parent)), encoding="utf-8")
    os.replace(fresh, record)
