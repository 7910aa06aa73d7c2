"""One sequence's KV cache in a backend: what it holds, how it makes room for a prompt, and what eviction cost."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.kernels.control import ATTENTION, NORM, OLDER, SCORE
from edgellm.kernels.kv_rows import ROW, from_rows, hadamard, to_rows
from edgellm.runtime.backend import Backend
from edgellm.runtime.cache import CacheLayout
from edgellm.runtime.cursor import Cursor
from edgellm.runtime.errors import UsageError
from edgellm.runtime.kv_policy import NORMED, KVPolicy


@dataclass(frozen=True)
class CacheCopy:
    """How far a cache was filled, and its slots in use by buffer: [kv_heads, slots, …]."""

    cursor: Cursor
    slots: dict[str, NDArray[Any]]


class KVCache:
    """The cache of a session: a backend's buffers, laid out as `layout`, and how far they are filled."""

    def __init__(self, backend: Backend, layout: CacheLayout) -> None:
        self.backend = backend
        self._usual = self._layout = layout
        self._cursor = Cursor(layout.policy, layout.layers)

    @property
    def staging(self) -> int:
        """The most tokens of one run."""
        return self._layout.staging

    @property
    def evictions(self) -> int:
        """Tokens of the sequence that are gone from the cache: the mean over layers, rounded."""
        return round(sum(self._cursor.evicted) / self._layout.layers)

    def coverage(self, group: int) -> float | None:
        """The share of attention ever paid (as the scores count it) that tokens still held received: mean over heads.

        group: query heads a KV head. None where it cannot be told: a window that evicted has no scores, the largest of
        several heads' or tokens' attention has no sum to compare with, and the last query, where only that counts,
        paid nothing to tokens that were gone.
        """
        policy, cursor = self._cursor.policy, self._cursor
        if not any(cursor.evicted):
            return 1.0
        paid = sum(cursor.votes) * (group if policy.heads == "sum" else 1)
        if policy.number != SCORE or policy.heads == "max" or policy.pool or not policy.forget or not paid:
            return None
        kept = [self._paid(layer)[0].sum(axis=1, dtype=np.float64) / paid for layer in range(self._layout.layers)]
        return min(1.0, float(np.mean(kept)))

    def importance(self, layer: int) -> NDArray[np.float32]:
        """What a layer's tokens are ranked by, [kv_heads, tokens]: in the sequence's order where nothing was evicted.

        The policy must score.
        """
        paid, score = self._paid(layer)
        ranked: NDArray[np.float32] = paid * score[..., NORM] if self._cursor.policy.name in NORMED else paid
        return ranked

    def _paid(self, layer: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """(attention that tokens received and that counts [kv_heads, tokens], all planes of their scores)."""
        score = self.backend.read_slots(f"score.{layer}", self._cursor.slots(layer))
        older = score[..., OLDER] if self._cursor.policy.queries else np.float32(0)
        return score[..., ATTENTION] + older, score

    def run(self, ids: NDArray[np.int64], rows: NDArray[np.int64], counted: int | None = None) -> NDArray[np.float32]:
        """Append ids [T], at most `staging`; logits [R, V] of `rows`.

        counted: the attention of so many first tokens counts for the scores; by default of all. Drafts come after them.
        """
        cursor, counted = self._cursor, len(ids) if counted is None else counted
        positions = np.arange(cursor.fed, cursor.fed + len(ids), dtype=np.int64)
        logits = self.backend.step(ids, positions, rows, cursor.control(counted))
        cursor.advance(len(ids), counted)
        if self._layout is not self._usual:
            self._fit(cursor.budgets)  # a prompt's room is given back once its tokens were pruned
        return logits

    def make_room(self, tokens: int) -> None:
        """Evict nothing while the next `tokens` are read, where the policy reads prompts whole; `prune` ends it.

        Raises EdgellmError, with the sequence as it was, where there is no memory for them.
        """
        policy, cursor = self._cursor.policy, self._cursor
        if policy.prefill != "whole":
            return
        if policy.queries:  # so that exactly the prompt's last `queries` queries count when it is pruned
            cursor.anchor = (cursor.fed + tokens) % policy.queries
        both = zip(cursor.own_budgets, cursor.committed, strict=True)
        budgets = [max(budget, committed + cursor.staged + tokens) for budget, committed in both]
        if budgets != cursor.own_budgets:
            self._fit([max(pair) for pair in zip(budgets, self._layout.budgets, strict=True)])
            cursor.budgets = budgets

    def prune(self) -> None:
        """From the next run on the policy's budgets hold again."""
        cursor = self._cursor
        cursor.budgets = cursor.own_budgets
        for layer in range(self._layout.layers) if cursor.policy.pool else ():
            slots = cursor.slots(layer)
            score = self.backend.read_slots(f"score.{layer}", slots)
            position = self.backend.read_slots(f"position.{layer}", slots)
            self.backend.write_slots(f"score.{layer}", slots, pooled(score, position, cursor.policy.pool))

    def follow(self, policy: KVPolicy) -> None:
        """From the next run on another policy evicts, by the scores that there are. The buffers stay as they are.

        Raises UsageError for one that needs more of them than there is.
        """
        if policy.planes > self._usual.policy.planes or max(policy.layer_budgets(1)) > max(self._usual.budgets):
            raise UsageError(f"a cache made for {self._usual.policy} cannot go on as {policy}")
        self._cursor.follow(policy)
        self.prune()

    def copy(self) -> CacheCopy:
        """What `paste` puts back."""
        slots = {n: self.backend.read_slots(n, self._cursor.slots(layer)) for layer, n, _ in self._usual.filled()}
        return CacheCopy(deepcopy(self._cursor), slots)

    def paste(self, copied: CacheCopy) -> None:
        """Take over what a cache of this model and layout held when it was copied."""
        self._fit(copied.cursor.places)
        for layer, name, _ in self._usual.filled():
            self.backend.write_slots(name, copied.cursor.slots(layer), copied.slots[name])
        self._cursor = deepcopy(copied.cursor)

    def cut_back(self, tokens: int) -> int:
        """See Cursor.cut_back."""
        return self._cursor.cut_back(tokens)

    def reset(self) -> None:
        """Forget the sequence."""
        self._cursor.reset()

    def plant(self, keys: NDArray[np.float32], values: NDArray[np.float32]) -> None:
        """Begin the sequence with P tokens of these keys and values [layers, kv_heads, P, head_dim], at positions from
        0 on, kept whatever the policy. Raises UsageError where the budget has no room beside them."""
        tokens, policy = keys.shape[2], self._usual.policy
        for budget in self._usual.budgets:
            if max(tokens, policy.sinks) + policy.recent_tokens(budget) > budget or tokens >= budget:
                what = f"a KV budget of {budget} tokens has no room beside an adapter's {tokens}"
                raise UsageError(what, "Give a larger one with --kv.")
        self._cursor.plant(tokens)
        slots, kind = np.arange(tokens), ROW[self._usual.bits]
        turned = keys if self._usual.bits == 16 else hadamard(keys)
        for layer in range(self._usual.layers):
            self.backend.write_slots(f"key.{layer}", slots, to_rows(turned[layer], kind))
            self.backend.write_slots(f"value.{layer}", slots, to_rows(values[layer], kind))
            self.backend.write_slots(f"position.{layer}", slots, np.broadcast_to(slots, keys.shape[1:3]))
            score = np.zeros((*keys.shape[1:3], policy.planes), np.float32)
            if policy.planes > NORM:
                score[..., NORM] = np.abs(values[layer]).sum(axis=-1)
            self.backend.write_slots(f"score.{layer}", slots, score)

    def first(self, tokens: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """(keys, values) of the sequence's first tokens, [layers, kv_heads, tokens, head_dim]; nothing may be evicted
        yet."""

        def read(name: str) -> NDArray[np.float32]:
            layers = range(self._usual.layers)
            held = [self.backend.read_slots(f"{name}.{i}", self._cursor.slots(i)[:tokens]) for i in layers]
            return from_rows(np.stack(held))

        keys, values = read("key"), read("value")
        return keys if self._usual.bits == 16 else hadamard(keys), values

    def save(self, path: Path, model: str, tokens: Sequence[int]) -> None:
        """Write the cache and the sequence it belongs to. Raises EdgellmError where the file cannot be written."""
        from edgellm.runtime.prompt_cache import Facts, write_prompt_cache  # late: few sessions need safetensors

        cursor, layout = self._cursor, self._usual
        place = cursor.committed, cursor.staged, list(cursor.votes), cursor.anchor
        facts = Facts(model, str(layout.policy), list(layout.budgets), *place, layout.bits)
        write_prompt_cache(path, facts, tokens, self.copy().slots)

    def restore(self, path: Path, model: str) -> list[int]:
        """Take over a file's cache and return its sequence. Raises PromptCacheError, with all as it was."""
        from edgellm.runtime.prompt_cache import PromptCache

        file, policy = PromptCache(path, model, self._usual), self._usual.policy
        cursor = Cursor(policy, self._usual.layers)
        facts = file.facts
        cursor.committed, cursor.staged = facts.committed, facts.staged
        if policy.name == "full":  # in order, whatever budget it was made with
            cursor.committed, cursor.staged = [held + facts.staged for held in facts.committed], 0
        cursor.fed, cursor.votes, cursor.anchor = len(file.tokens), (facts.votes[0], facts.votes[1]), facts.anchor
        cursor.places = [max(pair) for pair in zip(cursor.budgets, cursor.committed, strict=True)]
        self.paste(CacheCopy(cursor, {name: file.slots(name) for _, name, _ in self._usual.filled()}))
        return file.tokens

    def _fit(self, budgets: Sequence[int]) -> None:
        """Buffers for these budgets, if the last run's tokens lie in them."""
        needed = [max(pair) for pair in zip(budgets, self._cursor.places, strict=True)]
        if tuple(needed) != self._layout.budgets:
            layout = self._usual if tuple(needed) == self._usual.budgets else self._layout.of(needed)
            self.backend.resize(layout)
            self._layout = layout


def pooled(score: NDArray[np.float32], position: NDArray[np.int32], width: int) -> NDArray[np.float32]:
    """Scores [kv_heads, tokens, planes] whose attention planes are the largest of the `width` tokens around each, in
    the order of position [kv_heads, tokens]; the norms stay.

        pooled[t] = max(score[t - width // 2], …, score[t + width // 2])
    """
    order = np.argsort(position, axis=1)[..., None]
    found: NDArray[np.float32] = score.copy()
    for plane in [plane for plane in range(score.shape[2]) if plane != NORM]:
        ranked = np.take_along_axis(score[..., plane : plane + 1], order, axis=1)[..., 0]
        padded = np.pad(ranked, ((0, 0), (width // 2, width // 2)), constant_values=-np.inf)
        largest = np.lib.stride_tricks.sliding_window_view(padded, width, axis=1).max(axis=2)
        np.put_along_axis(found[..., plane : plane + 1], order, largest[..., None], axis=1)
    return found
