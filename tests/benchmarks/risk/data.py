"""The UCI credit card table (Yeh, 2009): 30,000 clients, 23 columns of numbers, whether the next payment was missed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

TARGET = "default.payment.next.month"
# Known when a client applies, and the oldest of six months: methods.md A3.3.
PRE_SERVICE = ("LIMIT_BAL", "SEX", "EDUCATION", "MARRIAGE", "AGE", "PAY_6", "BILL_AMT6", "PAY_AMT6")
TEST, VALIDATION = 0.3, 0.1


@dataclass(frozen=True)
class Rows:
    """in_service float32 [N, 23], every column; pre_service float32 [N, 8]; default float32 [N], 1 if it was one."""

    in_service: NDArray[np.float32]
    pre_service: NDArray[np.float32]
    default: NDArray[np.float32]

    def take(self, rows: NDArray[np.int64]) -> Rows:
        """These rows."""
        return Rows(self.in_service[rows], self.pre_service[rows], self.default[rows])


def read(file: Path) -> Rows:
    """The table of a CSV file with a header. Raises ValueError for one without the columns."""
    with file.open(encoding="utf-8") as lines:
        names = lines.readline().strip().split(",")
        absent = {TARGET, *PRE_SERVICE} - set(names)
        if absent:
            raise ValueError(f"{file} has no column {', '.join(sorted(absent))}")
        table = np.loadtxt(lines, np.float32, delimiter=",", ndmin=2)
    features = [i for i, name in enumerate(names) if name != TARGET]
    early = [names.index(name) for name in PRE_SERVICE]
    return Rows(table[:, features], table[:, early], table[:, names.index(TARGET)])


def split(rows: Rows, seed: int) -> tuple[Rows, Rows, Rows]:
    """(train, validation, test), of a random 60, 10 and 30 % of the rows."""
    order = np.random.default_rng(seed).permutation(len(rows.default))
    first, second = int(TEST * len(order)), int((TEST + VALIDATION) * len(order))
    return rows.take(order[second:]), rows.take(order[first:second]), rows.take(order[:first])
