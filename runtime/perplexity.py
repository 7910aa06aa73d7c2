"""How surprised a bundle is by a text: non-overlapping windows, each on a fresh cache."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgellm.kernels.sample import uncertainty
from edgellm.runtime.errors import UsageError
from edgellm.runtime.session import Progress, Session


@dataclass(frozen=True)
class Score:
    """nats: summed -ln p of the scored tokens. tokens: how many were scored. text_bytes: their UTF-8 bytes."""

    nats: float
    tokens: int
    text_bytes: int
    window: int

    @property
    def perplexity(self) -> float:
        """exp of the mean nats a token."""
        return math.exp(min(self.nats / self.tokens, 700.0))

    @property
    def bits_per_byte(self) -> float:
        """Comparable between tokenizers, as perplexity is not."""
        return self.nats / math.log(2) / max(self.text_bytes, 1)


def score(session: Session, ids: Sequence[int], window: int = 1024, progress: Progress | None = None) -> Score:
    """Score ids in windows of `window` tokens at positions 1 … window-1; a last shorter window counts from 2 tokens.

    Ids are taken as they are: no beginning-of-sequence token is added. Raises UsageError for a window outside 2 to the
    session's limit, or for fewer than 2 ids.
    """
    if not 2 <= window <= session.limit:
        raise UsageError(f"a window of {window} tokens is outside 2 to {session.limit}, what the cache holds")
    if len(ids) < 2:
        raise UsageError(f"{len(ids)} tokens of text; perplexity needs at least 2", "Give a longer text.")
    nats, tokens, text_bytes = 0.0, 0, 0
    for start in range(0, len(ids), window):
        part = list(ids[start : start + window])
        if len(part) > 1:
            nats += _window_nats(session, part)
            tokens += len(part) - 1
            # The difference, as a decoder treats a text's first token apart (SentencePiece drops its space).
            text_bytes += _bytes(session, part) - _bytes(session, part[:1])
        if progress:
            progress(start + len(part), len(ids))
    return Score(nats, tokens, text_bytes, window)


def _window_nats(session: Session, ids: list[int]) -> float:
    session.reset()
    nats, place = 0.0, 0
    for logits in session.chunks(ids, "all"):
        following = np.array(ids[place + 1 : place + 1 + len(logits)], np.int64)
        nats += surprise(logits[: len(following)], following)
        place += len(logits)
    return nats


def surprise(logits: NDArray[np.float32], ids: NDArray[np.int64]) -> float:
    """Sum of -ln softmax(logits [T, V])[ids [T]], in nats."""
    return sum(uncertainty(row).log_sum_exp - float(row[token]) for row, token in zip(logits, ids, strict=True))


def _bytes(session: Session, ids: list[int]) -> int:
    return len(session.tokenizer.decode(ids, skip_special_tokens=False).encode())
