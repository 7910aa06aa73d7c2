"""Settings, seeds and what a sampler remembers; the choice itself is tests/kernels/test_sample.py's."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from edgellm.kernels import library
from edgellm.kernels.sample_reference import sample
from edgellm.runtime.errors import BundleError, EdgellmError, UsageError
from edgellm.runtime.sampling import Sampling


@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_a_seed_draws_the_references_tokens_from_pcg64(penalty: float) -> None:
    rng = np.random.default_rng(0)
    for seed in range(50):
        filters = [(0, 1.0, 0.0), (20, 1.0, 0.0), (0, 0.9, 0.0), (9, 0.9, 0.1)][seed % 4]
        options = Sampling(0.8, *filters, penalty, seed)
        choose, again, uniform = options.sampler([1, 1, 7]), options.sampler([1, 1, 7]), np.random.PCG64(seed)
        seen, draw = {1, 7}, np.random.Generator(uniform)
        for _ in range(10):
            logits = rng.normal(size=300).astype(np.float32) * 3
            token = choose(logits)
            assert token == again(logits) == sample(logits, 0.8, *filters, penalty, seen, draw.random())
            seen.add(token)


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


def test_a_missing_native_library(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> Path:
        raise FileNotFoundError("libedgellm_ort.so is not in /nowhere")

    library.library.cache_clear()
    monkeypatch.setattr(library, "library_path", missing)
    with pytest.raises(EdgellmError, match=r"operator library is missing: libedgellm_ort\.so"):
        Sampling().sampler()(np.zeros(3, np.float32))


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
