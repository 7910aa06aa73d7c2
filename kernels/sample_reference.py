"""The next token from a row of logits, and how sure the row is, in NumPy: slow, obvious, what kernels/cpu equals.

The order and the meanings are those of transformers' logits processors, so that settings carry over.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]


def sample(
    logits: NDArray[np.float32],
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    penalty: float = 1.0,
    seen: Iterable[int] = (),
    uniform: float = 0.0,
) -> int:
    """The id that edgellm.kernels.sample.sample returns, or FloatingPointError as there."""
    scores = penalize(logits.astype(np.float64), seen, penalty)
    if not math.isfinite(scores.max()):  # NaN anywhere is the maximum
        raise FloatingPointError("the logits are not numbers")
    if temperature == 0:
        return int(scores.argmax())
    # Relative to the maximum before dividing: a tiny temperature must not overflow.
    with np.errstate(over="ignore"):
        probabilities = np.exp((scores - scores.max()) / temperature)
    ids, kept = candidates(probabilities / probabilities.sum(), top_k, top_p, min_p)
    sums = kept.cumsum()
    place = int(np.searchsorted(sums, uniform * sums[-1], side="right"))
    return int(ids[min(place, len(ids) - 1)])


def penalize(scores: F64, seen: Iterable[int], penalty: float) -> F64:
    """Apply CTRL's repetition penalty (arXiv:1909.05858) to scores [V], in place, once to each id seen."""
    if penalty != 1:
        ids = np.unique(np.fromiter(seen, np.int64))
        ids = ids[(ids >= 0) & (ids < len(scores))]
        values = scores[ids]
        scores[ids] = np.where(values > 0, values / penalty, values * penalty)
    return scores


def candidates(
    probabilities: F64, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> tuple[NDArray[np.int64], F64]:
    """The ids that may be drawn and their probabilities (not normalized again); at least the likeliest one.

    Each filter sees what the one before left, renormalized, as in transformers; equal probabilities keep lower ids.
    Ids are ordered by probability after top-k or top-p, and ascend else.
    """
    ids = np.arange(len(probabilities))
    if 0 < top_k < len(ids) or top_p < 1:
        ids = np.argsort(-probabilities, kind="stable")
    if 0 < top_k < len(ids):
        ids = ids[:top_k]
    kept = probabilities[ids]
    if top_p < 1:
        before = np.concatenate([[0.0], kept.cumsum()[:-1]])
        count = max(1, int((before < top_p * kept.sum()).sum()))
        ids, kept = ids[:count], kept[:count]
    if min_p > 0:
        likely = kept >= min_p * kept.max()
        ids, kept = ids[likely], kept[likely]
    return ids, kept


def uncertainty(logits: NDArray[np.float32]) -> tuple[float, float, float]:
    """Entropy in nats, log of the sum of exponentials, and the largest probability of softmax(logits [V])."""
    scores = logits.astype(np.float64)
    top = scores.max()
    powers = np.exp(scores - top)
    total = powers.sum()
    p = powers[powers > 0] / total
    return float(-(p * np.log(p)).sum()), float(top + np.log(total)), float(p.max())
