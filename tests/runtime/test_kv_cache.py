"""Eviction as a session sees it, over a backend that moves slots by the reference: room, budgets, files, coverage."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgellm.kernels.control import ATTENTION, NORM, OLDER, Control
from edgellm.runtime.errors import EdgellmError, PromptCacheError
from edgellm.runtime.kv_cache import pooled
from edgellm.runtime.kv_policy import kv_policy
from edgellm.runtime.session import Session
from tests.runtime.fakes import FakeBackend, make_session

PROMPT = list(range(100, 140))
SMALL = "sinks=2,recent=4"


def positions(backend: FakeBackend) -> list[int]:
    return [position for position, _ in backend.seen]


def test_what_is_liked_stays() -> None:
    backend = FakeBackend(8)
    backend.liked = frozenset({105, 111})
    session, _ = make_session(backend, kv=f"h2o:10,{SMALL}")
    session.prefill(PROMPT)
    session.step(7)
    kept = positions(backend)
    assert {0, 1, 5, 11, 36, 37, 38, 39, 40} <= set(kept)
    assert len(kept) == 11
    assert session.kv_evictions == 40 - 10  # the newest is staged
    session.step(8)
    assert session.kv_evictions == 41 - 10


def test_a_prompt_that_is_read_whole_is_pruned_by_the_run_after_it() -> None:
    session, backend = make_session(kv=f"h2o:10,{SMALL},prefill=whole")
    session.prefill(PROMPT)
    assert positions(backend) == list(range(40))
    assert backend.capacities == [[48, 48]]
    assert session.kv_evictions == 0
    session.step(7)
    assert len(backend.seen) == 11
    assert {0, 1, 36, 37, 38, 39, 40} <= set(positions(backend))
    assert backend.capacities[-1] == [18, 18]
    assert [Control(*run[3])[:4] for run in backend.runs[-3:]] == [(16, 8, 40, 40), (24, 8, 40, 40), (32, 8, 40, 10)]
    session.step(8)
    assert [Control(*run[3])[:4] for run in backend.runs[-1:]] == [(10, 1, 10, 10)]
    session.extend([*session.tokens, *PROMPT[:10]], keep=True)  # a second turn: nothing goes while it is read
    assert len(backend.seen) == 10 + 1 + 10
    assert backend.capacities[-1] == [29, 29]
    session.step(9)
    assert backend.capacities[-1] == [18, 18]
    assert len(backend.seen) == 11


def test_a_short_prompt_needs_no_room() -> None:
    session, backend = make_session(kv=f"h2o:50,{SMALL},prefill=whole")
    session.prefill(PROMPT)
    session.step(7)
    assert backend.capacities == []


def test_windows_of_queries_end_where_a_whole_prompt_does() -> None:
    session, backend = make_session(kv=f"vatp-window:10,{SMALL},queries=7,prefill=whole")
    session.prefill(PROMPT)
    session.step(7)
    assert {Control(*run[3]).anchor for run in backend.runs} == {40 % 7}
    session, backend = make_session(kv=f"vatp-window:10,{SMALL},queries=7")
    session.prefill(PROMPT)
    assert {Control(*run[3]).anchor for run in backend.runs} == {0}


def test_no_memory_for_a_whole_prompt_leaves_the_sequence(monkeypatch: pytest.MonkeyPatch) -> None:
    session, backend = make_session(kv=f"h2o:10,{SMALL},prefill=whole")
    session.prefill([1, 2, 3])

    def none(layout: object) -> None:
        raise EdgellmError("no memory")

    with monkeypatch.context() as patch:
        patch.setattr(backend, "resize", none)
        with pytest.raises(EdgellmError, match="no memory"):
            session.prefill(PROMPT)
    assert session.tokens == [1, 2, 3]
    session.step(4)
    assert backend.seen == [(0, 1), (1, 2), (2, 3), (3, 4)]


def test_a_prefill_that_is_left_early_prunes_too() -> None:
    session, backend = make_session(kv=f"h2o:10,{SMALL},prefill=whole")
    parts = session.chunks(PROMPT)
    next(parts)
    next(parts)
    parts.close()
    session.step(7)
    session.step(7)
    assert backend.capacities[-1] == [18, 18]
    assert len(backend.seen) == 11


def layered() -> tuple[Session, FakeBackend]:
    policy = kv_policy("h2o", 12, 64, (9, 15), sinks=2, recent=4)
    return make_session(policy=policy)


def test_budgets_a_layer() -> None:
    session, backend = layered()
    session.prefill(PROMPT)
    session.step(7)
    assert len(backend.seen) == 16  # the second layer's
    assert (backend.buffers["key.0"].shape[1], backend.buffers["key.1"].shape[1]) == (17, 23)
    assert session.kv_evictions == 28  # 31 and 25
    assert Control(*backend.runs[-1][3])[:4] == (15, 8, 15, 15)


@pytest.mark.parametrize("kv", [f"h2o:10,{SMALL}", f"vatp:10,{SMALL},prefill=whole", "tova:10", "layered"])
@pytest.mark.parametrize("steps", [0, 2])
def test_files_hold_scores_and_a_cache_goes_on_from_them(tmp_path: Path, kv: str, steps: int) -> None:
    both = [layered() if kv == "layered" else make_session(kv=kv) for _ in "ab"]
    (session, backend), (other, restored) = both
    for one in (backend, restored):
        one.liked = frozenset({105, 111})
    session.prefill(PROMPT)
    for token in range(steps):
        session.step(token)
    session.save_cache(tmp_path / "cache")
    other.prefill([7] * 30)  # to be replaced
    assert other.restore_cache(tmp_path / "cache") == 40 + steps
    assert other.kv_evictions == session.kv_evictions
    for token in (1, 2, 3):
        session.step(token)
        other.step(token)
        assert restored.seen == backend.seen
        assert other.kv_coverage == session.kv_coverage
    assert restored.runs[-1][3] == backend.runs[-1][3]


@pytest.mark.parametrize(
    "ours", [f"h2o:11,{SMALL}", "h2o:10,sinks=3,recent=4", f"vatp:10,{SMALL}", "full", "window:10"]
)
def test_files_of_another_policy_are_refused(tmp_path: Path, ours: str) -> None:
    session, _ = make_session(kv=f"h2o:10,{SMALL}")
    session.prefill(PROMPT)
    session.save_cache(tmp_path / "cache")
    with pytest.raises(PromptCacheError, match="policy h2o:10,sinks=2,recent=4") as caught:
        make_session(kv=ours)[0].restore_cache(tmp_path / "cache")
    assert f"--kv h2o:10,{SMALL}" in caught.value.hint


def test_files_of_other_budgets_a_layer_are_refused(tmp_path: Path) -> None:
    session, _ = make_session(kv="h2o:12,sinks=2,recent=4")
    session.prefill(PROMPT)
    session.save_cache(tmp_path / "cache")
    with pytest.raises(PromptCacheError, match="other budgets a layer"):
        layered()[0].restore_cache(tmp_path / "cache")


def test_coverage() -> None:
    session, _ = make_session()
    session.prefill(PROMPT)
    assert session.kv_coverage == 1.0
    session, _ = make_session(kv="window:10")
    session.prefill(PROMPT)
    assert (session.kv_coverage, session.kv_evictions) == (None, 22)
    session, _ = make_session(kv=f"h2o:10,{SMALL},heads=max")
    session.prefill(PROMPT)
    assert session.kv_coverage is None
    result = session.generate(PROMPT, 5)
    assert (result.kv_evictions, result.kv_coverage) == (33, None)


def test_pooled_scores_are_the_largest_around_each_token_in_the_sequences_order() -> None:
    rng = np.random.default_rng(0)
    score = rng.random((2, 40, 3)).astype(np.float32)
    position = np.stack([rng.permutation(100)[:40] for _ in "ab"]).astype(np.int32)
    found = pooled(score, position, 5)
    np.testing.assert_array_equal(found[..., NORM], score[..., NORM])
    for head in range(2):
        order = list(np.argsort(position[head]))
        for rank, slot in enumerate(order):
            around = order[max(0, rank - 2) : rank + 3]
            for plane in (ATTENTION, OLDER):
                assert found[head, slot, plane] == score[head, around, plane].max()
