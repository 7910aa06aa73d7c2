"""PrunedKVAttention, first part: commit the last run's accepted tokens, evicting where the budget is full, as
kernels/cpu/commit.cc does.

Who goes: of tokens that are neither sinks nor recent, the `excess` of least importance, of equals the oldest.
Importance and position make one 64-bit key, so that they are those whose key is at most a threshold; bisection finds
it, counting keys, and when decoding, where one token goes, it is the least key.
"""

from __future__ import annotations

import triton
import triton.language as tl

from edgellm.kernels.control import ATTENTION as _ATTENTION
from edgellm.kernels.control import NORM as _NORM
from edgellm.kernels.control import OLDER as _OLDER
from edgellm.kernels.control import WINDOW as _WINDOW
from edgellm.kernels.gpu.run import ACCEPTED, BUDGET, COMMITTED, NORM, POLICY, QUERIES, RECENT, SINKS, STAGED, field

ATTENTION, OLDER, LENGTH = tl.constexpr(_ATTENTION), tl.constexpr(_OLDER), tl.constexpr(_NORM)
WINDOW = tl.constexpr(_WINDOW)
NEVER = tl.constexpr((1 << 63) - 1)  # the key of a token that stays


@triton.jit
def _slot(i, control):
    """The i-th token's slot: committed ones in order, then the accepted."""
    committed = field(control, COMMITTED)
    return tl.where(i < committed, i, field(control, STAGED) + i - committed)


@triton.jit
def _newest(position, control, count, BLOCK: tl.constexpr):
    newest = tl.full([BLOCK], -1, tl.int32)
    for first in range(0, count, BLOCK):
        i = first + tl.arange(0, BLOCK)
        newest = tl.maximum(newest, tl.load(position + _slot(i, control), mask=i < count, other=-1))
    return tl.max(newest, axis=0)


@triton.jit
def _key(i, position, score, control, planes, newest, count):
    """What orders the i-th token among those that may go: importance as an integer of the same order, then position."""
    there = i < count
    slot = _slot(i, control)
    when = tl.load(position + slot, mask=there, other=0)
    window = field(control, POLICY) == WINDOW
    scored = there & (window + 0 * i == 0)
    at = score + slot * planes
    rank = tl.load(at + ATTENTION, mask=scored, other=0.0)
    rank += tl.load(at + OLDER, mask=scored & (field(control, QUERIES) + 0 * i > 0), other=0.0)
    rank *= tl.load(at + LENGTH, mask=scored & (field(control, NORM) + 0 * i > 0), other=1.0)
    rank = tl.where(rank == rank, rank, float("-inf"))  # not a number goes first
    rank = tl.where(window, when.to(tl.float32), rank) + 0.0  # -0 is 0
    bits = rank.to(tl.int32, bitcast=True)
    bits = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    recent = tl.where(window, 0, field(control, RECENT))
    free = there & (when >= field(control, SINKS)) & (when <= newest - recent)
    return tl.where(free, (bits.to(tl.int64) << 32) | when.to(tl.int64), NEVER)


@triton.jit
def _threshold(position, score, control, planes, newest, count, excess, BLOCK: tl.constexpr):
    """The key up to which tokens go: `excess` of them, or all that may where these are fewer."""
    low = tl.full([BLOCK], NEVER, tl.int64)
    high = tl.full([BLOCK], -NEVER, tl.int64)
    for first in range(0, count, BLOCK):
        i = first + tl.arange(0, BLOCK)
        key = _key(i, position, score, control, planes, newest, count)
        low = tl.minimum(low, key)
        high = tl.maximum(high, tl.where(key == NEVER, -NEVER, key))
    least = tl.min(low, axis=0)
    most = tl.max(high, axis=0)
    if excess == 1:
        most = tl.minimum(least, most)
    while least < most:
        middle = (least >> 1) + (most >> 1) + (least & most & 1)
        taken = tl.zeros([BLOCK], tl.int32)
        for first in range(0, count, BLOCK):
            i = first + tl.arange(0, BLOCK)
            taken += (_key(i, position, score, control, planes, newest, count) <= middle).to(tl.int32)
        found = tl.sum(taken, axis=0)
        most = tl.where(found >= excess, middle, most)
        least = tl.where(found > excess, least, tl.where(found == excess, middle, middle + 1))
    return most


@triton.jit
def _move(source, target, there, key, value, position, score, planes, HEAD_DIM: tl.constexpr, WIDE: tl.constexpr):
    """Copy slots of one KV head over others; all are read before any is written."""
    d = tl.arange(0, WIDE)[None, :]
    wide = there[:, None] & (d < HEAD_DIM)
    k = tl.load(key + source[:, None] * HEAD_DIM + d, mask=wide)
    v = tl.load(value + source[:, None] * HEAD_DIM + d, mask=wide)
    when = tl.load(position + source, mask=there)
    plane = tl.arange(0, 4)[None, :]
    narrow = there[:, None] & (plane < planes)
    paid = tl.load(score + source[:, None] * planes + plane, mask=narrow)
    tl.debug_barrier()
    tl.store(key + target[:, None] * HEAD_DIM + d, k, mask=wide)
    tl.store(value + target[:, None] * HEAD_DIM + d, v, mask=wide)
    tl.store(position + target, when, mask=there)
    tl.store(score + target[:, None] * planes + plane, paid, mask=narrow)
    tl.debug_barrier()


@triton.jit
def _evict(
    key, value, position, score, scratch, control, planes, capacity, count,
    HEAD_DIM: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Tokens that stay but lie behind the budget fill the slots whose tokens go, both in order."""
    budget, committed = field(control, BUDGET), field(control, COMMITTED)
    newest = _newest(position, control, count, BLOCK)
    threshold = _threshold(position, score, control, planes, newest, count, count - budget, BLOCK)
    moves, holes = 0, 0
    for first in range(0, count, BLOCK):
        i = first + tl.arange(0, BLOCK)
        slot = _slot(i, control)
        goes = _key(i, position, score, control, planes, newest, count) <= threshold
        moving = (i < count) & (slot >= budget) & (goes == 0)
        tl.store(scratch + moves + tl.cumsum(moving.to(tl.int32), axis=0) - 1, slot, mask=moving)
        moves += tl.sum(moving.to(tl.int32), axis=0)
        hole = (i < committed) & (i < budget) & goes
        tl.store(scratch + capacity + holes + tl.cumsum(hole.to(tl.int32), axis=0) - 1, slot, mask=hole)
        holes += tl.sum(hole.to(tl.int32), axis=0)
    for first in range(committed, budget, BLOCK):  # free ones
        i = first + tl.arange(0, BLOCK)
        tl.store(scratch + capacity + holes + i - committed, i, mask=i < budget)
    tl.debug_barrier()
    for first in range(0, moves, ROWS):
        j = first + tl.arange(0, ROWS)
        source = tl.load(scratch + j, mask=j < moves, other=0)
        target = tl.load(scratch + capacity + j, mask=j < moves, other=0)
        _move(source, target, j < moves, key, value, position, score, planes, HEAD_DIM, WIDE)


@triton.jit
def commit(
    control, key, value, position, score, scratch, capacity, planes,
    HEAD_DIM: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """A program is a KV head: grid (kv_heads,). WIDE: the power of two that holds HEAD_DIM."""
    slots = tl.program_id(0).to(tl.int64) * capacity
    key += slots * HEAD_DIM
    value += slots * HEAD_DIM
    position += slots
    score += slots * planes
    committed, accepted, staged = field(control, COMMITTED), field(control, ACCEPTED), field(control, STAGED)
    if committed + accepted > field(control, BUDGET):
        _evict(key, value, position, score, scratch + 2 * slots, control, planes, capacity, committed + accepted,
               HEAD_DIM, WIDE, BLOCK, ROWS)  # fmt: skip
    else:  # targets lie before sources: in order no row is overwritten before it moved
        for first in range(0, accepted, ROWS):
            j = first + tl.arange(0, ROWS)
            there = j < accepted
            _move(staged + j, committed + j, there, key, value, position, score, planes, HEAD_DIM, WIDE)
