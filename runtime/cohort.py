"""Adapting to a set of unlabelled questions of one kind: once, then frozen (SyTTA), or after every answer (TLM online).

A step learns from a batch of questions. The answers' first tokens and the base model's logits there come from the base
model itself ("static", SyTTA's default), or the tokens from the model that is being adapted ("dynamic").
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from edgellm.runtime.adapter import Adapter, Facts, Tensors
from edgellm.runtime.carrier import Carrier, Start
from edgellm.runtime.errors import EdgellmError, UsageError
from edgellm.runtime.gate import begin_answer
from edgellm.runtime.gradient import Gradient
from edgellm.runtime.learning import Limits, acceptable
from edgellm.runtime.objective import OBJECTIVES, Balance, Example, Losses, selection, weights_of
from edgellm.runtime.optimizer import Adam
from edgellm.runtime.question import Question, beginning
from edgellm.runtime.reading import read
from edgellm.runtime.session import Session

REFERENCES = ("static", "dynamic")
SHRUNK = (1.0, 0.5, 0.25)  # of the way that was learned, tried in turn where all of it is too far
LEAST_CHECKED = 4


@dataclass(frozen=True)
class CohortSettings(Limits):
    """How a cohort is learned from; rates are ours (the paper trains LoRA).

    rate: Adam's at the first step, falling to 0 by a cosine. batch: questions a step. epochs: times each is used.
    reference: "static" | "dynamic". check: the share of the questions that is not learned from but judges what was; 0
    believes everything.
    Raises UsageError for a value outside its range.
    """

    rate: float = 0.002
    batch: int = 4
    epochs: int = 1
    reference: str = "static"
    check: float = 0.2

    def __post_init__(self) -> None:
        for name, known in (("reference", REFERENCES), ("objective", OBJECTIVES)):
            if getattr(self, name) not in known:
                raise UsageError(f'{name} "{getattr(self, name)}" is unknown', f"Use {', '.join(known)}.")
        for name in ("tokens", "prefix", "batch", "epochs"):
            if not 1 <= getattr(self, name) <= 256:
                raise UsageError(f"{name} is {getattr(self, name)}; expected 1 to 256")
        for name, most in (("rate", 1.0), ("radius", 100.0), ("check", 0.9)):
            if not 0 <= getattr(self, name) <= most:
                raise UsageError(f"{name} is {getattr(self, name)}; expected 0 to {most:g}")


@dataclass(frozen=True)
class Outcome:
    """What was learned: from `questions` in `steps`, judged on `checked` others: mean losses before and after (entropy
    and kl a token). believed: how much of the way was taken, 1 to 0.25; 0: nothing was believed."""

    questions: int
    steps: int
    checked: int
    before: Losses
    after: Losses
    believed: float


class Learner:
    """Learns from batches of questions over one session, which it uses with and without what it learned so far.

    first: the tokens that all questions begin with, whose place a prefix takes.
    """

    def __init__(self, session: Session, carrier: Carrier, first: Sequence[int], settings: CohortSettings) -> None:
        self._session, self._carrier, self._settings = session, carrier, settings
        session.use(None)
        session.extend(first)
        self._start: Start = carrier.begin(session, first, len(first))
        self._adam = Adam(self._start.tensors, settings.radius)
        self._balance = Balance(settings.kl_weight)
        self.steps = 0

    def learn(self, questions: Sequence[Question], rate: float) -> None:
        """One step from a batch."""
        total: Tensors = {}
        balanced = self._balance.weights
        for question in questions:
            gradient, example, scale = self._example(question)
            losses, slopes = gradient.step(
                example, self._adam.tensors, weights_of(self._settings.objective, balanced, scale)
            )
            self._balance.note(Losses(scale * losses.ida, losses.entropy, losses.kl))
            for name, slope in slopes.items():
                total[name] = total.get(name, np.float32(0)) + slope / np.float32(len(questions))
        if any(np.any(slope) for slope in total.values()):
            self._adam.step(total, rate)
            self.steps += 1

    def adapter(self, share: float = 1.0, **learned: object) -> Adapter:
        """What was learned, or a share of the way there."""
        facts = Facts(self._carrier.name, self._session.manifest.weights_sha256, self._start.tokens, dict(learned))
        return Adapter(facts, self._carrier.complete(self._part(share)))

    def judge(self, questions: Sequence[Question]) -> tuple[list[Losses], float]:
        """Mean losses (entropy and kl a token) at the start and after each share of SHRUNK, and the largest share that
        is acceptable; 0 where none is."""
        shares = [self._part(share) for share in (0.0, *SHRUNK)]
        rows = []
        for question in questions:
            gradient, example, _ = self._example(question)
            tokens = len(example.answer_rows)
            found = [gradient.losses(example, tensors) for tensors in shares]
            rows.append([[one.ida, one.entropy / tokens, one.kl / tokens] for one in found])
        means = [Losses(*row) for row in np.mean(rows, axis=0).tolist()]
        surer = self._settings.objective != "tlm"  # it does not aim at doubt, which rose a little where answers gained
        believed = (
            share for share, losses in zip(SHRUNK, means[1:], strict=True)
            if acceptable(losses, means[0], 1, self._settings.most_kl, surer)
        )  # fmt: skip
        return means, next(believed, 0.0)

    def _part(self, share: float) -> Tensors:
        start, end = self._start.tensors, self._adam.tensors
        return {name: start[name] + np.float32(share) * (end[name] - start[name]) for name in start}

    def _example(self, question: Question) -> tuple[Gradient, Example, float]:
        """The gradient, the example, and IDA's coefficient: base model's logits at the first answer tokens."""
        session, settings, before = self._session, self._settings, len(self._start.tokens)
        adapted = settings.reference == "dynamic" and self.steps
        session.use(self.adapter() if adapted else None)
        answer = begin_answer(session, question, settings.tokens).ids
        if adapted:
            session.use(None)
        reading = read(session, question, answer, before)
        example = Example.of(question, answer, reading.answer, before)
        scale = 0.0 if settings.objective == "entropy" else selection(reading.losses(example).ida)
        return self._carrier.gradient(example, reading.prompt), example, scale


def first_tokens(session: Session, questions: Sequence[Question], most: int) -> list[int]:
    """What all questions begin with; else what texts of this model begin with, which then goes before each of them."""
    found = beginning(questions, most)
    tokens = session.manifest.tokens
    special = [token for token in (tokens.bos, tokens.eos, 0) if token is not None]
    return found or special[:1]


def adapt_cohort(
    session: Session,
    carrier: Carrier,
    questions: Sequence[Question],
    settings: CohortSettings,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Adapter, Outcome]:
    """Learn from the questions, in order; the session ends without an adapter. Those that are too long are left out.

    Raises UsageError where too few are left, EdgellmError where what was learned cannot be believed.
    """
    fit = [question for question in questions if question.scored and len(question.ids) <= settings.longest]
    every = math.floor(1 / settings.check) if settings.check else 0
    checked = fit[every - 1 :: every] if every else []
    if len(checked) < (LEAST_CHECKED if every else 0) or len(fit) == len(checked):
        least = LEAST_CHECKED * every if every else 1
        raise UsageError(f"{len(fit)} questions of at most {settings.longest} tokens; expected at least {least}")
    learned = [question for number, question in enumerate(fit, 1) if not every or number % every]
    learner = Learner(session, carrier, first_tokens(session, fit, settings.prefix), settings)
    batches = [learned[i : i + settings.batch] for i in range(0, len(learned), settings.batch)] * settings.epochs
    try:
        for step, batch in enumerate(batches):
            learner.learn(batch, settings.rate * 0.5 * (1 + math.cos(math.pi * step / len(batches))))
            progress(step + 1, len(batches) + 1)
        means, believed = learner.judge(checked) if checked else ([], 1.0)
        progress(len(batches) + 1, len(batches) + 1)
        if not believed:
            raise _unbelieved(means)
        nothing = Losses(math.nan, math.nan, math.nan)
        before, after = (means[0], means[1 + SHRUNK.index(believed)]) if means else (nothing, nothing)
        outcome = Outcome(len(learned), learner.steps, len(checked), before, after, believed)
        how = {"mode": "cohort", "objective": settings.objective, "reference": settings.reference}
        adapter = learner.adapter(believed, **how, questions=outcome.questions, believed=believed)
    finally:
        session.use(None)
    return adapter, outcome


def _unbelieved(means: list[Losses]) -> EdgellmError:
    told = [f"{a:.3f} to {b:.3f}" for a, b in zip(means[0][:2], means[-1][:2], strict=True)]
    return EdgellmError(
        f"nothing was learned that can be believed: on questions held back, surprise at the question went from "
        f"{told[0]}, doubt about the answer from {told[1]} nats, with a KL of {means[-1].kl:.3f} a token",
        "Give more questions of one kind, or a lower --rate.",
    )


def stream_cohort(
    session: Session, carrier: Carrier, questions: Sequence[Question], settings: CohortSettings, most: int
) -> Iterator[tuple[str, Adapter]]:
    """Answer each question (at most `most` tokens, greedily) with what the ones before taught, then learn from it.

    Yields the answer, and the adapter after learning. The session ends without an adapter.
    """
    learner = Learner(session, carrier, first_tokens(session, questions, settings.prefix), settings)
    try:
        for question in questions:
            session.use(learner.adapter() if learner.steps else None)
            text = session.generate(question.ids, most).text
            session.use(None)
            if question.scored and len(question.ids) <= settings.longest:
                learner.learn([question], settings.rate)
            yield text, learner.adapter(mode="stream", objective=settings.objective, questions=learner.steps)
    finally:
        session.use(None)
