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
    """Continues a prompt under policy after policy, each exactly as a session with that policy would that reads
    prompts whole: what a budget evicts, it evicts at the first run after the prompt.

    session: loaded with `ROOM` and the context as its budget; it is left wherever the last branch ended.
    """

    def __init__(self, session: Session, ids: Sequence[int]) -> None:
        self._session = session
        self._ids = list(ids)
        self._kind: tuple[float, int, str] | None = None
        self._read: tuple[NDArray[np.float32], Snapshot] | None = None

    def take(self, policy: KVPolicy) -> NDArray[np.float32]:
        """Logits [V] after the prompt; the session then goes on from there under `policy`. Raises as prefill does."""
        kind = counted(policy)
        if self._read is None or kind not in (None, self._kind):
            self._read, self._kind = self._prefill(policy), kind
        logits, snapshot = self._read
        self._session.resume(snapshot)
        self._session.follow(policy)
        return logits

    def _prefill(self, policy: KVPolicy) -> tuple[NDArray[np.float32], Snapshot]:
        """Read the prompt, or only the end of it whose attention counts: runs begin where they always do."""
        session, start = self._session, 0
        if self._read is None:
            session.reset()
        else:
            run = session.staging
            start = max(0, len(self._ids) - remembered(policy, len(self._ids))) // run * run
            session.resume(self._read[1], start)
        session.follow(replace(policy, budget=session.policy.budget, budgets=(), prefill="whole"))
        return session.prefill(self._ids[start:]), session.snapshot()


def counted(policy: KVPolicy) -> tuple[float, int, str] | None:
    """What decides how attention adds up to scores; None where the policy asks for none."""
    return (policy.forget, policy.queries, policy.heads) if policy.number == SCORE else None


def remembered(policy: KVPolicy, tokens: int) -> int:
    """How many of a prompt's last queries can change its scores; those before are forgotten to the last bit."""
    if policy.forget == 0:
        return 1
    return policy.queries + 1 if policy.queries else tokens
