"""One continuation under way: pieces of text as they come, and what it cost."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING

from edgellm.runtime.detokenize import Detokenizer
from edgellm.runtime.errors import UsageError
from edgellm.runtime.sampling import Sampler

if TYPE_CHECKING:
    from edgellm.runtime.session import Progress, Session


@dataclass(frozen=True)
class Result:
    """A finished continuation. Times in seconds; the first token is part of prefill_s. Stop tokens are not in ids.

    reused_tokens: how many of prompt_tokens the cache already held; the others were prefilled.
    stop_reason: "stop token", "length" (max_new_tokens) or "context" (prompt and continuation fill the context).
    kv_evictions, kv_coverage: Session's, when the result was asked for.
    """

    text: str
    ids: list[int]
    prompt_tokens: int
    new_tokens: int
    prefill_s: float
    decode_s: float
    decode_steps: int
    stop_reason: str
    kv_bytes: int
    reused_tokens: int = 0
    kv_evictions: int = 0
    kv_coverage: float | None = None

    @property
    def decode_tokens_per_s(self) -> float:
        """Decode runs a second, the first token (prefill) and the caller's own time aside; 0 if there were none."""
        return self.decode_steps / self.decode_s if self.decode_s > 0 else 0.0


class Generation(Iterator[str]):
    """Iterate for pieces of text; `result` is final when the iteration is over. Made by Session.stream."""

    def __init__(
        self,
        session: Session,
        prompt: Sequence[int],
        max_new_tokens: int,
        sampler: Sampler,
        stop: Collection[int],
        keep: bool,
        progress: Progress | None,
    ) -> None:
        self._session = session
        self._prompt = list(prompt)
        self._most = max_new_tokens
        self._sampler = sampler
        self._stop = frozenset(stop)
        self._keep = keep
        self._progress = progress
        self._ids: list[int] = []
        self._text = ""
        self._prefill_s = self._decode_s = 0.0
        self._steps = self._reused = 0
        self._stop_reason = ""
        self._pieces = self._run()

    def __next__(self) -> str:
        return next(self._pieces)

    @property
    def result(self) -> Result:
        """What came so far."""
        return Result(
            text=self._text,
            ids=list(self._ids),
            prompt_tokens=len(self._prompt),
            new_tokens=len(self._ids),
            prefill_s=self._prefill_s,
            decode_s=self._decode_s,
            decode_steps=self._steps,
            stop_reason=self._stop_reason,
            kv_bytes=self._session.kv_bytes,
            reused_tokens=self._reused,
            kv_evictions=self._session.kv_evictions,
            kv_coverage=self._session.kv_coverage,
        )

    def _run(self) -> Iterator[str]:
        session, text = self._session, Detokenizer(self._session.decode)
        begin = perf_counter()
        logits = session.extend(self._prompt, self._keep, self._progress)
        self._reused = session.reused_tokens
        session.generation = self
        while not self._full():
            if self._ids:
                begin = perf_counter()
                if session.generation is not self:
                    raise UsageError("another generation began on this session", "Finish one before starting the next.")
                logits = session.step(self._ids[-1])
                self._steps += 1
            token = self._sampler(logits)
            del logits  # unless the sampler kept them, the backend writes the next ones into the same memory
            taken = perf_counter() - begin
            if self._steps:
                self._decode_s += taken
            else:
                self._prefill_s = taken
            if token in self._stop:
                self._stop_reason = "stop token"
                break
            self._ids.append(token)
            if piece := text.add(token):
                self._text += piece
                yield piece
        if piece := text.finish():
            self._text += piece
            yield piece

    def _full(self) -> bool:
        if len(self._ids) >= self._most:
            self._stop_reason = "length"
        elif len(self._prompt) + len(self._ids) >= self._session.limit:
            self._stop_reason = "context"
        return bool(self._stop_reason)
