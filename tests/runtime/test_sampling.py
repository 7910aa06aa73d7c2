"""Sampling against a slow, obvious reference, and by its properties."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgellm.runtime.errors import BundleError, UsageError
from edgellm.runtime.sampling import Sampling, candidates, penalize

logit_lists = st.lists(st.floats(-20, 20, width=32), min_size=1, max_size=40)
probability = st.floats(0.01, 1)


def softmax(logits: list[float]) -> list[float]:
    powers = [math.exp(x - max(logits)) for x in logits]
    return [p / sum(powers) for p in powers]


def reference(p: list[float], top_k: int, top_p: float, min_p: float) -> list[int]:
    """Sort everything; cut; keep while what came before weighs less than p."""
    order = sorted(range(len(p)), key=lambda i: (-p[i], i))
    if top_k:
        order = order[:top_k]
    total, nucleus, weight = sum(p[i] for i in order), [], 0.0
    for i in order:
        if nucleus and top_p < 1 and weight >= top_p * total:
            break
        nucleus.append(i)
        weight += p[i]
    return [i for i in nucleus if p[i] >= min_p * p[nucleus[0]]]


@given(logit_lists, st.integers(0, 50), probability, st.floats(0, 1))
def test_candidates_are_the_references(logits: list[float], top_k: int, top_p: float, min_p: float) -> None:
    p = softmax(logits)
    found = set(candidates(np.array(p), top_k, top_p, min_p)[0].tolist())
    expected = set(reference(p, top_k, top_p, min_p))
    if found != expected:  # sums taken in another order may differ in the last bit, at the nucleus's edge
        assert len(found ^ expected) == 1
        assert min(abs(sum(sorted(p, reverse=True)[:n]) / s - top_p) for n in range(len(p) + 1)
                   for s in (sum(p), sum(sorted(p, reverse=True)[: top_k or None]))) < 1e-9  # fmt: skip


@given(logit_lists, probability)
def test_top_p_keeps_the_smallest_set_that_reaches_p(logits: list[float], top_p: float) -> None:
    p = np.array(softmax(logits))
    ids, kept = candidates(p, top_p=top_p)
    assert kept.sum() >= top_p - 1e-9
    if top_p < 1:
        assert len(ids) == 1 or kept.sum() - kept.min() < top_p + 1e-9
    assert p[ids].min() >= np.delete(p, ids).max(initial=0)


@given(logit_lists, st.integers(1, 50))
def test_top_k_keeps_exactly_k_of_the_likeliest(logits: list[float], top_k: int) -> None:
    p = np.array(softmax(logits))
    ids, _ = candidates(p, top_k=top_k)
    assert len(set(ids.tolist())) == min(top_k, len(p))
    assert p[ids].min() >= np.delete(p, ids).max(initial=0)


@given(logit_lists, st.integers(0, 5), probability, st.floats(0, 1), st.integers(0, 2**70))
def test_a_draw_is_repeatable_and_a_candidate(
    logits: list[float], top_k: int, top_p: float, min_p: float, seed: int
) -> None:
    options = Sampling(0.8, top_k, top_p, min_p, seed=seed)
    array = np.array(logits, np.float32)
    a, b = options.sampler(), options.sampler()
    drawn = [a(array) for _ in range(5)]
    assert drawn == [b(array) for _ in range(5)]
    p = np.array(softmax([x / 0.8 for x in array.astype(float)]))
    assert set(drawn) <= set(candidates(p, top_k, top_p, min_p)[0].tolist()) or top_p < 1 or min_p > 0


def test_draws_follow_the_probabilities() -> None:
    p = [0.5, 0.3, 0.15, 0.05]
    choose = Sampling(1.0, seed=0).sampler()
    logits = np.log(np.array(p, np.float32))
    counts = Counter(choose(logits) for _ in range(4000))
    for token, expected in enumerate(p):
        assert counts[token] / 4000 == pytest.approx(expected, abs=0.03)


def test_greedy_takes_the_first_maximum() -> None:
    assert Sampling().sampler()(np.array([0, 3, 3, 1], np.float32)) == 1


def test_tiny_and_huge_temperatures() -> None:
    logits = np.array([-1e30, 2, 1, -np.inf], np.float32)
    assert Sampling(1e-300, seed=1).sampler()(logits) == 1
    assert {Sampling(100, seed=s).sampler()(logits) for s in range(50)} == {1, 2}


def test_repetition_penalty_divides_positive_and_multiplies_negative() -> None:
    scores = penalize(np.array([2.0, -2.0, 2.0, 0.0]), {0, 1, 3, 99}, 2.0)
    assert scores.tolist() == [1.0, -4.0, 2.0, 0.0]


def test_repetition_penalty_counts_prompt_and_own_tokens() -> None:
    choose = Sampling(repetition_penalty=2.0).sampler([0])
    logits = np.array([4, 3, 2.5, 0], np.float32)
    assert [choose(logits) for _ in range(3)] == [1, 2, 0]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_logits_that_are_not_numbers(bad: float) -> None:
    for options in (Sampling(), Sampling(1.0)):
        with pytest.raises(BundleError, match="not numbers"):
            options.sampler()(np.array([bad] * 3, np.float32))
    with pytest.raises(BundleError):
        Sampling().sampler()(np.array([1, math.nan], np.float32))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", math.inf),
        ("temperature", math.nan),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.01),
        ("min_p", -0.5),
        ("min_p", 2.0),
        ("repetition_penalty", 0.0),
        ("seed", -1),
    ],
)
def test_ranges_are_checked(name: str, value: float) -> None:
    with pytest.raises(UsageError) as caught:
        Sampling(**{name: value})  # type: ignore[arg-type]
    assert f"{name} is {value}; expected" in caught.value.what
