"""From logits to a token id: greedy, or drawn after repetition penalty, temperature, top-k, top-p and min-p.

The order and the meanings are those of transformers' logits processors, so that settings carry over.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgellm.runtime.errors import BundleError, UsageError

Sampler = Callable[[NDArray[np.float32]], int]  # logits [V] -> token id


@dataclass(frozen=True)
class Sampling:
    """How to choose tokens; the default is greedy. Raises UsageError for a value outside its range.

    temperature: 0 (greedy) to 100. top_k: the k likeliest, 0 = all. top_p: the smallest set of likeliest tokens whose
    probabilities sum to at least p (arXiv:1904.09751). min_p: tokens with at least min_p times the likeliest one's
    probability (arXiv:2407.01082). repetition_penalty: logits of tokens already seen, in the prompt too, are divided
    by it if positive and multiplied if not (arXiv:1909.05858). seed: None draws differently each time.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        _check("temperature", self.temperature, 0 <= self.temperature <= 100, "0 (greedy) to 100")
        _check("top_k", self.top_k, self.top_k >= 0, "0 (off) or more")
        _check("top_p", self.top_p, 0 < self.top_p <= 1, "above 0, at most 1 (off)")
        _check("min_p", self.min_p, 0 <= self.min_p <= 1, "0 (off) to 1")
        penalty = self.repetition_penalty
        _check("repetition_penalty", penalty, 0 < penalty <= 100, "above 0 (1 is off), at most 100")
        _check("seed", self.seed, self.seed is None or self.seed >= 0, "0 or more")

    def sampler(self, seen: Iterable[int] = ()) -> Sampler:
        """A callable logits [V] -> id that remembers what it returned; `seen` are the prompt's ids."""
        generator = np.random.Generator(np.random.PCG64(self.seed))
        history = set(seen)

        def choose(logits: NDArray[np.float32]) -> int:
            scores = penalize(logits.astype(np.float64), history, self.repetition_penalty)
            if not math.isfinite(scores.max()):  # NaN anywhere is the maximum
                raise BundleError("the logits are not numbers", "Check the weights: edgellm inspect BUNDLE --verify")
            token = int(scores.argmax()) if self.temperature == 0 else self._draw(scores, generator.random())
            history.add(token)
            return token

        return choose

    def _draw(self, scores: NDArray[np.float64], uniform: float) -> int:
        # Relative to the maximum before dividing: a tiny temperature must not overflow.
        with np.errstate(over="ignore"):
            probabilities = np.exp((scores - scores.max()) / self.temperature)
        ids, kept = candidates(probabilities / probabilities.sum(), self.top_k, self.top_p, self.min_p)
        sums = kept.cumsum()
        place = int(np.searchsorted(sums, uniform * sums[-1], side="right"))
        return int(ids[min(place, len(ids) - 1)])


def penalize(scores: NDArray[np.float64], seen: Iterable[int], penalty: float) -> NDArray[np.float64]:
    """Apply CTRL's repetition penalty to scores [V], in place."""
    if penalty != 1:
        ids = np.fromiter(seen, np.int64)
        ids = ids[ids < len(scores)]
        values = scores[ids]
        scores[ids] = np.where(values > 0, values / penalty, values * penalty)
    return scores


def candidates(
    probabilities: NDArray[np.float64], top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The ids that may be drawn and their probabilities (not normalized again); at least the likeliest one.

    Each filter sees what the one before left, renormalized, as in transformers; equal probabilities keep lower ids.
    """
    size = len(probabilities)
    ids = np.arange(size)
    if 0 < top_k < size:
        # The k-th largest is the bar; ties above the count are cut by the stable sort below.
        bar = np.partition(probabilities, size - top_k)[size - top_k]
        ids = ids[probabilities >= bar]
        ids = ids[np.argsort(-probabilities[ids], kind="stable")[:top_k]]
    kept = probabilities[ids]
    if top_p < 1:
        total = kept.sum()
        # All tokens below (1-p)/n together weigh less than 1-p: none is in the nucleus, and sorting skips them.
        likely = kept >= (1 - top_p) / len(kept) * total
        ids, kept = ids[likely], kept[likely]
        order = np.argsort(-kept, kind="stable")
        ids, kept = ids[order], kept[order]
        before = np.concatenate([[0.0], kept.cumsum()[:-1]])
        count = max(1, int((before < top_p * total).sum()))
        ids, kept = ids[:count], kept[:count]
    if min_p > 0:
        likely = kept >= min_p * kept.max()
        ids, kept = ids[likely], kept[likely]
    return ids, kept


def _check(name: str, value: float | None, fine: bool, expected: str) -> None:
    if not fine:
        raise UsageError(f"{name} is {value}; expected {expected}")
