"""Which level each unit gets within a size, from what each is modelled to cost: where the search starts.

BAQ (its equal-loss form): a unit of n weights that loses L at 4 bits loses L * 4^-(b - 4) at b, so the least total for
a mean of b bits is where all lose alike for a weight, b_i = b + log4(L_i / n_i) - mean of the same. Rounding to levels
and the fixing up that follows, greedy by loss a byte and then by pairs, are ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

Choice = tuple[int, ...]
"""By unit, the index of its option."""


@dataclass(frozen=True)
class Option:
    """What a unit can be given: bytes, and the loss that this is modelled to cost."""

    nbytes: int
    loss: float


Options = Sequence[Sequence[Option]]
"""By unit: options in rising bytes and falling loss."""


def size(options: Options, choice: Choice) -> int:
    """Bytes of a choice."""
    return sum(row[index].nbytes for row, index in zip(options, choice, strict=True))


def smallest_first(options: Options, budget: int) -> Choice | None:
    """By size alone: everything at its smallest, then raised in order as far as the budget goes; None: too small."""
    choice = tuple(0 for _ in options)
    return None if size(options, choice) > budget else _raised(options, choice, budget, by_loss=False)


def allocate(options: Options, weights: Sequence[int], budget: int) -> Choice:
    """The closed form, rounded and fixed up to at most `budget` bytes. weights: of each unit.

    The smallest of everything must fit.
    """
    at_four = [row[nearest(row, n, 4.5)] for row, n in zip(options, weights, strict=True)]
    each = [0.5 * math.log2(max(option.loss, 1e-30) / n) for option, n in zip(at_four, weights, strict=True)]
    total = sum(weights)
    mean = sum(value * n for value, n in zip(each, weights, strict=True)) / total
    bits = [8 * budget / total + value - mean for value in each]
    choice = tuple(nearest(row, n, b) for row, n, b in zip(options, weights, bits, strict=True))
    while size(options, choice) > budget:
        choice = _moved(choice, min(_steps(options, choice, -1), key=lambda step: step[0])[1], -1)
    return _exchanged(options, _raised(options, choice, budget), budget)


def nearest(row: Sequence[Option], weights: int, bits: float) -> int:
    """The option of a unit of so many weights that is nearest to so many bits a weight."""
    away = [abs(8 * option.nbytes / weights - bits) for option in row]
    return away.index(min(away))


def _moved(choice: Choice, unit: int, by: int) -> Choice:
    return (*choice[:unit], choice[unit] + by, *choice[unit + 1 :])


def _steps(options: Options, choice: Choice, by: int) -> list[tuple[float, int]]:
    """(loss a byte, unit) of every unit that can move by one level."""
    found = []
    for unit, (row, index) in enumerate(zip(options, choice, strict=True)):
        if 0 <= index + by < len(row):
            here, there = row[index], row[index + by]
            found.append((abs(here.loss - there.loss) / max(1, abs(here.nbytes - there.nbytes)), unit))
    return found


def _raised(options: Options, choice: Choice, budget: int, by_loss: bool = True) -> Choice:
    """Units raised while any fits, those first that win most loss a byte, or in their order."""
    while True:
        room = budget - size(options, choice)
        fitting = [
            (gain if by_loss else 0.0, -unit)
            for gain, unit in _steps(options, choice, 1)
            if options[unit][choice[unit] + 1].nbytes - options[unit][choice[unit]].nbytes <= room
        ]
        if not fitting:
            return choice
        choice = _moved(choice, -max(fitting)[1], 1)


def _exchanged(options: Options, choice: Choice, budget: int) -> Choice:
    """Pairs exchanged, one unit to any larger option and another to any smaller, while the modelled loss falls."""
    while True:
        room, best, least = budget - size(options, choice), None, -1e-12
        for up, row in enumerate(options):
            for high in range(choice[up] + 1, len(row)):
                gain = row[high].loss - row[choice[up]].loss
                more = row[high].nbytes - row[choice[up]].nbytes - room
                for down, other in enumerate(options):
                    for low in range(choice[down] if down != up else 0):
                        change = gain + other[low].loss - other[choice[down]].loss
                        if change < least and other[choice[down]].nbytes - other[low].nbytes >= more:
                            best, least = (up, high, down, low), change
        if best is None:
            return _raised(options, choice, budget)
        up, high, down, low = best
        changed = list(choice)
        changed[up], changed[down] = high, low
        choice = tuple(changed)
