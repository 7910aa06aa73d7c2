"""When a bundle adapts: what is measured at its export."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from edgellm.export.adapt_facts import own_questions
from edgellm.runtime import load
from edgellm.runtime.gate import begin_answer, nll
from edgellm.runtime.question import Question
from edgellm.runtime.session import Session
from tests.adapt.examples import command


def test_inspect_says_when_it_adapts(bundle: Path) -> None:
    code, told, _ = command("inspect", bundle)
    assert code == 0
    assert "adapts" in told
    assert "48 questions" in told


def test_thresholds_are_measured_at_export(bundle: Path, session: Session) -> None:
    """Of the questions that the model asks itself: of seven one leaves it in more doubt, half are stranger to it."""
    facts = json.loads((bundle / "edgellm.json").read_bytes())["adapt"]["gate"]
    assert facts["chat"] is True
    questions = own_questions(load(bundle, kv="full", threads=1))
    assert facts["prompts"] == len(questions) > 24
    doubts = [begin_answer(session, question, 4).entropy for question in questions]
    strange = [nll(session, question) for question in questions]
    assert np.mean(np.array(doubts) > facts["entropy"]) == pytest.approx(0.15, abs=0.03)
    assert np.mean(np.array(strange) > facts["nll"]) == pytest.approx(0.5, abs=0.03)


def test_a_model_asks_itself_what_its_template_leads_to(session: Session, question: Question) -> None:
    own = own_questions(session)
    assert {tuple(each.ids[: each.scored.start]) for each in own} == {tuple(question.ids[: question.scored.start])}
    assert len({tuple(each.ids) for each in own}) > len(own) / 2
    assert own == own_questions(session)
