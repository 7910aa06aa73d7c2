"""Perplexity against a direct sum."""

from __future__ import annotations

import math

import numpy as np
import pytest

from edgellm.runtime.errors import UsageError
from edgellm.runtime.perplexity import score, surprise
from tests.runtime.fakes import make_session


def test_windows_score_all_but_their_first_token() -> None:
    session, backend = make_session()
    ids = session.encode("The quick brown fox 🌍 jumps over.")
    done: list[tuple[int, int]] = []
    found = score(session, ids, 10, lambda *at: done.append(at))
    nats, tokens = 0.0, 0
    for start in range(0, len(ids), 10):
        part = ids[start : start + 10]
        for i in range(1, len(part)):
            high = backend.following(part[i - 1], i - 1) == part[i]
            nats += math.log(math.exp(5) + backend.vocabulary - 1) - 5 * high
            tokens += 1
    assert found.nats == pytest.approx(nats)
    assert found.tokens == tokens == len(ids) - math.ceil(len(ids) / 10)
    assert found.perplexity == pytest.approx(math.exp(nats / tokens))
    assert found.bits_per_byte == pytest.approx(nats / math.log(2) / found.text_bytes)
    assert done[-1] == (len(ids), len(ids))
    assert max(len(run[0]) for run in backend.runs) == 8


def test_a_last_window_of_one_token_does_not_count() -> None:
    session, _ = make_session()
    assert score(session, [65] * 21, 10).tokens == 18
    assert score(session, [65] * 22, 10).tokens == 19
    assert score(session, [65] * 22, 10).text_bytes == 19


def test_surprise_is_cross_entropy() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(5, 7)).astype(np.float32) * 30
    ids = rng.integers(0, 7, 5)
    shifted = logits.astype(float) - np.log(np.exp(logits.astype(float)).sum(1, keepdims=True))
    assert surprise(logits, ids) == pytest.approx(-shifted[np.arange(5), ids].sum(), rel=1e-5)


def test_what_cannot_be_scored() -> None:
    session, _ = make_session()
    with pytest.raises(UsageError, match="a window of 65 tokens is outside 2 to 64"):
        score(session, [1, 2, 3], 65)
    with pytest.raises(UsageError, match="needs at least 2"):
        score(session, [1], 10)
