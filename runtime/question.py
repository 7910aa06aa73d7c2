"""A prompt as adaptation sees it: which of its tokens are the user's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgellm.runtime.session import Session, shared


@dataclass(frozen=True)
class Question:
    """ids of the whole prompt; scored: of those, the user's text, whose surprise counts. The template's own tokens and
    the system message do not: nothing is learned from them."""

    ids: list[int]
    scored: range

    def rows(self, before: int) -> tuple[list[int], list[int]]:
        """(places that predict a scored token, those tokens), where the first `before` places are not run."""
        places = [i for i in self.scored if i - 1 >= before]
        return [i - 1 for i in places], [self.ids[i] for i in places]


def plain(session: Session, text: str) -> Question:
    """Text to continue; all of it counts."""
    ids = session.encode(text)
    return Question(ids, range(1, len(ids)))


def asked(session: Session, text: str, system: str | None = None) -> Question:
    """A question in the chat template. Raises as Session.encode_chat."""
    messages = [] if system is None else [{"role": "system", "content": system}]

    def encode(content: str) -> list[int]:
        return session.encode_chat([*messages, {"role": "user", "content": content}])

    ids, one, other = encode(text), encode("A"), encode("1")
    begin, end = shared(one, other), shared(one[::-1], other[::-1])
    return Question(ids, range(max(1, begin), max(1, begin, len(ids) - end)))


def beginning(questions: Sequence[Question], most: int) -> list[int]:
    """The first tokens that all prompts have and that are no user's text; at most `most`."""
    first = questions[0].ids[:most]
    for question in questions:
        first = first[: min(shared(first, question.ids), question.scored.start)]
    return first
