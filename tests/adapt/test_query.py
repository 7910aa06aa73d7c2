"""Adapting to one question: gate, steps, roll-back, and that nothing leaks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgellm.runtime.adapter import Tensors
from edgellm.runtime.adaptive import AdaptiveGeneration
from edgellm.runtime.carrier import Carrier, Prefix
from edgellm.runtime.gate import begin_answer, nll
from edgellm.runtime.learning import Settings, descend
from edgellm.runtime.objective import Example, Losses, Weights
from edgellm.runtime.question import Question
from edgellm.runtime.reading import read
from edgellm.runtime.sampling import Sampling
from edgellm.runtime.schema import Gate
from edgellm.runtime.session import Session

ALWAYS, NEVER = Gate(-1.0, -1.0, 1, True), Gate(100.0, 100.0, 1, True)
BOLD = Settings(objective="sytta", most_kl=10.0)  # a random model moves far in a step


@pytest.mark.parametrize("name", ["prefix", "soft", "lora", "delta"])
def test_a_gated_question_is_adapted_to_and_forgotten(
    session: Session, question: Question, carriers: dict[str, Carrier], name: str
) -> None:
    base = session.generate(question.ids, 20)
    run = AdaptiveGeneration(session, question, carriers[name], 20, settings=replace(BOLD, rate=0.1), gate=ALWAYS)
    assert "".join(run) == run.result.text
    report = run.report
    assert (report.gated, report.accepted, report.steps) == (True, True, 1)
    assert report.entropy_after is not None
    assert report.entropy_after < report.entropy
    assert report.extra_s > 0
    assert session.adapter is None
    assert run.result.ids != base.ids
    assert session.generate(question.ids, 20).ids == base.ids


@pytest.mark.parametrize("name", ["prefix", "soft", "lora", "delta"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_what_is_not_believed_leaves_the_base_answer(
    session: Session, question: Question, carriers: dict[str, Carrier], name: str, temperature: float
) -> None:
    sampling = Sampling(temperature, seed=5)
    base = session.generate(question.ids, 30, sampling)
    cautious = Settings(most_kl=0.0)
    run = AdaptiveGeneration(session, question, carriers[name], 30, sampling, cautious, ALWAYS)
    text = "".join(run)
    assert (run.report.gated, run.report.accepted) == (True, False)
    assert run.report.steps > 0
    assert (run.result.ids, text) == (base.ids, base.text)


@pytest.mark.parametrize("gate", [NEVER, Gate(-1.0, 100.0, 1, True)])
def test_the_gate_needs_doubt_and_an_unfamiliar_question(
    bundle: Path, session: Session, question: Question, gate: Gate
) -> None:
    base = session.generate(question.ids, 20)
    carrier = Prefix(bundle, session.manifest, 1)
    run = AdaptiveGeneration(session, question, carrier, 20, gate=gate)
    "".join(run)
    assert run.result.ids == base.ids
    assert (run.report.gated, run.report.steps) == (False, 0)
    assert "graph" not in vars(carrier)  # its graph is not even opened
    assert (run.report.nll is None) == (gate is NEVER)


def test_a_reading_has_the_losses_of_answering(session: Session, question: Question) -> None:
    watch = begin_answer(session, question, 4)
    reading = read(session, question, watch.ids, 0)
    losses = reading.losses(Example.of(question, watch.ids, np.stack(watch.rows), 0))
    expected = nll(session, question), 4 * watch.entropy, 0.0
    np.testing.assert_allclose(losses, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["prefix", "soft", "lora", "delta"])
def test_what_was_read_to_judge_is_what_the_answer_goes_on_from(
    session: Session, question: Question, carriers: dict[str, Carrier], name: str
) -> None:
    run = AdaptiveGeneration(session, question, carriers[name], 20, settings=replace(BOLD, rate=0.1), gate=ALWAYS)
    pieces = [next(run)]
    adapter = session.adapter
    assert adapter is not None
    pieces += run
    assert run.result.reused_tokens == len(question.ids) - 1
    session.use(adapter)
    assert session.generate(question.ids, 20).text == "".join(pieces)
    session.use(None)


def test_steps_that_raise_the_loss_are_taken_back(question: Question) -> None:
    class Steep:
        """Losses by how far it went: one step helps, two do not."""

        def __init__(self) -> None:
            self.seen: list[float] = []

        def losses(self, example: Example, tensors: Tensors) -> Losses:
            return self.step(example, tensors, Weights())[0]

        def step(self, example: Example, tensors: Tensors, weights: Weights) -> tuple[Losses, Tensors]:
            self.seen.append(float(tensors["delta"][0]))
            return Losses([3.0, 2.0, 4.0][len(self.seen) - 1], 1.0, 0.0), {"delta": -np.ones(1, np.float32)}

    ids = np.arange(4)
    example, start = Example(ids, 0, ids, ids, ids, np.zeros((4, 9), np.float32)), {"delta": np.zeros(1, np.float32)}
    gradient = Steep()
    found = descend(gradient, example, start, Settings(steps=3, rate=0.01))
    assert (found.steps, float(found.tensors["delta"][0])) == (2, gradient.seen[1])
    assert gradient.seen[1] > 0
    gradient.seen = [0.0]
    assert descend(gradient, example, start, Settings(steps=2)).tensors is start


def test_an_answer_that_is_left_gives_the_session_back(
    session: Session, question: Question, carriers: dict[str, Prefix]
) -> None:
    run = AdaptiveGeneration(session, question, carriers["prefix"], 20, settings=BOLD, gate=ALWAYS)
    next(run)
    assert session.adapter is not None
    run.close()
    assert session.adapter is None


def test_prompts_beyond_the_limit_are_left_alone(
    session: Session, question: Question, carriers: dict[str, Prefix]
) -> None:
    base = session.generate(question.ids, 10)
    run = AdaptiveGeneration(session, question, carriers["prefix"], 10, settings=Settings(longest=8), gate=ALWAYS)
    "".join(run)
    assert (run.result.ids, run.report.gated) == (base.ids, False)
