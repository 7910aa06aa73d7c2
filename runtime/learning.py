"""Steps on one example, and when to believe them."""

from __future__ import annotations

from dataclasses import dataclass, field

from edgellm.runtime.adapter import Tensors
from edgellm.runtime.gradient import Gradient
from edgellm.runtime.objective import Balance, Example, Losses, Weights
from edgellm.runtime.optimizer import Adam

SLACK = 1e-3  # nats: what rounding alone may do to a loss


@dataclass(frozen=True)
class Limits:
    """What learning looks at and how far it may go, from one question or many. Ours: the paper trains LoRA.

    tokens: of the answer that count (SyTTA's k). prefix: the most tokens of a prefix. radius: of the trust region
    (optimizer.py). kl_weight: of KL beside entropy. most_kl: nats an answer token that the model may move. longest:
    tokens of a prompt beyond which it is not adapted to, for the gradient's memory.
    """

    tokens: int = 4
    prefix: int = 8
    radius: float = 0.1
    kl_weight: float = 1.0
    most_kl: float = 0.5
    longest: int = 512


@dataclass(frozen=True)
class Settings(Limits):
    """How one question is learned from. steps: the most of Adam. rate: its own, ours too."""

    steps: int = 2
    rate: float = 0.003


@dataclass
class Descent:
    """What the steps did: losses before each and after the last; the best tensors that were accepted, if any, after
    `accepted` steps."""

    trace: list[Losses] = field(default_factory=list)
    tensors: Tensors | None = None
    accepted: int = 0

    @property
    def steps(self) -> int:
        """How many were taken."""
        return max(0, len(self.trace) - 1)


def acceptable(after: Losses, before: Losses, tokens: int, most_kl: float) -> bool:
    """Whether the answer became surer, the question no stranger, and the model stayed near itself (methods A5.3).

    Doubt alone is no judge: it fell in every trial, whether answers became better or worse (methods A5.5).
    """
    near = after.kl <= most_kl * tokens
    return near and after.ida <= before.ida + SLACK and after.entropy <= before.entropy


def descend(gradient: Gradient, example: Example, start: Tensors, settings: Settings, least_nll: float) -> Descent:
    """Take up to `steps` steps; none where the question surprises the model by no more than `least_nll` nats a token.

    It stops where the loss rises or the model strays, and keeps the last values that are acceptable.
    """
    adam, balance, found = Adam(start, settings.radius), Balance(settings.kl_weight), Descent()
    tokens, judged = len(example.answer_rows), Weights(kl=settings.kl_weight)
    for step in range(settings.steps + 1):
        if step < settings.steps:
            losses, slope = gradient.step(example, adam.tensors, balance.weights)
        else:
            losses, slope = gradient.losses(example, adam.tensors), {}
        found.trace.append(losses)
        if step == 0 and losses.ida <= least_nll:
            break
        if step and acceptable(losses, found.trace[0], tokens, settings.most_kl):
            found.tensors, found.accepted = adam.tensors, step
        elif step and (judged.of(losses) > judged.of(found.trace[-2]) or losses.kl > settings.most_kl * tokens):
            break
        if slope:
            balance.note(losses)
            adam.step(slope, settings.rate)
    return found
