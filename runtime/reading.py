"""The losses of an example as the runtime itself makes them: one more reading of the question, which costs a fifth of
what a run of adapt.onnx does and has the accuracy that answers have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgellm.kernels.sample import uncertainty
from edgellm.runtime.objective import Example, Losses, log_softmax
from edgellm.runtime.perplexity import surprise
from edgellm.runtime.question import Question
from edgellm.runtime.session import Session

F32 = NDArray[np.float32]


class Reading(NamedTuple):
    """Logits where the user's tokens are predicted [M, vocabulary], and the answer's [K, vocabulary]."""

    prompt: F32
    answer: F32

    def losses(self, example: Example) -> Losses:
        """Against the example's targets and the base model's logits, as adapt.onnx defines them."""
        count = len(example.targets)
        ida = surprise(self.prompt, example.targets) / count if count else 0.0
        entropy = sum(uncertainty(row).entropy for row in self.answer)
        log_p, log_q = log_softmax(self.answer), log_softmax(example.reference)
        return Losses(ida, entropy, float((np.exp(log_p) * (log_p - log_q)).sum()))


def read(session: Session, question: Question, answer: Sequence[int], before: int) -> Reading:
    """Read the question and all but the last of K `answer` tokens, with what the session uses. What its cache holds of
    the beginning is not run again; the sequence is theirs afterwards.

    before: tokens that a prefix stands for; what they predict is not asked for (Question.rows).
    """
    places, _ = question.rows(before)
    first = places[0] + 1 if places else len(question.ids)
    rows = [session.extend(question.ids[:first], keep=True)[None]]
    rest = [*question.ids[first:], *answer[:-1]]
    rows += session.chunks(rest) if rest else []
    logits = np.concatenate(rows)
    return Reading(logits[: len(places)], logits[len(logits) - len(answer) :])
