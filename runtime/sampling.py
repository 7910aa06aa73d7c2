"""How tokens are chosen: greedy, or drawn after repetition penalty, temperature, top-k, top-p and min-p.

The order and the meanings are those of transformers' logits processors, so that settings carry over. The work over the
vocabulary is the native library's (edgellm.kernels.sample); this keeps settings, seed and the tokens seen.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgellm.kernels.sample import sample
from edgellm.runtime.errors import BundleError, UsageError, no_library

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
        """A callable logits [V] -> id that remembers what it returned; `seen` are the prompt's ids.

        It raises BundleError for logits that are not numbers, EdgellmError where the native library is missing.
        """
        penalty = self.repetition_penalty
        # numpy.random is slow to import, and greedy choice draws nothing.
        draw = np.random.Generator(np.random.PCG64(self.seed)).random if self.temperature > 0 else _nothing
        settings = self.temperature, int(self.top_k), self.top_p, self.min_p, penalty
        history = array("q", sorted(set(seen)) if penalty != 1 else ())

        def choose(logits: NDArray[np.float32]) -> int:
            try:
                token = sample(logits, *settings, history, draw())
            except FloatingPointError as error:
                raise BundleError(str(error), "Check the weights: edgellm inspect BUNDLE --verify") from None
            except FileNotFoundError as error:
                raise no_library(error) from None
            place = bisect_left(history, token)
            if penalty != 1 and token not in history[place : place + 1]:
                history.insert(place, token)
            return token

        return choose


def _nothing() -> float:
    return 0.0


def _check(name: str, value: float | None, fine: bool, expected: str) -> None:
    if not fine:
        raise UsageError(f"{name} is {value}; expected {expected}")
