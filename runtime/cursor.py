"""How far the KV cache is filled, layer by layer: a mirror of what the operator does with it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from edgellm.kernels.control import SCORE, Control, control_of
from edgellm.runtime.kv_policy import KVPolicy

COLUMN = {name: number for number, name in enumerate(Control._fields)}


@dataclass
class Cursor:
    """`committed` tokens a layer, and `staged` ones of the last run still to be committed, which lie from slot
    `places[layer]` on. A run first commits what the previous one staged, then stages its own.

    budgets: the most committed tokens a layer from the next run on; above the policy's while a prompt is read whole.
    fed: tokens of the sequence. votes: queries counted in the open window and in the one before, each at its weight
    now. anchor: see Control.
    """

    policy: KVPolicy
    layers: int
    committed: list[int] = field(init=False)
    staged: int = 0
    fed: int = 0
    budgets: list[int] = field(init=False)
    places: list[int] = field(init=False)
    votes: tuple[float, float] = (0.0, 0.0)
    anchor: int = 0

    def __post_init__(self) -> None:
        self.follow(self.policy)
        self.reset()

    def follow(self, policy: KVPolicy) -> None:
        """From the next run on another policy evicts, by the scores that there are."""
        self.policy = policy
        self._rows = control_of([policy.control(budget) for budget in self.own_budgets])  # what stays the same
        self.budgets = self.own_budgets

    @property
    def own_budgets(self) -> list[int]:
        """The policy's, a layer each."""
        return list(self.policy.layer_budgets(self.layers))

    @property
    def evicted(self) -> list[int]:
        """Tokens of the sequence that no slot holds any more, a layer each."""
        return [self.fed - self.staged - committed for committed in self.committed]

    def control(self, counted: int) -> NDArray[np.int64]:
        """The graph's control input, int64 [layers, fields]; `counted`: see edgellm.kernels.control.Control."""
        rows = self._rows.copy()
        columns: dict[str, int | list[int]] = {"committed": self.committed, "accepted": self.staged}
        columns |= {"staged": self.places, "budget": self.budgets}
        if self.policy.number == SCORE:
            columns |= {"counted": counted, "anchor": self.anchor}
        for name, values in columns.items():
            rows[:, COLUMN[name]] = values
        return rows

    def slots(self, layer: int) -> NDArray[np.int64]:
        """The slots that hold a layer's tokens; in the sequence's order where nothing was evicted."""
        staged = np.arange(self.places[layer], self.places[layer] + self.staged, dtype=np.int64)
        return np.concatenate([np.arange(self.committed[layer], dtype=np.int64), staged])

    def advance(self, tokens: int, counted: int) -> None:
        """Note a run of `tokens`: what was staged is committed now, and the run's own tokens are staged."""
        both = zip(self.budgets, self.committed, strict=True)
        self.committed = [min(budget, committed + self.staged) for budget, committed in both]
        self.places = list(self.budgets)
        if self.policy.number == SCORE:
            self._vote(counted)
        self.staged = tokens
        self.fed += tokens

    def _vote(self, counted: int) -> None:
        (now, before), forget, queries = self.votes, self.policy.forget, self.policy.queries
        for position in range(self.fed, self.fed + counted):
            now, before = forget * now + 1, forget * before
            if queries and (position + 1 - self.anchor) % queries == 0:
                now, before = 0.0, now
        self.votes = now, before

    def cut_back(self, tokens: int) -> int:
        """Forget all but the first `tokens` of the sequence; returns how many stay: as many, or none.

        Staged tokens are dropped by accepting fewer. Committed ones lie in the sequence's order until the first
        eviction, so before it the cursor moves back; after it, what an earlier cache held is gone: none stay. What the
        tokens that are cut off paid to the others stays in the scores: they are a guess, and as good a one as before.
        """
        older = self.fed - self.staged  # committed, or evicted since
        if not 0 <= tokens < self.fed:
            return self.fed
        if tokens < older and min(self.committed) < older:
            self.reset()
        elif tokens < older:
            self.committed, self.staged, self.fed = [tokens] * self.layers, 0, tokens
        else:
            self.staged, self.fed = tokens - older, tokens
        return self.fed

    def plant(self, tokens: int) -> None:
        """Begin with so many tokens committed, in slots from 0 on; no policy evicts them before the next reset."""
        self.reset()
        self.committed, self.fed = [tokens] * self.layers, tokens
        self._rows[:, COLUMN["sinks"]] = max(self.policy.sinks, tokens)

    def reset(self) -> None:
        """Forget every token; the buffers keep their bytes, which nothing reads any more."""
        self.committed, self.staged, self.fed = [0] * self.layers, 0, 0
        self.budgets, self.places = self.own_budgets, self.own_budgets
        self.votes, self.anchor = (0.0, 0.0), 0
        self._rows[:, COLUMN["sinks"]] = self.policy.sinks
