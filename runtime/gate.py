"""When a question is worth adapting to: the first answer tokens are in doubt, and the question itself is unfamiliar.

Doubt alone is a poor gate: models are unsure at easy questions with many right answers too (methods A5.2). Thresholds
are measured with the compressed bundle at export: compression moves both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from edgellm.kernels.sample import sample, uncertainty
from edgellm.runtime.perplexity import surprise
from edgellm.runtime.question import Question
from edgellm.runtime.sampling import Sampler
from edgellm.runtime.schema import Gate
from edgellm.runtime.session import Session

TOKENS = 4  # of an answer that are looked at (SyTTA's k)
DOUBTFUL, UNFAMILIAR = 0.85, 0.5  # quantiles of ordinary questions: what is above both is adapted to


class Watch:
    """A sampler that remembers the first `count` rows of logits that it was shown, and how unsure each was (nats)."""

    def __init__(self, choose: Sampler, count: int) -> None:
        self._choose, self._count = choose, count
        self.rows: list[NDArray[np.float32]] = []
        self.entropies: list[float] = []
        self.ids: list[int] = []

    def __call__(self, logits: NDArray[np.float32]) -> int:
        """See Sampler."""
        token = self._choose(logits)
        if len(self.rows) < self._count:
            self.rows.append(logits.copy())
            self.entropies.append(uncertainty(logits).entropy)
            self.ids.append(token)
        return token

    @property
    def full(self) -> bool:
        """Whether it saw as many as it looks at."""
        return len(self.rows) >= self._count

    @property
    def entropy(self) -> float:
        """The mean, in nats."""
        return float(np.mean(self.entropies))


def begin_answer(session: Session, question: Question, count: int) -> Watch:
    """The first `count` greedy tokens of an answer; fewer where it ends before."""
    watch = Watch(sample, count)
    stop = session.manifest.tokens.stop
    logits = session.extend(question.ids)
    while watch(logits) not in stop and not watch.full and len(session.tokens) < session.limit:
        logits = session.step(watch.ids[-1])
    return watch


def nll(session: Session, question: Question) -> float:
    """Mean surprise a token of the user's text, in nats; 0 for no text. The sequence is then the question's."""
    if not question.scored:
        return 0.0
    first = question.scored.start
    rows = [session.extend(question.ids[:first])[None]]
    rest = question.ids[first : question.scored.stop - 1]
    rows += session.chunks(rest) if rest else []
    placed, nats = 0, 0.0
    for logits in rows:
        nats += surprise(logits, np.array(question.ids[first + placed :][: len(logits)], np.int64))
        placed += len(logits)
    return nats / placed


def calibrate(
    session: Session, questions: Sequence[Question], progress: Callable[[int, int], None], chat: bool
) -> Gate:
    """Thresholds from questions of the ordinary kind."""
    found = []
    for done, question in enumerate(questions, 1):
        found.append((begin_answer(session, question, TOKENS).entropy, nll(session, question)))
        progress(done, len(questions))
    entropy, surprised = (np.array(column) for column in zip(*found, strict=True))
    return Gate(float(np.quantile(entropy, DOUBTFUL)), float(np.quantile(surprised, UNFAMILIAR)), len(questions), chat)
