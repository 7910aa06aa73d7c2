"""The KV cache: which tokens it keeps (the policy), its buffers' shapes, and the cursor that mirrors the operator's.

A run first commits the tokens the previous run staged, then stages its own (design.md, "The KV cache").
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import DTypeLike, NDArray

from edgellm.runtime.errors import UsageError

POLICIES = {"full": 0, "window": 1}
SINKS = 4  # StreamingLLM (arXiv:2309.17453) keeps the first four tokens
CONTROL = 5  # numbers in the graph's control input
FORMS = "Expected full, full:BUDGET or window:BUDGET, e.g. --kv window:512"


@dataclass(frozen=True)
class KVPolicy:
    """Which tokens stay: all (`full`), or the first `sinks` and the most recent (`window`); `budget` tokens in all."""

    name: str
    budget: int
    sinks: int

    @property
    def number(self) -> int:
        """The operator's code of the policy."""
        return POLICIES[self.name]

    def __str__(self) -> str:
        return f"{self.name}:{self.budget}"


def kv_policy(name: str, budget: int, sinks: int, context: int) -> KVPolicy:
    """A checked policy. Raises UsageError for an unknown name, or a budget outside (sinks, context] tokens."""
    if name not in POLICIES:
        raise UsageError(f'KV policy "{name}" is unknown; this version has {" and ".join(POLICIES)}', FORMS)
    if sinks < 0:
        raise UsageError(f"{sinks} sink tokens; expected 0 or more")
    least = sinks + 1 if name == "window" else 1
    if not least <= budget <= context:
        why = f": {sinks} sinks and one more must fit" if budget < least else ", the model's context"
        raise UsageError(f"a KV budget of {budget} tokens is outside {least} to {context}{why}", FORMS)
    return KVPolicy(name, budget, sinks)


def parse_kv(text: str, context: int, sinks: int = SINKS) -> KVPolicy:
    """Read "full", "full:1024" or "window:512" for a model of `context` tokens. Raises UsageError."""
    name, colon, number = text.strip().partition(":")
    if not colon and name == "full":
        return kv_policy(name, context, sinks, context)
    if not colon and name in POLICIES:
        raise UsageError(f'KV policy "{text}" has no budget', FORMS)
    if colon and not (number.isascii() and number.isdigit() and len(number) < 19):
        raise UsageError(f'KV budget "{number}" is not a number of tokens', FORMS)
    return kv_policy(name, int(number or 0), sinks, context)


@dataclass(frozen=True)
class CacheLayout:
    """The cache's buffers; `staging` is the most tokens of one run."""

    policy: KVPolicy
    staging: int
    layers: int
    kv_heads: int
    head_dim: int

    @property
    def capacity(self) -> int:
        """Slots a head: committed tokens and the staging area behind them."""
        return self.policy.budget + self.staging

    def buffers(self) -> list[tuple[str, tuple[int, ...], DTypeLike]]:
        """(graph input, shape, dtype) of every buffer; the matching output is "<input>.out"."""
        wide, narrow = (self.kv_heads, self.capacity, self.head_dim), (self.kv_heads, self.capacity)
        found: list[tuple[str, tuple[int, ...], DTypeLike]] = []
        for layer in range(self.layers):
            found += [
                (f"key.{layer}", wide, np.float16),
                (f"value.{layer}", wide, np.float16),
                (f"position.{layer}", narrow, np.int32),
            ]
        return found

    @property
    def slot_bytes(self) -> int:
        """Bytes of one token's slots in all layers."""
        return self.layers * self.kv_heads * (2 * self.head_dim * 2 + 4)

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers."""
        return self.capacity * self.slot_bytes


@dataclass
class Cursor:
    """How far the cache is filled: `committed` slots, and `staged` tokens of the last run still to be committed.

    fed counts the sequence's tokens; fed - committed - staged of them are evicted.
    """

    policy: KVPolicy
    committed: int = 0
    staged: int = 0
    fed: int = 0

    def control(self) -> NDArray[np.int64]:
        """The graph's control input, int64 [5]: committed, accepted, budget, sinks, policy."""
        policy = self.policy
        return np.array([self.committed, self.staged, policy.budget, policy.sinks, policy.number], np.int64)

    def slots(self) -> NDArray[np.int64]:
        """The slots that hold tokens, [committed + staged]; in the sequence's order where nothing was evicted."""
        budget = self.policy.budget
        staged = np.arange(budget, budget + self.staged, dtype=np.int64)
        return np.concatenate([np.arange(self.committed, dtype=np.int64), staged])

    def advance(self, tokens: int) -> None:
        """Note a run of `tokens`: what was staged is committed now, and the run's own tokens are staged."""
        self.committed = min(self.policy.budget, self.committed + self.staged)
        self.staged = tokens
        self.fed += tokens

    def cut_back(self, tokens: int) -> int:
        """Forget all but the first `tokens` of the sequence; returns how many stay: as many, or none.

        Staged tokens are dropped by accepting fewer. Committed ones lie in the sequence's order until the first
        eviction, so before it the cursor moves back; after it, what an earlier cache held is gone: none stay.
        """
        older = self.fed - self.staged  # committed, or evicted since
        if not 0 <= tokens < self.fed:
            return self.fed
        if tokens < older and self.committed < older:
            self.reset()
        elif tokens < older:
            self.committed, self.staged, self.fed = tokens, 0, tokens
        else:
            self.staged, self.fed = tokens - older, tokens
        return self.fed

    def refill(self, tokens: int, held: int) -> None:
        """Take over a sequence of `tokens` of which `held` have slots; they belong, in order, into `slots()` then."""
        self.committed = min(held, self.policy.budget)
        self.staged = held - self.committed
        self.fed = tokens

    def reset(self) -> None:
        """Forget every token; the buffers keep their bytes, which nothing reads any more."""
        self.committed = self.staged = self.fed = 0
