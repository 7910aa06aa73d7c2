"""Choosing tokens and measuring uncertainty natively, against the reference; and the reference against transformers."""

from __future__ import annotations

import math
from array import array
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgellm.kernels import sample_reference as reference
from edgellm.kernels.sample import sample, uncertainty

SIZES = [1, 2, 5, 40, 255, 256, 257, 700, 3000, 20000]  # around one block of 256, and many
ROUNDING = 1e-12  # of sums: tied tokens may meet top_p or the uniform number within it

logit_lists = st.lists(st.floats(-20, 20, width=32), min_size=1, max_size=40)


def random_logits(rng: np.random.Generator) -> NDArray[np.float32]:
    """A row of one of several spreads; sometimes one token stands out, or some are masked."""
    x = (rng.normal(size=rng.choice(SIZES)) * rng.choice([0.01, 1, 3, 10, 100])).astype(np.float32)
    kind = rng.integers(3)
    if kind == 1:
        x[rng.integers(len(x))] += 8
    if kind == 2:
        x[1:][rng.random(len(x) - 1) < 0.3] = -np.inf
    return x


def random_settings(rng: np.random.Generator, size: int) -> dict[str, Any]:
    return {
        "temperature": float(rng.choice([0, 0.1, 0.7, 1, 1.5, 100, 1e-300])),
        "top_k": int(rng.choice([0, 1, 5, 40, 300, size])),
        "top_p": float(rng.choice([1, 0.95, 0.3, rng.uniform(0.001, 1)])),
        "min_p": float(rng.choice([0, 0, 0.05, rng.random(), 1])),
        "penalty": float(rng.choice([1, 1.1, 2, 0.5])),
        "seen": array("q", np.unique(rng.integers(-2, size + 3, rng.integers(0, 30))).tolist()),
        "uniform": float(rng.random()),
    }


def test_tokens_are_the_references(isa: str) -> None:
    rng = np.random.default_rng(0)
    for _ in range(3000):
        logits = random_logits(rng)
        settings = random_settings(rng, len(logits))
        assert sample(logits, **settings) == reference.sample(logits, **settings), settings


def test_tied_tokens_are_the_references_but_for_the_last_bits_of_sums(isa: str) -> None:
    rng = np.random.default_rng(1)
    for _ in range(1000):
        logits = np.round(random_logits(rng))
        settings = random_settings(rng, len(logits))
        if (token := sample(logits, **settings)) != reference.sample(logits, **settings):
            top_p, uniform = settings["top_p"], settings["uniform"]
            near = [
                settings | {"top_p": p, "uniform": min(max(u, 0.0), 1 - 2**-53)}
                for p in (top_p, top_p - ROUNDING, top_p + ROUNDING)
                for u in (uniform - ROUNDING, uniform, uniform + ROUNDING)
            ]
            assert token in {reference.sample(logits, **other) for other in near}, settings


@pytest.mark.parametrize("spread", [0.0, 2.0])
def test_a_large_vocabulary(isa: str, spread: float) -> None:
    rng = np.random.default_rng(2)
    logits = (rng.normal(size=262_144) * spread).astype(np.float32)
    for top_k, top_p, min_p in ((0, 1, 0), (50, 1, 0), (5000, 0.9, 0), (0, 0.9, 0), (0, 1, 0.2), (50, 0.9, 0.3)):
        settings = {"temperature": 1.3, "top_k": top_k, "top_p": top_p, "min_p": min_p, "uniform": rng.random()}
        assert sample(logits, **settings) == reference.sample(logits, **settings), settings


def test_a_draw_at_the_edge_of_a_token_does_not_depend_on_float32(isa: str) -> None:
    flat = np.zeros(1000, np.float32)
    for token in (1, 255, 256, 600, 999):
        assert sample(flat, 1.0, uniform=token / 1000 + 1e-9) == token
        assert sample(flat, 1.0, uniform=token / 1000 - 1e-9) == token - 1
    # The nucleus has 300 tokens, or one more: then 0.9985 of it falls on the next.
    assert sample(flat, 1.0, top_p=0.3 - 1e-9, uniform=0.9985) == 299
    assert sample(flat, 1.0, top_p=0.3 + 1e-9, uniform=0.9985) == 300


def test_greedy_takes_the_lowest_of_equal_ids(isa: str) -> None:
    logits = np.full(2000, -1, np.float32)
    logits[[700, 701, 1999]] = 3
    assert sample(logits) == 700
    assert sample(np.array([-1, -0.0, 0.0], np.float32)) == 1
    assert sample(logits, penalty=2.0, seen=array("q", [700])) == 701
    assert sample(logits, penalty=2.0, seen=array("q", [5, 700, 701, 1999])) == 700


@pytest.mark.parametrize("place", [0, 17, 256, 999])
@pytest.mark.parametrize("bad", [math.nan, -math.nan, math.inf])
def test_logits_that_are_not_numbers(isa: str, place: int, bad: float) -> None:
    logits = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    logits[place] = bad
    for settings in ({}, {"temperature": 1.0}, {"penalty": 2.0, "seen": array("q", [place])}):
        with pytest.raises(FloatingPointError):
            sample(logits, **settings)
        with pytest.raises(FloatingPointError):
            reference.sample(logits, **settings)
    assert all(math.isnan(value) for value in uncertainty(logits))


def test_masked_logits(isa: str) -> None:
    logits = np.full(1000, -np.inf, np.float32)
    with pytest.raises(FloatingPointError):
        sample(logits)
    logits[800] = -5
    assert sample(logits) == sample(logits, 1.0, uniform=0.999) == 800
    assert sample(logits, 1.0, top_k=3, uniform=0.999) == 800
    assert uncertainty(logits) == pytest.approx((0, -5, 1))


def test_rows_are_read_in_place_and_not_changed() -> None:
    logits = np.arange(600, dtype=np.float32)
    logits.flags.writeable = False
    assert sample(logits, 1.0, top_k=1, penalty=100.0, seen=array("q", [-7, 599, 600, 9999])) == 598
    assert sample(np.stack([logits, logits])[:, ::2][0]) == 299
    np.testing.assert_array_equal(logits, np.arange(600))
    for odd in (logits[None], logits[:0]):
        for read in (sample, uncertainty):
            with pytest.raises(ValueError, match=r"expected \[V\]"):
                read(odd)


def test_uncertainty_is_the_references(isa: str) -> None:
    rng = np.random.default_rng(3)
    for _ in range(300):
        logits = random_logits(rng)
        assert uncertainty(logits) == pytest.approx(reference.uncertainty(logits), rel=1e-5, abs=1e-5)
    assert uncertainty(np.full(262_144, 7, np.float32)).entropy == pytest.approx(math.log(262_144), rel=1e-6)


@given(logit_lists, st.floats(0.01, 1))
def test_top_p_keeps_the_smallest_set_that_reaches_p(logits: list[float], top_p: float) -> None:
    p = softmax(logits)
    ids, kept = reference.candidates(p, top_p=top_p)
    assert kept.sum() >= top_p - 1e-9
    if top_p < 1:
        assert len(ids) == 1 or kept.sum() - kept.min() < top_p + 1e-9
    assert p[ids].min() >= np.delete(p, ids).max(initial=0)


@given(logit_lists, st.integers(1, 50))
def test_top_k_keeps_exactly_k_of_the_likeliest(logits: list[float], top_k: int) -> None:
    p = softmax(logits)
    ids, _ = reference.candidates(p, top_k=top_k)
    assert len(set(ids.tolist())) == min(top_k, len(p))
    assert p[ids].min() >= np.delete(p, ids).max(initial=0)


def test_candidates_are_those_of_transformers() -> None:
    from transformers.generation import logits_process

    rng = np.random.default_rng(4)
    for _ in range(200):
        scores = rng.normal(size=rng.integers(2, 300)) * rng.choice([0.5, 3])
        top_k, top_p, min_p = int(rng.choice([1, 5, 40])), float(rng.uniform(0.05, 0.99)), float(rng.uniform(0.01, 0.5))
        kept = torch.from_numpy(scores)[None]
        for filtered in (
            logits_process.TopKLogitsWarper(top_k),
            logits_process.TopPLogitsWarper(top_p),
            logits_process.MinPLogitsWarper(min_p),
        ):
            kept = filtered(torch.zeros(1, 0, dtype=torch.long), kept)
        ids, _ = reference.candidates(softmax(scores), top_k, top_p, min_p)
        assert sorted(ids.tolist()) == torch.isfinite(kept[0]).nonzero()[:, 0].tolist()


def test_repetition_penalty_divides_positive_and_multiplies_negative() -> None:
    scores = reference.penalize(np.array([2.0, -2.0, 2.0, 0.0]), [0, 1, 3, 99, 0], 2.0)
    assert scores.tolist() == [1.0, -4.0, 2.0, 0.0]


def softmax(logits: Any) -> NDArray[np.float64]:
    powers = np.exp(np.asarray(logits, np.float64) - np.max(logits))
    p: NDArray[np.float64] = powers / powers.sum()
    return p
