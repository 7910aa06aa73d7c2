"""The numbers that tell PrunedKVAttention what to keep: one row of the graph's `control` a layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

FULL, WINDOW, SCORE = 0, 1, 2
"""Control.policy. Where the budget is full: an error, the oldest token goes, the one of the lowest score goes."""
HEADS = ("sum", "mean", "max")
"""Control.heads, by number: how a token's attention becomes one number for all query heads of a KV head."""
MILLION = 1_000_000
ATTENTION, NORM, OLDER = 0, 1, 2
"""Planes of the score buffer: what queries paid a token, the l1 norm of its value, what an older window's paid it."""


class Control(NamedTuple):
    """One layer's row, int64, in this order (kernels/cpu/operators.h has it too). Tokens are counted, slots are places.

    committed: slots [0, committed) hold tokens. accepted: how many of the last run's tokens stay, its first ones, which
    lie from slot `staged` on. budget: the most tokens that are committed from now on; this run stages behind them.
    sinks: positions below it are never evicted (StreamingLLM, arXiv 2309.17453). policy: FULL, WINDOW or SCORE.

    With SCORE: recent: positions above the newest one less `recent` are not evicted either. counted: attention of this
    run's first `counted` tokens is added to the scores; drafts, which may be rejected, come after them and leave none.
    forget: millionths of a score that stay with every later query: a million is H2O (arXiv 2306.14048), between is A2SF
    (arXiv 2407.20485), 0 is TOVA (arXiv 2401.06104). queries: only attention of about so many last queries counts (0:
    of all): windows end where position + 1 - anchor divides by it, and this one and the one before count (Scissorhands,
    arXiv 2305.17118); 0 <= anchor < queries. heads: a number of HEADS. norm: 1 to multiply by the value's l1 norm
    (VATP, arXiv 2406.12335).
    """

    committed: int
    accepted: int
    staged: int
    budget: int
    sinks: int = 0
    policy: int = FULL
    recent: int = 0
    counted: int = 0
    forget: int = MILLION
    queries: int = 0
    anchor: int = 0
    heads: int = 0
    norm: int = 0

    @property
    def planes(self) -> int:
        """The fewest planes the score buffer must have."""
        return 0 if self.policy != SCORE else OLDER + 1 if self.queries else NORM + 1 if self.norm else ATTENTION + 1


FIELDS = len(Control._fields)


def control_of(rows: Sequence[Control]) -> NDArray[np.int64]:
    """The graph's input, int64 [layers, FIELDS]."""
    return np.array(rows, np.int64).reshape(-1, FIELDS)
