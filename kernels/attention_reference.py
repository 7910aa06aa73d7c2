"""The meaning of PrunedKVAttention in NumPy: slow, obvious, the oracle of its tests (reference.py has the others)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.kernels.control import ATTENTION, FULL, HEADS, MILLION, NORM, OLDER, WINDOW, Control
from edgellm.kernels.kv_rows import ROW, SCALE_BYTES, from_rows, hadamard, row_width, to_rows
from edgellm.kernels.reference import F32, rms_norm


@dataclass
class Cache:
    """One layer's buffers: key, value fp16 [kv_heads, capacity, head_dim] (keys rotated), position int32 [kv_heads,
    capacity], score float32 [kv_heads, capacity, planes] (control.py). Slots [0, budget) are for committed tokens,
    slots from `budget` on hold the last run's own. key and value may also be int8 rows (kv_rows.py)."""

    key: NDArray[Any]
    value: NDArray[Any]
    position: NDArray[np.int32]
    score: NDArray[np.float32]

    @staticmethod
    def empty(kv_heads: int, capacity: int, head_dim: int, planes: int = 0, bits: int = 16) -> Cache:
        """A cache of zeros; bits: of keys and values, 16 or 8."""
        wide, narrow = (kv_heads, capacity, row_width(head_dim, bits)), (kv_heads, capacity)
        zeros = np.zeros(wide, ROW[bits]), np.zeros(wide, ROW[bits]), np.zeros(narrow, np.int32)
        return Cache(*zeros, np.zeros((*narrow, planes), np.float32))

    @property
    def bits(self) -> int:
        """Of keys and values, 16 or 8."""
        return 8 * self.key.itemsize

    def move(self, head: int, source: int, target: int) -> None:
        """Copy a slot of one KV head over another."""
        for buffer in (self.key, self.value, self.position, self.score):
            buffer[head, target] = buffer[head, source]


def rotate(x: F32, cos: F32, sin: F32) -> F32:
    """Rotary embedding, rotate-half order: x [T, heads, head_dim], cos and sin [T, rotary/2]; the rest passes."""
    half = cos.shape[1]
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    c, s = cos[:, None], sin[:, None]
    return np.concatenate([a * c - b * s, b * c + a * s, rest], axis=-1)


def importance(cache: Cache, c: Control, head: int) -> NDArray[np.float32]:
    """What a KV head's tokens are ranked by, [capacity]: their position (WINDOW), or their score."""
    if c.policy == WINDOW:
        position: NDArray[np.float32] = cache.position[head].astype(np.float32)
        return position
    score = cache.score[head]
    paid = score[:, ATTENTION] + score[:, OLDER] if c.queries else score[:, ATTENTION]
    ranked: NDArray[np.float32] = paid * (score[:, NORM] if c.norm else np.float32(1))
    ranked[np.isnan(ranked)] = -np.inf
    return ranked


def evicted(cache: Cache, c: Control, head: int, slots: list[int]) -> set[int]:
    """Those of a KV head's `slots` that go so that `budget` are left: the least important of those that are neither
    sinks nor recent; of equals, the oldest."""
    position, rank = cache.position[head], importance(cache, c, head)
    newest = max(position[slot] for slot in slots)
    recent = c.recent if c.policy != WINDOW else 0
    open_to = [slot for slot in slots if c.sinks <= position[slot] <= newest - recent]
    return set(sorted(open_to, key=lambda slot: (rank[slot], position[slot]))[: len(slots) - c.budget])


def commit(cache: Cache, control: NDArray[np.int64]) -> int:
    """Move the last run's accepted tokens to the committed ones; returns how many tokens are committed then.

    control: one Control. Where all fit, they follow the committed ones in order. Where not, each KV head by itself
    keeps `budget` of both (see `evicted`), and a token that stays but lies at or behind slot `budget` moves, in order,
    to the first slot whose token goes or that is free. Raises ValueError with FULL then.
    """
    c = Control(*control.tolist())
    slots = [*range(c.committed), *range(c.staged, c.staged + c.accepted)]
    kept = min(c.budget, len(slots))
    if len(slots) > c.budget and c.policy == FULL:
        raise ValueError(f"the cache of {c.budget} tokens is full")
    for head in range(len(cache.key)):
        if kept == len(slots):
            for target, source in enumerate(slots):
                cache.move(head, source, target)
            continue
        gone = evicted(cache, c, head, slots)
        stay = [slot for slot in slots if slot not in gone]
        free = [slot for slot in range(kept) if slot not in stay]
        for source, target in zip([slot for slot in stay if slot >= kept], free, strict=True):
            cache.move(head, source, target)
    return kept


def count(cache: Cache, c: Control, seen: NDArray[np.int64], positions: NDArray[np.int64], attention: F32) -> None:
    """Add what this run's queries paid to the scores of slots `seen`: attention [T, heads, capacity], probabilities.

    For every counted query, score = forget * score + attention, summed (or …) over the query heads of a KV head.
    """
    grouped = attention.reshape(len(positions), len(cache.key), -1, attention.shape[-1])
    paid = getattr(np, HEADS[c.heads])(grouped, axis=2)
    score, stays = cache.score[:, seen], c.forget / MILLION
    for t in range(c.counted):
        score[..., ATTENTION] = stays * score[..., ATTENTION] + paid[t][:, seen]
        if c.queries:
            score[..., OLDER] *= stays
            if (positions[t] + 1 - c.anchor) % c.queries == 0:
                score[..., OLDER] = score[..., ATTENTION]
                score[..., ATTENTION] = 0
    cache.score[:, seen] = score


def pruned_kv_attention(
    qkv: F32, cos: F32, sin: F32, positions: NDArray[np.int64], control: NDArray[np.int64], cache: Cache,
    scale: float, window: int = 0, softcap: float = 0.0,
    q_norm: F32 | None = None, k_norm: F32 | None = None, epsilon: float = 0.0, k_shift: F32 | None = None,
) -> F32:  # fmt: skip
    """PrunedKVAttention: commit the last run's accepted tokens, stage these T, attend and score, all in the cache.

    qkv [T, (heads + 2*kv_heads) * head_dim], a token's query heads, then its keys, then its values; cos and sin
    [T, rotary/2], positions [T] -> y [T, heads*head_dim]. q_norm and k_norm [head_dim], where the model has them, norm
    each head of q and k before rotation. Token t sees all committed tokens and the staged ones up to itself:
    y = softmax(scale * q k^T) v, a group of heads/kv_heads query heads sharing a KV head. Keys and values are read back
    from the cache, so at its width, their norm too; int8 keys are held, and met by queries, rotated by `hadamard`.
    k_shift [kv_heads * head_dim] is taken off rotated keys, which changes all logits of a query alike: softmax drops it
    (and a soft cap would not: ValueError).
    window: a token sees only positions above its own less `window` (0: all). softcap: logits become
    softcap * tanh(logits / softcap) before softmax (0: they stay).
    """
    c = Control(*control.tolist())
    committed = commit(cache, control)
    steps, (kv_heads, capacity, row) = len(qkv), cache.key.shape
    head_dim = row - SCALE_BYTES if cache.bits == 8 else row
    all_heads = qkv.reshape(steps, -1, head_dim)
    q, k, v = np.split(all_heads, [all_heads.shape[1] - 2 * kv_heads, all_heads.shape[1] - kv_heads], axis=1)
    q, k = (x if norm is None else rms_norm(x, norm, epsilon) for x, norm in ((q, q_norm), (k, k_norm)))
    q, k = rotate(q, cos, sin), rotate(k, cos, sin)
    if k_shift is not None:
        if softcap:
            raise ValueError("keys are shifted, and a soft cap would not drop that")
        k = k - k_shift.reshape(kv_heads, head_dim)
    if cache.bits == 8:
        q, k = hadamard(q), hadamard(k)
    staged = slice(c.budget, c.budget + steps)
    cache.key[:, staged] = to_rows(k.transpose(1, 0, 2), cache.key.dtype)
    cache.value[:, staged] = to_rows(v.transpose(1, 0, 2), cache.key.dtype)
    cache.position[:, staged] = positions
    cache.score[:, staged] = 0
    if cache.score.shape[2] > NORM:
        cache.score[:, staged, NORM] = np.abs(from_rows(cache.value[:, staged])).sum(axis=2)
    y = np.empty_like(q)
    attention = np.zeros((*q.shape[:2], capacity), np.float32)
    group = q.shape[1] // kv_heads
    for t in range(steps):
        seen = np.r_[0:committed, c.budget : c.budget + t + 1]
        for head in range(q.shape[1]):
            at = cache.position[head // group, seen]
            near = seen[at > positions[t] - window] if window else seen
            logits = scale * (from_rows(cache.key[head // group, near]) @ q[t, head])
            if softcap:
                logits = softcap * np.tanh(logits / softcap)
            weights = np.exp(logits - logits.max())
            attention[t, head, near] = weights / weights.sum()
            y[t, head] = attention[t, head, near] @ from_rows(cache.value[head // group, near])
    if c.planes:
        count(cache, c, np.r_[0:committed, staged], positions, attention)
    return y.reshape(steps, -1)
