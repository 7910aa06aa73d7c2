"""A conversation as ids: answers as the model drew them, where encoding their text again would give other tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from edgellm.runtime.generation import Result
from edgellm.runtime.session import Session

if TYPE_CHECKING:
    from edgellm.runtime.chat import Message


class Transcript:
    """What was said so far, as text and as ids; the ids are those in the session's cache.

    A sampled answer is often not how its own text is tokenized (" hai" + "ku" for " haiku"). Encoded again, it would
    leave the cache at the first such place, and all that follows would be prefilled once more.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._said: tuple[str, list[int]] = ("", [])
        self._asked: tuple[str, list[int]] = ("", [])

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """Ids of the conversation up to where the answer begins, like Session.encode_chat, which it falls back to.

        The last turn's own ids are kept where the rendered text begins with that turn and goes on with a special
        token: no other token reaches across one.
        """
        chat = self._session.chat
        text = chat.render(messages) if chat else ""
        ids = self._continued(text) or self._session.encode_chat(messages)
        self._asked = (text, ids)
        return ids

    def add(self, result: Result) -> None:
        """Note the answer to what was encoded last."""
        text, ids = self._asked
        self._said = (text + result.text, [*ids, *result.ids])

    def _continued(self, text: str) -> list[int]:
        """Ids of a text that goes on from what was said; none if it does not."""
        before, drawn = self._said
        if not before or not text.startswith(before):
            return []
        tokenizer = self._session.tokenizer
        rest: list[int] = tokenizer.encode(text[len(before) :], add_special_tokens=False).ids
        shown = {tokenizer.decode(rest[:1], skip_special_tokens=skip) for skip in (False, True)}
        return [*drawn, *rest] if len(shown) == 2 else []  # a special token: shown or not
