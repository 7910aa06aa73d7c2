"""Mode "query": an answer begins as ever; where it begins in doubt, the model is adapted to the question first.

The base model's answer waits meanwhile with its KV cache: where the steps are not believed, it goes on as if nothing
had been tried, token for token. What was learned is forgotten with the answer.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterator
from dataclasses import dataclass
from time import perf_counter

from edgellm.runtime.adapter import Adapter, Facts
from edgellm.runtime.carrier import Carrier
from edgellm.runtime.errors import UsageError
from edgellm.runtime.gate import Watch
from edgellm.runtime.generation import Result
from edgellm.runtime.head import unprepared
from edgellm.runtime.learning import Settings, acceptable, descend
from edgellm.runtime.objective import Example
from edgellm.runtime.question import Question
from edgellm.runtime.reading import read
from edgellm.runtime.sampling import Sampling
from edgellm.runtime.schema import Gate
from edgellm.runtime.session import Session


@dataclass
class Report:
    """What adaptation did for one answer.

    entropy: mean of the first answer tokens, in nats; nll: mean surprise a token of the question, None where doubt
    alone decided. gated: whether it was adapted to. steps: taken; accepted: whether they were believed. entropy_after,
    nll_after and kl (a token): of what was accepted. extra_s: seconds beyond the base answer's own.
    """

    entropy: float
    gated: bool = False
    nll: float | None = None
    steps: int = 0
    accepted: bool = False
    entropy_after: float | None = None
    nll_after: float | None = None
    kl: float | None = None
    extra_s: float = 0.0


class AdaptiveGeneration(Iterator[str]):
    """Iterate for pieces of text; then read `result` and `report`. The first pieces wait for the gate's tokens.

    gate: None takes the bundle's. The session is given back without an adapter, and without the sequence where it
    adapted. Who does not iterate to the end must `close`. Raises UsageError for a bundle that cannot adapt or a session
    that uses an adapter, and as Session.stream does.
    """

    def __init__(
        self,
        session: Session,
        question: Question,
        carrier: Carrier,
        max_new_tokens: int = 256,
        sampling: Sampling | None = None,
        settings: Settings | None = None,
        gate: Gate | None = None,
        stop: Collection[int] | None = None,
    ) -> None:
        found = gate or (session.manifest.adapt.gate if session.manifest.adapt else None)
        if found is None:
            raise unprepared()
        if session.adapter is not None:
            raise UsageError("a question is adapted to from the model itself, not from an adapter", "Leave one out.")
        self._gate, self._session, self._question, self._carrier = found, session, question, carrier
        self._most, self._stop = max_new_tokens, stop
        self._sampling, self._settings = sampling or Sampling(), settings or Settings()
        self._watch = Watch(self._sampling.sampler(question.ids), self._settings.tokens)
        self._base = session.stream(question.ids, max_new_tokens, self._watch, stop)
        self.result: Result = self._base.result
        self.report = Report(float("nan"))
        self._pieces = self._run()

    def __next__(self) -> str:
        return next(self._pieces)

    def close(self) -> None:
        """Give the session back before the answer is over."""
        self._pieces.close()

    def _run(self) -> Generator[str]:
        session, watch, held = self._session, self._watch, []
        for piece in self._base:
            held.append(piece)
            if watch.full:
                break
        self.report.entropy = watch.entropy
        adapter = self._adapt() if watch.entropy > self._gate.entropy else None
        if adapter is None:
            yield from held
            yield from self._base
            self.result = self._base.result
            return
        try:
            sampler = self._sampling.sampler(self._question.ids)
            own = session.stream(self._question.ids, self._most, sampler, self._stop, keep=True)
            yield from own
            self.result = own.result
        finally:
            session.use(None)

    def _adapt(self) -> Adapter | None:
        """The adapter that was believed, in use and with the question read; or None, and the session is as it was."""
        session = self._session
        if session.kv_evictions or len(self._question.ids) > self._settings.longest:
            return None
        begin, waiting = perf_counter(), session.snapshot()
        adapter = self._learn()
        if adapter is None:
            session.use(None)
            session.resume(waiting)
            session.generation = self._base
        self.report.extra_s = perf_counter() - begin
        return adapter

    def _learn(self) -> Adapter | None:
        session, question, report, carrier = self._session, self._question, self.report, self._carrier
        start = carrier.begin(session, question.ids[: question.scored.start], self._settings.prefix)
        answer, length = self._watch.ids, len(start.tokens)
        reading = read(session, question, answer, length)
        example = Example.of(question, answer, reading.answer, length)
        before, tokens = reading.losses(example), len(answer)
        report.nll, report.gated = before.ida, before.ida > self._gate.nll
        if not report.gated:  # so far that took one reading; a step takes five times as long
            return None
        descent = descend(carrier.gradient(example, reading.prompt), example, start.tensors, self._settings)
        report.steps = descent.steps
        if descent.tensors is start.tensors:
            return None
        tensors = carrier.complete(descent.tensors)
        adapter = Adapter(Facts(carrier.name, session.manifest.weights_sha256, start.tokens), tensors)
        session.use(adapter)
        after = read(session, question, answer, length).losses(example)
        report.accepted = acceptable(after, before, tokens, self._settings.most_kl)
        if not report.accepted:
            return None
        report.entropy_after, report.nll_after, report.kl = after.entropy / tokens, after.ida, after.kl / tokens
        return adapter
