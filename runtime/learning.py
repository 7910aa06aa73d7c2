"""Steps on one example, and when to believe them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from edgellm.runtime.adapter import Tensors
from edgellm.runtime.gradient import Gradient
from edgellm.runtime.objective import Balance, Example, Losses, Weights, weights_of
from edgellm.runtime.optimizer import Adam

SLACK = 1e-3  # nats: what rounding alone may do to a loss


@dataclass(frozen=True)
class Limits:
    """What learning looks at and how far it may go, from one question or many. Ours: the paper trains LoRA.

    objective: what is minimized (objective.weights_of). "tlm", the surprise at the question, is the default: with doubt
    in the loss ("sytta", the paper's) reference answers became less likely (docs/adaptation.md).
    tokens: of the answer that count (SyTTA's k). prefix: the most tokens of a prefix. radius: of the trust region
    (optimizer.py). kl_weight: of KL beside entropy. most_kl: nats an answer token that the model may move. longest:
    tokens of a prompt beyond which it is not adapted to, for the gradient's memory.
    """

    objective: str = "tlm"
    tokens: int = 4
    prefix: int = 8
    radius: float = 0.1
    kl_weight: float = 1.0
    most_kl: float = 0.5
    longest: int = 512


@dataclass(frozen=True)
class Settings(Limits):
    """How one question is learned from. steps: the most of Adam. rate: its own, ours too."""

    steps: int = 1
    rate: float = 0.003


class Descent(NamedTuple):
    """Where the steps led (the start itself, where the first one strayed), and how many were taken."""

    tensors: Tensors
    steps: int


def acceptable(after: Losses, before: Losses, tokens: int, most_kl: float, surer: bool = True) -> bool:
    """Whether the question became no stranger, the model stayed near itself, and, where `surer` asks for it, the answer
    became no less sure (methods A5.3).

    Doubt alone is no judge: it fell in every trial, whether answers became better or worse (methods A5.5).
    """
    near = after.kl <= most_kl * tokens
    return near and after.ida <= before.ida + SLACK and (after.entropy <= before.entropy or not surer)


def descend(gradient: Gradient, example: Example, start: Tensors, settings: Settings) -> Descent:
    """Take up to `steps` steps. Where one made the loss rise or the model stray, the place before it is the last.

    What the last step did is not known yet: the runtime's own reading tells it for less (reading.py).
    """
    adam, balance = Adam(start, settings.radius), Balance(settings.kl_weight)
    tokens, judged = len(example.answer_rows), weights_of(settings.objective, Weights(kl=settings.kl_weight))
    before, least = start, math.inf
    for step in range(settings.steps):
        losses, slope = gradient.step(example, adam.tensors, weights_of(settings.objective, balance.weights))
        if step and (judged.of(losses) > least or losses.kl > settings.most_kl * tokens):
            return Descent(before, step)
        before, least = adam.tensors if step else start, judged.of(losses)
        balance.note(losses)
        adam.step(slope, settings.rate)
    return Descent(adam.tensors, settings.steps)
