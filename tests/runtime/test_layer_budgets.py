"""Budgets a layer: within their range, of the mean asked for, and ordered as the layers' needs."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgellm.runtime.errors import UsageError
from edgellm.runtime.kv_policy import parse_kv
from edgellm.runtime.layer_budgets import spread


@given(
    st.lists(st.integers(1, 2000), min_size=1, max_size=40),
    st.integers(1, 50),
    st.integers(0, 300),
    st.integers(0, 3000),
)
def test_the_mean_is_exact_and_needs_keep_their_order(weights: list[int], least: int, more: int, room: int) -> None:
    mean = least + more
    budgets = spread(weights, mean, least, mean + room)
    assert sum(budgets) == mean * len(weights)
    assert all(least <= budget <= mean + room for budget in budgets)
    order = np.argsort(weights, kind="stable")
    assert all(budgets[b] >= budgets[a] - 1 for a, b in itertools.pairwise(order))


def test_equal_needs_get_equal_budgets_and_others_in_proportion() -> None:
    assert spread([7, 7, 7], 100, 1, 1000) == (100, 100, 100)
    assert spread([10, 20, 30], 200, 1, 1000) == (100, 200, 300)
    assert spread([10, 20, 30], 200, 1, 250) == (117, 233, 250)
    with pytest.raises(UsageError, match="a mean KV budget of 9 tokens is outside 10 to 20"):
        spread([1, 2], 9, 10, 20)


def test_a_bundles_budgets_share_any_other() -> None:
    policy = parse_kv("vatp:200,layers=prefix", 2048, [100, 300])
    assert policy.budgets == (100, 300)
    assert str(policy) == "vatp:200,layers=prefix"
    assert parse_kv("vatp:60,layers=prefix", 2048, [10, 300]).budgets == (42, 78)  # 20 sinks, and half is recent
    assert parse_kv("vatp:200", 2048, [100, 300]).budgets == ()
    with pytest.raises(UsageError, match="this bundle has no budgets a layer"):
        parse_kv("vatp:200,layers=prefix", 2048, [])
    with pytest.raises(UsageError, match="expected alike or prefix"):
        parse_kv("vatp:200,layers=suffix", 2048)
    with pytest.raises(UsageError, match='has no setting "layers"'):
        parse_kv("window:200,layers=prefix", 2048)
