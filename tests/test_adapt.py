"""Adapting on a tiny bundle: gate, steps, roll-back, files, and that nothing leaks."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from edgellm.export.adapt_facts import own_questions
from edgellm.kernels.sample import uncertainty
from edgellm.runtime import load
from edgellm.runtime.adapter import Adapter, Facts, Tensors, load_adapter, save_adapter
from edgellm.runtime.adaptive import AdaptiveGeneration
from edgellm.runtime.carrier import Delta, Prefix
from edgellm.runtime.cli import main
from edgellm.runtime.cohort import CohortSettings, adapt_cohort, stream_cohort
from edgellm.runtime.errors import EdgellmError, UsageError
from edgellm.runtime.gate import begin_answer, nll
from edgellm.runtime.head import Head
from edgellm.runtime.learning import Settings, descend
from edgellm.runtime.objective import Example, Losses, Weights
from edgellm.runtime.question import Question, asked, plain
from edgellm.runtime.reading import read
from edgellm.runtime.sampling import Sampling
from edgellm.runtime.schema import Gate
from edgellm.runtime.session import Session, shift_logits
from edgellm.runtime.shift import ShiftGradient
from tests.bundles import make_bundle

ALWAYS, NEVER = Gate(-1.0, -1.0, 1, True), Gate(100.0, 100.0, 1, True)
BOLD = Settings(most_kl=10.0)  # a random model moves far in a step
TEXTS = [f"What is {one} of {other}?" for one in ("a letter", "12", "the lamp") for other in ("ships", "March", "sea")]


@pytest.fixture(scope="module")
def bundle(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("adapt") / "bundle"
    make_bundle(tiny_model, out, bits=8, adapt=True)
    return out


@pytest.fixture(scope="module")
def session(bundle: Path) -> Session:
    return load(bundle, threads=1)


@pytest.fixture(scope="module")
def carriers(bundle: Path, session: Session) -> dict[str, Prefix | Delta]:
    return {kind.name: kind(bundle, session.manifest, 1) for kind in (Prefix, Delta)}


@pytest.fixture
def question(session: Session) -> Question:
    assert session.adapter is None
    return asked(session, "Ships and lamps 2024")


def shifted(session: Session, question: Question, size: float = 0.5) -> Adapter:
    """A prefix that is not what the model makes of its tokens."""
    session.use(None)
    session.extend(question.ids)
    rng = np.random.default_rng(0)
    tensors = {
        name: (value + size * rng.normal(size=value.shape)).astype(np.float32)
        for name, value in zip(("key", "value"), session.first(5), strict=True)
    }
    return Adapter(Facts("prefix", session.manifest.weights_sha256, question.ids[:5]), tensors)


def test_only_the_users_text_counts(session: Session, question: Question) -> None:
    assert session.decode([question.ids[i] for i in question.scored]) == "Ships and lamps 2024"
    whole = plain(session, "Ships")
    assert (whole.ids[1:], len(whole.scored)) == (session.encode("Ships")[1:], len(whole.ids) - 1)


@pytest.mark.parametrize("kv", ["full", "window:40", "vatp:40,sinks=2", "h2o:40"])
def test_a_prefix_acts_as_in_its_gradient_graph(
    bundle: Path, question: Question, carriers: dict[str, Prefix], session: Session, kv: str
) -> None:
    """The runtime with its cache of halves and the graph in float32 agree about an adapted model's losses."""
    adapter, own = shifted(session, question), load(bundle, kv=kv, threads=1)
    base = begin_answer(own, question, 4)
    example = Example.of(question, base.ids, np.stack(base.rows), 5)
    expected = carriers["prefix"].graph.losses(example, adapter.tensors)
    own.use(adapter)
    logits = [own.extend(question.ids)]
    logits += [own.step(token) for token in base.ids[:-1]]
    assert sum(uncertainty(row).entropy for row in logits) == pytest.approx(expected.entropy, rel=1e-2)
    assert nll(own, question) == pytest.approx(expected.ida, rel=1e-2)
    kl = sum(
        float(
            torch.nn.functional.kl_div(
                *(torch.tensor(x).log_softmax(0) for x in (ref, row)), log_target=True, reduction="sum"
            )
        )
        for ref, row in zip(base.rows, logits, strict=True)
    )
    assert kl == pytest.approx(expected.kl, rel=2e-2)
    assert kl > 0.1
    session.use(None)


def test_a_prefix_acts_alike_in_a_cache_of_bytes(tiny_model: Path, tmp_path: Path) -> None:
    """int8 keys lie rotated (kernels/kv_rows.py): what is read out is the model's, and goes back in as it was."""
    make_bundle(tiny_model, tmp_path / "bytes", bits=8, adapt=True, kv_bits=8)
    own = load(tmp_path / "bytes", threads=1)
    question = asked(own, "Ships and lamps 2024")
    base = begin_answer(own, question, 4)
    keys, values = own.first(5)
    same = Adapter(Facts("prefix", own.manifest.weights_sha256, question.ids[:5]), {"key": keys, "value": values})
    example = Example.of(question, base.ids, np.stack(base.rows), 5)
    losses = Prefix(tmp_path / "bytes", own.manifest, 1).graph.losses(example, same.tensors)
    assert losses.kl < 1e-2
    own.use(same)
    for row, other in zip(base.rows, begin_answer(own, question, 4).rows, strict=True):
        np.testing.assert_allclose(row, other, atol=1e-3 * np.abs(row).max())


@pytest.mark.parametrize("kv", ["window:24", "vatp:24,sinks=2,recent=4", "tova:24"])
def test_a_prefix_is_never_evicted(bundle: Path, session: Session, question: Question, kv: str) -> None:
    adapter, own = shifted(session, question), load(bundle, kv=kv, threads=1)
    own.use(adapter)
    own.generate(question.ids, 40)
    assert own.kv_evictions > 20
    backend = own._cache.backend
    np.testing.assert_array_equal(
        backend.read_slots("key.1", np.arange(5)), adapter.tensors["key"][1].astype(np.float16)
    )
    again = own.generate(question.ids, 8, keep=True)  # cut back past what was evicted
    own.use(adapter)
    assert again.ids == own.generate(question.ids, 8).ids
    own.use(None)
    plain_session = load(bundle, kv=kv, threads=1)
    assert own.generate(question.ids, 30).ids == plain_session.generate(question.ids, 30).ids
    session.use(None)


def test_a_prefix_needs_room(bundle: Path, session: Session, question: Question) -> None:
    adapter, own = shifted(session, question), load(bundle, kv="window:5,sinks=1", threads=1)
    with pytest.raises(UsageError, match="no room beside an adapter's 5"):
        own.use(adapter)
    assert own.adapter is None
    session.use(None)


@pytest.mark.parametrize("softcap", [0.0, 4.0])
def test_deltas_gradient_is_autograds(session: Session, question: Question, softcap: float) -> None:
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(50, 16)).astype(np.float32)

    class FakeHead(Head):
        def __init__(self) -> None:
            pass

        def shift(self, delta: np.ndarray) -> np.ndarray:
            return weight @ delta

        def gradient(self, slope: np.ndarray) -> np.ndarray:
            return weight.T @ slope

    def capped(z: torch.Tensor) -> torch.Tensor:
        return softcap * torch.tanh(z / softcap) if softcap else z

    raw = torch.tensor(rng.normal(size=(8, 50)).astype(np.float32))
    ids = np.arange(8)
    example = Example(ids, 0, ids[:5], rng.integers(0, 50, 5), ids[5:], capped(raw[5:]).numpy())
    gradient = ShiftGradient(FakeHead(), softcap)
    gradient.observe(example, capped(raw[:5]).numpy())
    delta, weights = rng.normal(size=16).astype(np.float32) * 0.1, Weights(1.3, 0.7, 0.4)
    losses, slopes = gradient.step(example, {"delta": delta}, weights)
    leaf = torch.tensor(delta, requires_grad=True)
    z = capped(raw + torch.tensor(weight) @ leaf).log_softmax(-1)
    ida = -z[torch.arange(5), torch.tensor(example.targets)].mean()
    entropy = -(z[5:].exp() * z[5:]).sum()
    kl = (z[5:].exp() * (z[5:] - capped(raw[5:]).log_softmax(-1))).sum()
    (1.3 * ida + 0.7 * entropy + 0.4 * kl).backward()
    np.testing.assert_allclose(losses, [ida.item(), entropy.item(), kl.item()], rtol=1e-4)
    np.testing.assert_allclose(slopes["delta"], leaf.grad, rtol=1e-3, atol=1e-4)


def test_shifted_logits_are_capped_after_the_shift() -> None:
    rng = np.random.default_rng(0)
    raw, shift = rng.normal(size=(3, 20)).astype(np.float32) * 5, rng.normal(size=20).astype(np.float32)
    logits = 4 * np.tanh(raw / 4)
    shift_logits(logits, shift, 4.0)
    np.testing.assert_allclose(logits, 4 * np.tanh((raw + shift) / 4), atol=2e-3)


def test_a_delta_acts_as_its_losses_say(session: Session, question: Question, carriers: dict[str, Delta]) -> None:
    session.use(None)
    answer = begin_answer(session, question, 4).ids
    base = read(session, question, answer, 0)
    example = Example.of(question, answer, base.answer, 0)
    gradient = carriers["delta"].gradient(example, base.prompt)
    delta = np.random.default_rng(0).normal(size=64).astype(np.float32) * 0.1
    tensors = carriers["delta"].complete({"delta": delta})
    session.use(Adapter(Facts("delta", session.manifest.weights_sha256, []), tensors))
    expected = gradient.losses(example, {"delta": delta})
    np.testing.assert_allclose(read(session, question, answer, 0).losses(example), expected, rtol=1e-3)
    assert expected.kl > 0.1
    session.use(None)


@pytest.mark.parametrize("name", ["prefix", "delta"])
def test_a_gated_question_is_adapted_to_and_forgotten(
    session: Session, question: Question, carriers: dict[str, Prefix | Delta], name: str
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


@pytest.mark.parametrize("name", ["prefix", "delta"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_what_is_not_believed_leaves_the_base_answer(
    session: Session, question: Question, carriers: dict[str, Prefix | Delta], name: str, temperature: float
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


@pytest.mark.parametrize("name", ["prefix", "delta"])
def test_what_was_read_to_judge_is_what_the_answer_goes_on_from(
    session: Session, question: Question, carriers: dict[str, Prefix | Delta], name: str
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


@pytest.mark.parametrize("name", ["prefix", "delta"])
def test_a_cohort_is_learned_from_and_kept(
    bundle: Path, session: Session, carriers: dict[str, Prefix | Delta], tmp_path: Path, name: str
) -> None:
    questions = [asked(session, text) for text in TEXTS]
    settings = CohortSettings(objective="entropy", rate=0.05, check=0.0)
    before = sum(begin_answer(session, question, 4).entropy for question in questions)
    adapter, outcome = adapt_cohort(session, carriers[name], questions, settings)
    assert session.adapter is None
    assert (outcome.questions, outcome.steps, outcome.believed) == (9, 3, 1.0)
    save_adapter(tmp_path / "one.adapter", adapter)
    assert (tmp_path / "one.adapter").stat().st_size < 32768
    fresh = load(bundle, threads=1)
    read = load_adapter(tmp_path / "one.adapter", fresh.manifest)
    assert read.facts == adapter.facts
    fresh.use(read)
    assert sum(begin_answer(fresh, question, 4).entropy for question in questions) < before
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


def command(*arguments: object) -> tuple[int, str, str]:
    done = CliRunner().invoke(main, [str(argument) for argument in arguments])
    return done.exit_code, done.stdout, done.stderr


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
    code, told, _ = command(*asking, "--adapt", "--carrier", "delta")
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


def test_a_bundle_without_the_graph_says_so(tiny_model: Path, tmp_path: Path) -> None:
    make_bundle(tiny_model, tmp_path / "plain", bits=8)
    code, _, error = command("generate", tmp_path / "plain", "-p", "Ships", "--adapt")
    assert code == 2
    assert "Export it again with --adapt" in error


def test_inspect_says_when_it_adapts(bundle: Path) -> None:
    code, told, _ = command("inspect", bundle)
    assert code == 0
    assert "adapts" in told
    assert "48 questions" in told


def test_thresholds_are_measured_at_export(bundle: Path, session: Session) -> None:
    """Of the questions that the model asks itself: a quarter leaves it in more doubt, half are stranger to it."""
    facts = json.loads((bundle / "edgellm.json").read_bytes())["adapt"]["gate"]
    assert facts["chat"] is True
    questions = own_questions(load(bundle, kv="full", threads=1))
    assert facts["prompts"] == len(questions) > 24
    doubts = [begin_answer(session, question, 4).entropy for question in questions]
    strange = [nll(session, question) for question in questions]
    assert np.mean(np.array(doubts) > facts["entropy"]) == pytest.approx(0.25, abs=0.03)
    assert np.mean(np.array(strange) > facts["nll"]) == pytest.approx(0.5, abs=0.03)


def test_a_model_asks_itself_what_its_template_leads_to(session: Session, question: Question) -> None:
    own = own_questions(session)
    assert {tuple(each.ids[: each.scored.start]) for each in own} == {tuple(question.ids[: question.scored.start])}
    assert len({tuple(each.ids) for each in own}) > len(own) / 2
    assert own == own_questions(session)
