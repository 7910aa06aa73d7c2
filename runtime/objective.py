"""What adaptation minimizes (SyTTA, arXiv 2510.10223): the surprise at the question and the doubt about the answer.

    loss = w_ida * IDA + w_ocs * (ENT + kl_weight * KL)

IDA: -ln p of the user's tokens, their mean. ENT: entropy of the first answer tokens' distributions, and KL from them to
the base model's, their sums over tokens. The weights balance the two (DIW): ours, as the paper's formula could not be
read (methods A1.2).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgellm.runtime.question import Question

OBJECTIVES = ("tlm", "sytta", "entropy")
SELECTED, SCALE = 3.0, 0.1  # TLM's code: only questions of more nats a token; coefficient 0.1 * exp(nats - 3)


@dataclass(frozen=True)
class Example:
    """One question to learn from, over a prefix of `before` tokens that the carrier stands for.

    ids: question and answer tokens behind it, int64 [T]; prompt_rows, targets [M]: the rows of ids that predict the
    user's tokens, and these; answer_rows [K]: those that predict the answer's; reference float32 [K, vocabulary]: the
    base model's logits there.
    """

    ids: NDArray[np.int64]
    before: int
    prompt_rows: NDArray[np.int64]
    targets: NDArray[np.int64]
    answer_rows: NDArray[np.int64]
    reference: NDArray[np.float32]

    @staticmethod
    def of(question: Question, answer: list[int], reference: NDArray[np.float32], before: int) -> Example:
        """answer: tokens after the question, at least K - 1 of them, for reference [K, vocabulary]."""
        places, targets = question.rows(before)
        count, last = len(reference), len(question.ids) - 1 - before
        ids = [*question.ids[before:], *answer[: count - 1]]
        rows = np.array(places, np.int64) - before
        return Example(
            np.array(ids, np.int64), before, rows, np.array(targets, np.int64), last + np.arange(count), reference
        )


class Losses(NamedTuple):
    """ida: mean nats a user's token. entropy, kl: nats, summed over answer tokens. No tokens: 0."""

    ida: float
    entropy: float
    kl: float


@dataclass(frozen=True)
class Weights:
    """Of ida, entropy and kl in the loss."""

    ida: float = 1.0
    entropy: float = 1.0
    kl: float = 1.0

    def of(self, losses: Losses) -> float:
        """The loss."""
        return self.ida * losses.ida + self.entropy * losses.entropy + self.kl * losses.kl


class Balance:
    """Dynamic importance weighting: E is a moving average of |IDA| + |OCS|, a loss's share |L| / E; the smaller share
    gets the larger weight, (1 - share) clipped to [low, high], and weights sum to 2. Ours (methods A1.2).

    A step's weights come from the losses of the steps before it: gradients are of one run of the graph.
    """

    def __init__(self, kl_weight: float, beta: float = 0.9, low: float = 0.2, high: float = 0.8) -> None:
        self._kl_weight, self._beta, self._clip = kl_weight, beta, (low, high)
        self._scale = 0.0
        self._weights = 1.0, 1.0

    @property
    def weights(self) -> Weights:
        """For the next step."""
        ida, ocs = self._weights
        return Weights(ida, ocs, ocs * self._kl_weight)

    def note(self, losses: Losses) -> None:
        """Take a step's losses into account."""
        parts = abs(losses.ida), abs(losses.entropy + self._kl_weight * losses.kl)
        total = sum(parts)
        self._scale = total if not self._scale else self._beta * self._scale + (1 - self._beta) * total
        if self._scale:
            ida, ocs = (float(np.clip(1 - part / self._scale, *self._clip)) for part in parts)
            self._weights = 2 * ida / (ida + ocs), 2 * ocs / (ida + ocs)


def weights_of(objective: str, balanced: Weights, scale: float = 1.0) -> Weights:
    """The weights of an objective: IDA alone ("tlm"), both parts as balanced ("sytta"), or ENT alone, without KL
    ("entropy"). scale: of IDA, what `selection` says of the question."""
    if objective == "tlm":
        return Weights(scale, 0.0, 0.0)
    if objective == "entropy":
        return Weights(0.0, 1.0, 0.0)
    return Weights(scale * balanced.ida, balanced.entropy, balanced.kl)


def selection(nll: float) -> float:
    """TLM's coefficient for a question that surprises the base model by `nll` nats a token; 0: it is not used.

    At most 1 (ours): one garbled question would outweigh all others.
    """
    return min(1.0, SCALE * math.exp(nll - SELECTED)) if nll > SELECTED else 0.0


def log_softmax(z: NDArray[np.float32]) -> NDArray[np.float32]:
    """Log-probabilities of logits [..., vocabulary], over the last dimension."""
    z = z - z.max(axis=-1, keepdims=True)
    found: NDArray[np.float32] = z - np.log(np.exp(z).sum(axis=-1, keepdims=True))
    return found
