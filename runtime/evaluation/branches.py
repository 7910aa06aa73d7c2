"""One prompt under many KV policies: it is read once for all policies that count attention alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from edgellm.kernels.control import SCORE
from edgellm.runtime.kv_policy import KVPolicy
from edgellm.runtime.session import Session, Snapshot

ROOM = "vatp-window"  # its buffers hold what any policy counts


class Branches:
    """Continues prompts under policy after policy, each exactly as a session with that policy would that reads prompts
    whole: what a budget evicts, it evicts at the first run after the prompt. What a prompt has in common with the one
    before is not read again, nor what leaves no trace in a policy's scores.

    session: loaded with `ROOM` and the context as its budget; it is left wherever the last branch ended.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._ids: list[int] = []
        self._common = 0
        self._beginnings: dict[KVPolicy, Snapshot] = {}
        self._read: tuple[KVPolicy, NDArray[np.float32], Snapshot] | None = None

    def prompt(self, ids: Sequence[int], common: int = 0) -> None:
        """What is continued from now on; its first `common` tokens are those of prompts to come, too."""
        run = self._session.staging
        self._ids, self._common, self._read = list(ids), min(common, len(ids) - 1) // run * run, None

    def take(self, policy: KVPolicy) -> NDArray[np.float32]:
        """Logits [V] after the prompt; the session then goes on from there under `policy`. Raises as prefill does."""
        reader = reading(policy, self._session.policy.budget)
        if self._read is None or (policy.number == SCORE and reader != self._read[0]):
            self._prefill(reader)
            self._read = reader, self._session.prefill(self._ids[len(self._session.tokens) :]), self._session.snapshot()
        _, logits, snapshot = self._read
        self._session.resume(snapshot)
        self._session.follow(policy)  # pools scores where it does so at a prompt's end
        self._session.follow(replace(policy, prefill="chunked", pool=0))  # what comes now is no prompt
        return logits

    def _prefill(self, reader: KVPolicy) -> None:
        """Bring the session to the latest run from which reading on gives the scores that reading all would."""
        session, run = self._session, self._session.staging
        first = max(0, len(self._ids) - remembered(reader, len(self._ids))) // run * run
        known = [self._read[2]] if self._read is not None else list(self._beginnings.values())
        fit = [one for one in known if len(one.tokens) >= first and one.tokens[:first] == self._ids[:first]]
        # Where only the last queries count, windows end with the prompt: what is read before `first` is wiped.
        cut = min(first, self._common) if first else 0 if reader.queries else self._common
        beginning = self._beginnings.get(reader)
        if first and fit:
            session.resume(fit[0], first)
            session.follow(reader)
        elif cut and beginning is not None and beginning.tokens == self._ids[:cut]:
            session.resume(beginning)
        else:
            session.reset()
            session.follow(reader)
            if cut:
                session.prefill(self._ids[:cut])
                self._beginnings[reader] = session.snapshot()


def reading(policy: KVPolicy, room: int) -> KVPolicy:
    """The policy that counts attention as `policy` does, if it does, and evicts nothing from `room` tokens."""
    whole = KVPolicy("h2o", room, sinks=0, prefill="whole")
    if policy.number != SCORE:
        return whole
    return replace(whole, forget=policy.forget, queries=policy.queries, heads=policy.heads)


def remembered(reader: KVPolicy, tokens: int) -> int:
    """How many of a prompt's last queries can change its scores; those before are forgotten to the last bit."""
    if reader.forget == 0:
        return 1
    return reader.queries + 1 if reader.queries else tokens
