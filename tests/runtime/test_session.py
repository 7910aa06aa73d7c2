"""Session logic against a fake backend: chunks, positions, control, stops and errors."""

from __future__ import annotations

import pytest

from edgellm.kernels.control import Control
from edgellm.runtime.errors import ContextError, UsageError
from edgellm.runtime.sampling import Sampling
from tests.runtime.fakes import BOS, CHATML, DATA, STOP, FakeBackend, make_session


def continuation(backend: FakeBackend, prompt: list[int], count: int) -> list[int]:
    ids = list(prompt)
    for _ in range(count):
        ids.append(backend.following(ids[-1], len(ids) - 1))
    return ids[len(prompt) :]


def controls(backend: FakeBackend) -> list[tuple[int, ...]]:
    """(committed, accepted, staged, budget, sinks, policy) of every run, of the last layer."""
    return [Control(*control)[:6] for _, _, _, control in backend.runs]


def test_prefill_runs_in_chunks() -> None:
    session, backend = make_session()
    done: list[tuple[int, int]] = []
    logits = session.prefill(list(range(20)), progress=lambda *at: done.append(at))
    assert [len(ids) for ids, _, _, _ in backend.runs] == [8, 8, 4]
    assert [p for _, positions, _, _ in backend.runs for p in positions] == list(range(20))
    assert [rows for _, _, rows, _ in backend.runs] == [[7], [7], [3]]
    assert controls(backend) == [(0, 0, 64, 64, 4, 0), (0, 8, 64, 64, 4, 0), (8, 8, 64, 64, 4, 0)]
    assert logits.shape == (backend.vocabulary,)
    assert logits.argmax() == backend.following(19, 19)
    assert done == [(8, 20), (16, 20), (20, 20)]


def test_window_control_stops_at_the_budget() -> None:
    session, backend = make_session(kv="window:10")
    session.prefill(list(range(20)))
    session.step(7)
    assert controls(backend) == [
        (0, 0, 10, 10, 4, 1),
        (0, 8, 10, 10, 4, 1),
        (8, 8, 10, 10, 4, 1),
        (10, 4, 10, 10, 4, 1),
    ]


def test_logits_of_every_token() -> None:
    session, backend = make_session()
    session.prefill([1, 2, 3])
    logits = session.logits(list(range(19)))
    assert logits.shape == (19, backend.vocabulary)
    assert logits.argmax(axis=1).tolist() == [backend.following(t, t) for t in range(19)]
    assert [rows for _, _, rows, _ in backend.runs[1:]] == [list(range(8)), list(range(8)), [0, 1, 2]]
    assert session.tokens == list(range(19))


def test_step_continues() -> None:
    session, backend = make_session()
    session.prefill([1, 2, 3])
    logits = session.step(9)
    assert logits.argmax() == backend.following(9, 3)
    assert (backend.runs[-1][:3], controls(backend)[-1]) == (([9], [3], [0]), (0, 3, 64, 64, 4, 0))


def test_greedy_continuation_and_its_facts() -> None:
    session, backend = make_session()
    prompt = [10, 20, 30]
    result = session.generate(prompt, 6)
    assert result.ids == continuation(backend, prompt, 6)
    assert result.text == session.decode(result.ids).rstrip("\ufffd")
    assert (result.prompt_tokens, result.new_tokens, result.decode_steps) == (3, 6, 5)
    assert result.stop_reason == "length"
    assert result.kv_bytes == 4096
    assert result.prefill_s > 0
    assert result.decode_s > 0
    assert result.decode_tokens_per_s > 0
    assert len(backend.runs) == 6  # the last token is not fed


def test_text_prompts_and_pieces() -> None:
    text = "ok 🌍 é"
    session, _ = make_session()
    prompt = session.encode("ab")
    script = dict(enumerate([*session.encode(text), STOP], len(prompt) - 1))
    session, _ = make_session(FakeBackend(8, script=script))
    generation = session.stream("ab", 40)
    pieces = list(generation)
    assert "".join(pieces) == text == generation.result.text
    assert "🌍" in pieces
    assert generation.result.stop_reason == "stop token"
    assert generation.result.ids == session.encode(text)


def test_stop_ids_can_be_given() -> None:
    session, backend = make_session()
    ids = continuation(backend, [1], 5)
    assert session.generate([1], 5, stop=[ids[3]]).ids == ids[:3]
    session, _ = make_session(FakeBackend(8, script={0: STOP, 1: 65}))
    assert session.generate([1], 2, stop=()).ids == [STOP, 65]


def test_stop_at_once() -> None:
    session, _ = make_session(FakeBackend(8, script={0: STOP}))
    result = session.generate([1], 5)
    assert (result.text, result.ids, result.stop_reason, result.decode_tokens_per_s) == ("", [], "stop token", 0.0)


@pytest.mark.parametrize(("kv", "limit"), [("full", 64), ("full:20", 20), ("window:10", 64)])
def test_continuation_stops_at_the_context(kv: str, limit: int) -> None:
    session, backend = make_session(kv=kv)
    result = session.generate([1, 2, 3], 1000)
    assert result.stop_reason == "context"
    assert result.prompt_tokens + result.new_tokens == limit
    assert result.ids == continuation(backend, [1, 2, 3], limit - 3)


def test_prompt_longer_than_the_context() -> None:
    session, backend = make_session()
    with pytest.raises(ContextError, match="65 tokens; the model's context holds 64"):
        session.stream([1] * 65)
    with pytest.raises(ContextError, match=r"21 tokens; the KV cache \(full:20\) holds 20"):
        make_session(kv="full:20")[0].generate([1] * 21)
    session.prefill([1] * 60)
    with pytest.raises(ContextError, match="65 tokens, 60 of them already in the cache"):
        session.prefill([1] * 5)
    session.prefill([1] * 4)
    with pytest.raises(ContextError):
        session.step(1)
    assert len(backend.runs) == 9
    assert session.generate([1] * 64, 5).new_tokens == 0


def test_empty_prompts() -> None:
    session, _ = make_session()
    with pytest.raises(UsageError, match="prompt is empty"):
        session.stream("")
    session, backend = make_session(tokens={"bos": BOS, "add_bos": False, "stop": [], "eos": None})
    session.generate("", 1)
    assert backend.runs[0][0] == [BOS]


def test_bos_is_added_once() -> None:
    session, _ = make_session(tokens={"bos": BOS, "add_bos": True, "stop": [], "eos": None})
    assert session.encode("a") == [BOS, *session.encode("a")[1:]]
    assert session.encode("<|endoftext|>a").count(BOS) == 1
    assert session.encode("") == [BOS]


@pytest.mark.parametrize("token", [-1, 259, 2**70])
def test_ids_outside_the_vocabulary(token: int) -> None:
    session, _ = make_session()
    for call in (session.logits, session.stream, session.prefill):
        with pytest.raises(UsageError, match="outside the vocabulary of 259"):
            call([1, token])


def test_lengths_are_checked() -> None:
    with pytest.raises(UsageError, match="max_new_tokens is 0"):
        make_session()[0].stream([1], 0)


def test_sampling_is_repeatable_and_any_callable_will_do() -> None:
    session, _ = make_session()
    options = Sampling(5.0, top_k=50, seed=3)
    first = session.generate([1, 2], 10, options)
    assert session.generate([1, 2], 10, options).ids == first.ids
    assert session.generate([1, 2], 10, Sampling(5.0, top_k=50, seed=4)).ids != first.ids
    assert session.generate([1], 3, lambda logits: 66).ids == [66] * 3


def test_the_prompt_counts_for_the_repetition_penalty() -> None:
    backend = FakeBackend(8, script={1: 7}, second=9)
    session, _ = make_session(backend)
    assert session.generate([7, 8], 1).ids == [7]
    assert session.generate([7, 8], 1, Sampling(repetition_penalty=2)).ids == [9]
    assert session.generate([6, 8], 1, Sampling(repetition_penalty=2)).ids == [7]


def test_keep_uses_the_cache_as_far_as_it_goes() -> None:
    session, backend = make_session()
    first = session.generate([1, 2, 3], 4)
    cached = list(session.tokens)
    assert cached == [1, 2, 3, *first.ids[:3]]
    backend.runs.clear()
    session.generate([*cached, 50, 51], 1, keep=True)
    assert [ids for ids, _, _, _ in backend.runs] == [[50, 51]]
    assert backend.runs[0][1] == [6, 7]
    backend.runs.clear()
    result = session.generate([1, 99, 3, 4, 5, 6, 7, 8, 9], 1, keep=True)  # another history after the first token
    assert [ids for ids, _, _, _ in backend.runs] == [[99, 3, 4, 5, 6, 7, 8, 9]]
    assert (result.reused_tokens, result.prompt_tokens) == (1, 9)
    backend.runs.clear()
    session.generate([1, 99], 1, keep=True)  # shorter than the cache, which held all of it: the last id runs again
    assert backend.runs[0][:2] == ([99], [1])
    backend.runs.clear()
    assert session.generate([2, 99], 1, keep=True).reused_tokens == 0
    assert backend.runs[0][1] == [0, 1]


@pytest.mark.parametrize("kv", ["full", "full:40", "window:40"])
def test_any_common_beginning_is_reused_until_something_is_evicted(kv: str) -> None:
    before = list(range(100, 130))
    for common in range(len(before) + 1):
        session, backend = make_session(kv=kv)
        session.prefill(before[:28])
        session.step(before[28])
        session.step(before[29])
        ids = [*before[:common], *range(10)]
        backend.runs.clear()
        logits = session.extend(ids, keep=True)
        assert session.reused_tokens == common
        assert sum(len(run[0]) for run in backend.runs) == 10
        assert backend.seen == list(enumerate(ids))
        assert session.tokens == ids
        assert logits.argmax() == backend.following(9, len(ids) - 1)


def test_a_window_that_evicted_is_cut_back_within_its_last_run_only() -> None:
    before = list(range(100, 120))
    for common in range(len(before) + 1):
        session, backend = make_session(kv="window:10")
        session.prefill(before)  # runs of 8, 8, 4: the last one evicts 6 and has staged 16 to 19
        session.extend([*before[:common], 5], keep=True)
        assert session.reused_tokens == (common if common >= 16 else 0)
        assert session.tokens == [*before[:common], 5]
        if common >= 16:  # the sinks, and the newest: as many as committed slots and the staged one take
            kept = [*range(4), *range(common - 6, common)]
            assert backend.seen == [*((at, before[at]) for at in kept), (common, 5)]


def test_a_refused_prompt_leaves_the_sequence() -> None:
    session, _ = make_session()
    session.prefill([1, 2, 3])
    for wrong in ([1, 2, 3] * 30, [1, 999], []):
        with pytest.raises((ContextError, UsageError)):
            session.extend(wrong, keep=True)
        assert session.tokens == [1, 2, 3]
    session.extend([1, 2, 3, 4], keep=True)
    assert session.reused_tokens == 3


def test_without_keep_every_stream_starts_afresh() -> None:
    session, backend = make_session()
    assert session.generate([1, 2], 3).ids == session.generate([1, 2], 3).ids
    assert backend.runs[3][1] == [0, 1]


def test_two_streams_cannot_share_the_cache() -> None:
    session, _ = make_session()
    one = session.stream([65], 20, lambda logits: 66)
    next(one)
    other = session.stream([66], 20, lambda logits: 67)
    next(other)
    with pytest.raises(UsageError, match="another generation"):
        next(one)
    assert len(list(other)) > 1


def test_a_failed_run_forgets_the_sequence() -> None:
    session, backend = make_session()
    session.prefill([1, 2, 3])
    backend.broken = True
    with pytest.raises(RuntimeError):
        session.step(1)
    backend.broken = False
    assert session.tokens == []
    session.prefill([4])
    assert (backend.runs[-1][:3], controls(backend)[-1]) == (([4], [0], [0]), (0, 0, 64, 64, 4, 0))


def test_chat_prompts() -> None:
    session, _ = make_session(template=CHATML)
    ids = session.encode_chat([{"role": "user", "content": "hi"}])
    text = session.tokenizer.decode(ids, skip_special_tokens=False)
    assert text == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    with pytest.raises(UsageError, match="no chat template"):
        make_session()[0].encode_chat([])


def test_reset() -> None:
    session, backend = make_session()
    session.prefill([1, 2])
    session.reset()
    session.prefill([3])
    budget = DATA["kv"]["budget"]
    assert (backend.runs[-1][:3], controls(backend)[-1]) == (([3], [0], [0]), (0, 0, budget, budget, 4, 0))
