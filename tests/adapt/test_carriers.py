"""Carriers in the runtime act as their gradients say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from edgellm.kernels.sample import uncertainty
from edgellm.runtime import load
from edgellm.runtime.adapter import Adapter, Facts
from edgellm.runtime.carrier import Carrier, Delta, Lora, Prefix, Soft
from edgellm.runtime.errors import UsageError
from edgellm.runtime.gate import begin_answer, nll
from edgellm.runtime.head import Head
from edgellm.runtime.objective import Example, Weights
from edgellm.runtime.question import Question, asked, plain
from edgellm.runtime.reading import read
from edgellm.runtime.session import Session, shift_logits
from edgellm.runtime.shift import ShiftGradient
from tests.adapt.examples import shifted
from tests.bundles import make_bundle


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


def test_a_soft_prompt_begins_as_its_tokens_and_acts_as_in_its_graph(
    session: Session, question: Question, carriers: dict[str, Soft]
) -> None:
    carrier, base = carriers["soft"], begin_answer(session, question, 4)
    start = carrier.begin(session, question.ids, 5)
    for made, own in zip(
        (carrier.complete(start.tensors)[name] for name in ("key", "value")), session.first(5), strict=True
    ):
        np.testing.assert_allclose(made, own, atol=2e-3 * np.abs(own).max())
    moved = {"soft": start.tensors["soft"] + np.random.default_rng(0).normal(size=(5, 64)).astype(np.float32)}
    example = Example.of(question, base.ids, np.stack(base.rows), 5)
    expected = carrier.gradient(example, np.zeros((0, 0), np.float32)).losses(example, moved)
    session.use(Adapter(Facts("soft", session.manifest.weights_sha256, start.tokens), carrier.complete(moved)))
    np.testing.assert_allclose(read(session, question, base.ids, 5).losses(example), expected, rtol=2e-2)
    assert expected.kl > 0.1
    session.use(None)


def test_lora_begins_as_the_model_and_acts_as_in_its_graph(
    session: Session, question: Question, carriers: dict[str, Lora]
) -> None:
    carrier, base = carriers["lora"], begin_answer(session, question, 4)
    start = carrier.begin(session, question.ids, 5)
    assert start.tokens == []
    example = Example.of(question, base.ids, np.stack(base.rows), 0)
    gradient, rng = carrier.gradient(example, np.zeros((0, 0), np.float32)), np.random.default_rng(0)
    for size in (0.0, 0.2):
        moved = {
            name: value + np.float32(size) * rng.standard_normal(value.shape, np.float32)
            for name, value in start.tensors.items()
        }
        expected = gradient.losses(example, moved)
        session.use(Adapter(Facts("lora", session.manifest.weights_sha256, []), carrier.complete(moved)))
        found = read(session, question, base.ids, 0).losses(example)
        np.testing.assert_allclose(found, expected, rtol=1e-2, atol=1e-4)
        assert (expected.kl > 0.1) == (size > 0)
    session.use(None)
    assert begin_answer(session, question, 4).ids == base.ids


@pytest.mark.parametrize("name", ["prefix", "soft", "lora"])
def test_carriers_take_turns(session: Session, question: Question, carriers: dict[str, Carrier], name: str) -> None:
    """LoRA's graph takes the model's place over the same cache, and gives it back."""
    base, rng = session.generate(question.ids, 20), np.random.default_rng(0)

    def moved(kind: str) -> Adapter:
        session.use(None)
        session.extend(question.ids)
        start = carriers[kind].begin(session, question.ids, 5)
        tensors = {at: value + rng.standard_normal(value.shape, np.float32) for at, value in start.tensors.items()}
        facts = Facts(kind, session.manifest.weights_sha256, start.tokens)
        return Adapter(facts, carriers[kind].complete(tensors))

    one, lora, said = moved(name), moved("lora"), {}
    for adapter in (one, lora):
        session.use(adapter)
        said[id(adapter)] = session.generate(question.ids, 20).ids
        assert said[id(adapter)] != base.ids
    for adapter in (one, lora, one, None, lora, lora):
        session.use(adapter)
        assert session.generate(question.ids, 20).ids == (said[id(adapter)] if adapter else base.ids)
    session.use(None)
    assert session.generate(question.ids, 20).ids == base.ids


@pytest.mark.parametrize("kv", ["window:24", "vatp:24,sinks=2,recent=4", "vatp:24,sinks=2,prefill=whole"])
def test_lora_evicts_as_the_model_does(bundle: Path, question: Question, carriers: dict[str, Lora], kv: str) -> None:
    own = load(bundle, kv=kv, threads=1)
    base = own.generate(question.ids, 40)
    tensors = carriers["lora"].complete(carriers["lora"].begin(own, [], 0).tensors)
    own.use(Adapter(Facts("lora", own.manifest.weights_sha256, []), tensors))
    again = own.generate(question.ids, 40)
    assert (again.ids, again.kv_evictions) == (base.ids, base.kv_evictions)
    assert base.kv_evictions > 20


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
