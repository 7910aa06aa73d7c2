"""What a table says: a mean and its interval a cell, and differences between cells over the same items."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edgellm.runtime.evaluation.cells import FULL, Cell
from edgellm.runtime.evaluation.results import Row
from edgellm.runtime.evaluation.scores import bootstrap, interval


def table(rows: Mapping[int, Row], cells: Sequence[Cell], items: int, text: bool, against: str) -> list[dict[str, Any]]:
    """A dict a cell: kv, policy, budget, score and its 95 % interval low, high (text: perplexity), of_full (the ratio
    of scores, or of perplexities), and difference to the policy `against` at the same budget with its paired interval
    (text: of log-perplexity); without `against`, to the full cache."""
    values = {str(cell): [rows[item].scores[str(cell)] for item in range(items)] for cell in cells}
    found = []
    for cell in cells:
        own, mean = values[str(cell)], float(np.mean(values[str(cell)]))
        other = str(Cell(against, cell.budget)) if against and cell.budget else FULL
        shown = [mean, *interval(own)]
        full = float(np.mean(values[FULL]))
        entry: dict[str, Any] = {"kv": str(cell), "policy": cell.policy, "budget": cell.budget}
        entry |= dict(zip(("score", "low", "high"), map(math.exp, shown) if text else shown, strict=True))
        entry["of_full"] = math.exp(mean - full) if text else mean / full if full else None
        if other in values and other != str(cell):
            paired = [a - b for a, b in zip(own, values[other], strict=True)]
            low, high = bootstrap(paired)
            entry["against"] = {"kv": other, "difference": float(np.mean(paired)), "low": low, "high": high}
        found.append(entry)
    return found
