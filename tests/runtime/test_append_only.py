"""The session's protocol over a graph whose cache only grows, with a runner that is arithmetic."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgellm.runtime.append_only import AppendOnly
from edgellm.runtime.cache import CacheLayout
from edgellm.runtime.cursor import Cursor
from edgellm.runtime.errors import UsageError
from edgellm.runtime.kv_policy import parse_kv

CAPACITY, CONTEXT = 32, 64


class Sums:
    """Logits of a token: the sum of all ids up to it, told from the cache; ids are their own embedding."""

    def __init__(self) -> None:
        self.cache = {"key.0": np.full((1, 1, CAPACITY, 1), np.nan, np.float16)}
        self.runs: list[tuple[int, int]] = []

    @property
    def kv_bytes(self) -> int:
        return 64

    def run(self, feed: dict[str, NDArray[Any]]) -> NDArray[np.float32]:
        start, count = int(feed["start"][0]), len(feed["embedded"])
        self.runs.append((count, len(feed["rows"])))
        assert feed["positions"].tolist() == list(range(start, start + count))
        self.cache["key.0"][0, 0, start : start + count, 0] = feed["embedded"][:, 0]
        seen = self.cache["key.0"][0, 0, : start + count, 0].astype(np.float32)
        return np.cumsum(seen)[start + feed["rows"]][:, None]

    def read(self, name: str) -> NDArray[Any]:
        return self.cache[name].copy()

    def write(self, name: str, values: NDArray[Any]) -> None:
        self.cache[name] = values


def backend(runner: Sums, kv: str = "full:32") -> tuple[AppendOnly, CacheLayout]:
    layout = CacheLayout(parse_kv(kv, CONTEXT), 16, 1, 1, 1)
    return AppendOnly(runner, lambda ids: ids.astype(np.float32)[:, None], layout, CAPACITY, (8, 2)), layout


def step(it: AppendOnly, cursor: Cursor, ids: list[int], rows: list[int]) -> list[float]:
    positions = np.arange(cursor.fed, cursor.fed + len(ids))
    logits = it.step(np.array(ids), positions, np.array(rows), cursor.control(len(ids)))
    cursor.advance(len(ids), len(ids))
    return [float(row) for row in logits[:, 0]]


def test_runs_longer_than_the_graph_takes_are_split_and_rows_keep_their_order() -> None:
    runner = Sums()
    it, layout = backend(runner)
    cursor = Cursor(layout.policy, 1)
    ids = list(range(1, 13))
    assert step(it, cursor, ids, [11, 0, 5]) == [78.0, 1.0, 21.0]
    assert max(tokens for tokens, _ in runner.runs) <= 8
    assert max(rows for _, rows in runner.runs) <= 2
    assert step(it, cursor, [100], [0]) == [178.0]
    assert runner.runs[-1] == (1, 1)


def test_a_sequence_is_cut_back_by_writing_over_it() -> None:
    it, layout = backend(Sums())
    cursor = Cursor(layout.policy, 1)
    step(it, cursor, [1, 2, 3], [2])
    step(it, cursor, [4, 5], [1])
    for keep, expected in ((4, 17.0), (2, 10.0), (0, 7.0)):  # a staged one dropped, committed ones, all
        assert cursor.cut_back(keep) == keep
        assert step(it, cursor, [7], [0]) == [expected]


def test_slots_are_read_where_the_session_thinks_they_are() -> None:
    runner = Sums()
    it, layout = backend(runner, "full:20")
    cursor = Cursor(layout.policy, 1)
    step(it, cursor, [1, 2, 3], [2])
    step(it, cursor, [4, 5], [1])
    slots = cursor.slots(0)
    assert slots.tolist() == [0, 1, 2, 20, 21]  # two are staged behind the budget
    assert it.read_slots("key.0", slots)[0, :, 0].tolist() == [1, 2, 3, 4, 5]
    assert it.read_slots("position.0", slots)[0].tolist() == [0, 1, 2, 3, 4]
    other, _ = backend(Sums(), "full:20")
    other.write_slots("key.0", np.arange(5), it.read_slots("key.0", slots))
    restored = Cursor(layout.policy, 1)
    restored.committed, restored.fed = [5], 5
    assert step(other, restored, [6], [0]) == [21.0]


@pytest.mark.parametrize("kv", ["window:16", "vatp:32,sinks=4", "full:33"])
def test_what_standard_operators_cannot_have_is_refused(kv: str) -> None:
    with pytest.raises(UsageError, match="32 slots"):
        backend(Sums(), kv)
