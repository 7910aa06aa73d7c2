"""Adapting to a set of questions, adapter files, and the verbs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgellm.kernels.sample import uncertainty
from edgellm.runtime import load
from edgellm.runtime.adapter import Adapter, Facts, load_adapter, save_adapter
from edgellm.runtime.bundle_files import LORA_GRAPH
from edgellm.runtime.carrier import CARRIERS, Carrier, Delta, Prefix
from edgellm.runtime.cohort import CohortSettings, adapt_cohort, stream_cohort
from edgellm.runtime.errors import BundleError, EdgellmError, UsageError
from edgellm.runtime.gate import begin_answer
from edgellm.runtime.low_rank import first_updates
from edgellm.runtime.question import Question, asked
from edgellm.runtime.reading import read
from edgellm.runtime.session import Session
from tests.adapt.examples import TEXTS, command, shifted
from tests.bundles import make_bundle


@pytest.mark.parametrize("name", ["prefix", "soft", "lora", "delta"])
def test_a_cohort_is_learned_from_and_kept(
    bundle: Path, session: Session, carriers: dict[str, Carrier], tmp_path: Path, name: str
) -> None:
    questions = [asked(session, text) for text in TEXTS]
    settings = CohortSettings(objective="entropy", rate=0.05, check=0.0)
    said = [begin_answer(session, question, 4).ids for question in questions]

    def doubt(own: Session) -> float:
        both = zip(questions, said, strict=True)
        return sum(uncertainty(row).entropy for one, ids in both for row in read(own, one, ids, 0).answer)

    before = doubt(session)
    adapter, outcome = adapt_cohort(session, carriers[name], questions, settings)
    assert session.adapter is None
    assert (outcome.questions, outcome.steps, outcome.believed) == (9, 3, 1.0)
    save_adapter(tmp_path / "one.adapter", adapter)
    assert (tmp_path / "one.adapter").stat().st_size < 32768
    fresh = load(bundle, threads=1)
    found = load_adapter(tmp_path / "one.adapter", fresh.manifest)
    assert found.facts == adapter.facts
    fresh.use(found)
    assert doubt(fresh) < before - 1
    session.use(adapter)
    assert fresh.generate(questions[0].ids, 12).ids == session.generate(questions[0].ids, 12).ids
    with pytest.raises(UsageError, match="while an adapter is in use"):
        session.save_cache(tmp_path / "cache")
    snapshot = session.snapshot()
    session.use(None)
    with pytest.raises(UsageError, match="made with another adapter"):
        session.resume(snapshot)


def test_what_does_not_help_on_questions_held_back_is_refused(session: Session, carriers: dict[str, Prefix]) -> None:
    questions = [asked(session, text) for text in TEXTS * 3]
    with pytest.raises(EdgellmError, match="nothing was learned that can be believed: on questions held back"):
        adapt_cohort(session, carriers["prefix"], questions, CohortSettings(rate=0.5, most_kl=0.0))
    assert session.adapter is None


def test_doubt_that_was_not_aimed_at_does_not_count_against_what_was_learned(
    session: Session, carriers: dict[str, Delta]
) -> None:
    questions = [asked(session, text) for text in TEXTS * 3]
    _, outcome = adapt_cohort(session, carriers["delta"], questions, CohortSettings(rate=0.02))
    assert outcome.before.ida - outcome.after.ida > 0.1
    assert outcome.after.entropy > outcome.before.entropy
    assert outcome.believed == 1.0


def test_both_references_and_all_objectives_learn_something_else(session: Session, carriers: dict[str, Prefix]) -> None:
    questions = [asked(session, text) for text in TEXTS[:4]]
    found = []
    for objective, reference in (("sytta", "static"), ("sytta", "dynamic"), ("tlm", "static"), ("entropy", "static")):
        settings = CohortSettings(objective=objective, reference=reference, rate=0.1, batch=1, check=0.0)
        found.append(adapt_cohort(session, carriers["prefix"], questions, settings)[0].tensors["value"])
    for i, one in enumerate(found):
        for other in found[:i]:
            assert not np.array_equal(one, other)


def test_a_stream_answers_before_it_learns(session: Session, carriers: dict[str, Prefix]) -> None:
    questions = [asked(session, text) for text in TEXTS[:3]]
    base = [session.generate(question.ids, 6).text for question in questions]
    settings = CohortSettings(rate=0.2)
    answers = [text for text, _ in stream_cohort(session, carriers["prefix"], questions, settings, 6)]
    assert answers[0] == base[0]
    assert answers[1:] != base[1:]
    assert session.adapter is None


def test_verbs(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "q.txt").write_text("\n".join(TEXTS))
    out = tmp_path / "one.adapter"
    learn = ["adapt", bundle, "--questions", tmp_path / "q.txt", "-o", out, "--threads", 1]
    code, told, _ = command(*learn, "--json", "--mode", "stream", "-n", 4)
    assert code == 0
    facts = json.loads(told)
    assert (facts["questions"], len(facts["answers"]), facts["bytes"]) == (9, 9, out.stat().st_size)
    asking = ["generate", bundle, "-p", "Ships?", "-n", 8, "--chat", "--json", "--threads", 1]
    code, told, _ = command(*asking, "--adapter", out)
    assert (code, json.loads(told)["adapter"]) == (0, str(out))
    code, told, _ = command(*asking, "--adapter", tmp_path)  # about other ships, but about ships
    assert code == 0
    for carrier in CARRIERS:
        code, told, _ = command(*asking, "--adapt", "--carrier", carrier)
        report = json.loads(told)["adapt"]
        assert {"entropy", "gated", "nll", "steps", "accepted", "entropy_after", "kl", "extra_s"} <= set(report)
    code, _, told = command(*asking, "--adapt", "--adapter", out)
    assert (code, "not from an adapter" in told) == (2, True)
    code, _, told = command(*asking, "--adapt", "--prompt-cache", tmp_path / "none")
    assert (code, told.splitlines()[0]) == (2, "error: --prompt-cache with an adapter: a cache is of the model alone")


def test_a_folders_adapters_are_listed(bundle: Path, session: Session, question: Question, tmp_path: Path) -> None:
    adapter = shifted(session, question)
    mine = replace(adapter.facts, learned={"mode": "cohort", "objective": "tlm", "questions": 9})
    save_adapter(tmp_path / "farm.adapter", replace(adapter, facts=mine))
    save_adapter(tmp_path / "other.adapter", replace(adapter, facts=replace(mine, model="0" * 64)))
    (tmp_path / "torn.adapter").write_bytes((tmp_path / "farm.adapter").read_bytes()[:-9])
    (tmp_path / "notes.txt").write_text("no adapter")
    code, told, _ = command("adapters", bundle, tmp_path, "--json")
    farm, other, torn = json.loads(told)["adapters"]
    assert (code, [each["file"] for each in (other, torn)]) == (0, ["other.adapter", "torn.adapter"])
    size = (tmp_path / "farm.adapter").stat().st_size
    assert {key: farm[key] for key in ("carrier", "questions", "objective", "bytes", "fits", "why_not")} == {
        "carrier": "prefix", "questions": 9, "objective": "tlm", "bytes": size, "fits": True, "why_not": None
    }  # fmt: skip
    assert (other["fits"], other["carrier"]) == (False, "prefix")
    assert "made with another model" in other["why_not"]
    assert (torn["fits"], torn["carrier"]) == (False, None)
    code, told, _ = command("adapters", bundle, tmp_path)
    assert code == 0
    assert "cohort, tlm" in told
    (tmp_path / "empty").mkdir()
    assert "has no *.adapter files" in command("adapters", bundle, tmp_path / "empty")[1]
    code, _, told = command("adapters", bundle, tmp_path / "none")
    assert (code, "is no folder" in told) == (2, True)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "has no questions"),
        ('["a", 3]', "entry 2 has no question"),
        ("[1", "is no JSON list"),
        ('{"question"', "is no JSON lines"),
    ],
)
def test_bad_questions_are_told(bundle: Path, tmp_path: Path, content: str, told: str) -> None:
    path = tmp_path / "q.json"
    path.write_text(content)
    code, _, error = command("adapt", bundle, "--questions", path, "-o", tmp_path / "x.adapter")
    assert code == 2
    assert told in error


@pytest.fixture(scope="module")
def plain_bundle(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("plain") / "bundle"
    make_bundle(tiny_model, out, bits=8)
    return out


@pytest.mark.parametrize("name", list(CARRIERS))
def test_a_bundle_without_the_graph_says_so(plain_bundle: Path, name: str) -> None:
    code, _, error = command("generate", plain_bundle, "-p", "Ships", "--adapt", "--carrier", name)
    assert code == 2
    assert "Export it again with --adapt" in error


def test_a_bundle_without_loras_graph_refuses_its_adapters(plain_bundle: Path, tmp_path: Path) -> None:
    session = load(plain_bundle, threads=1)
    updates = first_updates(session.manifest.model)
    save_adapter(tmp_path / "x.adapter", Adapter(Facts("lora", session.manifest.weights_sha256, []), updates))
    code, _, error = command("generate", plain_bundle, "-p", "Ships", "--adapter", tmp_path / "x.adapter")
    assert code == 1
    assert "it has no model-lora.onnx" in error
    assert "Export it again with --adapt" in error


def test_a_damaged_graph_of_loras_leaves_the_session_as_it_was(bundle: Path, question: Question) -> None:
    session = load(bundle, threads=1)
    base = session.generate(question.ids, 8).ids
    adapter = Adapter(Facts("lora", session.manifest.weights_sha256, []), first_updates(session.manifest.model))
    whole = (bundle / LORA_GRAPH).read_bytes()
    try:
        (bundle / LORA_GRAPH).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(BundleError, match=r"model-lora\.onnx cannot be loaded"):
            session.use(adapter)
    finally:
        (bundle / LORA_GRAPH).write_bytes(whole)
    assert session.adapter is None
    assert session.generate(question.ids, 8).ids == base
    session.use(adapter)
    assert session.generate(question.ids, 8).ids == base
