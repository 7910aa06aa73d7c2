"""Token ids to text, a token at a time, never showing half a character."""

from __future__ import annotations

from collections.abc import Callable, Sequence

BROKEN = "\ufffd"  # what a decoder writes for bytes that are not (yet) UTF-8


class Detokenizer:
    """Incremental decoding: `add` each id, then `finish`; the pieces join to the text.

    A piece comes out once decoding a few more ids can no longer change it. Text is decoded from one piece back,
    because decoders treat the first id apart (SentencePiece drops its leading space). A character whose last bytes
    never came is left out.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._ids: list[int] = []
        self._start = 0  # of the piece before, for context
        self._shown = 0  # ids whose text is out

    def add(self, token: int) -> str:
        """The text that this id completed, often empty in the middle of a character."""
        self._ids.append(token)
        return self._next(final=False)

    def finish(self) -> str:
        """What was held back and is whole."""
        return self._next(final=True)

    def _next(self, final: bool) -> str:
        before = self._decode(self._ids[self._start : self._shown])
        text = self._decode(self._ids[self._start :])
        if final:
            text = text.rstrip(BROKEN)
        if len(text) <= len(before) or text.endswith(BROKEN):
            return ""
        self._start, self._shown = self._shown, len(self._ids)
        return text[len(before) :]
