"""The cache's layout and the cursor."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgellm.kernels.control import Control
from edgellm.runtime.cache import CacheLayout
from edgellm.runtime.cursor import Cursor
from edgellm.runtime.kv_policy import parse_kv


@pytest.mark.parametrize(("bits", "row"), [(16, 16), (8, 20)])
def test_layout_counts_its_bytes(bits: int, row: int) -> None:
    layout = CacheLayout(parse_kv("window:100", 2048), 28, layers=3, kv_heads=2, head_dim=16, bits=bits)
    assert layout.capacity(2) == 128
    buffers = layout.buffers()
    assert [name for name, _, _ in buffers[4:8]] == ["key.1", "value.1", "position.1", "score.1"]
    assert buffers[0][1] == (2, 128, row)
    assert sum(int(np.prod(shape)) * np.dtype(dtype).itemsize for _, shape, dtype in buffers) == layout.nbytes


@given(st.lists(st.integers(1, 8), max_size=30), st.integers(5, 40))
def test_cursor_mirrors_the_operator(runs: list[int], budget: int) -> None:
    cursor, before = Cursor(parse_kv(f"window:{budget}", 64), 2), 0
    for tokens in runs:
        for row in cursor.control(tokens).tolist():
            committed, accepted, *rest = row
            assert Control(0, 0, *rest) == Control(0, 0, budget, budget, 4, 1)
            assert min(budget, committed + accepted) == min(budget, before)
        cursor.advance(tokens, tokens)
        before += tokens
    cursor.reset()
    assert cursor.control(1)[:, :2].tolist() == [[0, 0]] * 2


@given(st.lists(st.integers(1, 8), min_size=1, max_size=12), st.integers(5, 40), st.data())
def test_cutting_back_keeps_a_beginning_or_nothing(runs: list[int], budget: int, data: st.DataObject) -> None:
    """Against a cursor that never ran the tokens which are cut off, as far as the last run goes."""
    cursor = Cursor(parse_kv(f"window:{budget}", 64), 2)
    for tokens in runs:
        cursor.advance(tokens, tokens)
    fed, older = sum(runs), sum(runs[:-1])
    evicted = fed - len(cursor.slots(1))
    wanted = data.draw(st.integers(0, fed))
    kept = cursor.cut_back(wanted)
    assert kept == cursor.fed == (0 if evicted and wanted < older else wanted)
    assert len(cursor.slots(1)) == max(0, kept - evicted)
    if wanted > older:
        other = Cursor(cursor.policy, 2)
        for tokens in [*runs[:-1], wanted - older]:
            other.advance(tokens, tokens)
        assert other == cursor
