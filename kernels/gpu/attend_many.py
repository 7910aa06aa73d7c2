"""Prefill, in the manner of FlashAttention (arXiv 2205.14135): rows in blocks, slots with a running maximum; and the
scores of many rows, from logits worked out again once each row's maximum and total are known.
"""

from __future__ import annotations

import triton
import triton.language as tl

from edgellm.kernels.gpu.run import BUDGET, field, kept, logits_of, places_of, rows_of, weighed
from edgellm.kernels.gpu.votes import counted_of, settle, voted


@triton.jit
def attend_many(
    query, positions, control, key, value, position, extent, y,
    steps, heads, capacity, scale, window, softcap,
    HEAD_DIM: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr, SLOTS: tl.constexpr,
):  # fmt: skip
    """A program is ROWS rows (token * group + query head) of a KV head: grid (kv_heads, blocks of rows)."""
    head, kv_heads = tl.program_id(0), tl.num_programs(0)
    group = heads // kv_heads
    rows = steps * group
    committed, budget = kept(control), field(control, BUDGET)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    t = row // group
    live = row < rows
    d = tl.arange(0, WIDE)[None, :]
    at = tl.load(positions + t, mask=live, other=0).to(tl.int32)
    q = rows_of(query, head * rows + row, live, HEAD_DIM, WIDE)
    most = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, WIDE], tl.float32)
    last = tl.minimum(steps, (tl.program_id(1) * ROWS + ROWS - 1) // group + 1)
    for first in range(0, committed + last, SLOTS):
        i = first + tl.arange(0, SLOTS)
        place = places_of(i, head, committed, budget, capacity)
        there = i < committed + steps
        when = tl.load(position + place, mask=there, other=0)
        k = rows_of(key, place, there, HEAD_DIM, WIDE)
        s = logits_of(q, k, t, live, at, i, when, committed, steps, scale, window, softcap)
        p, most, worth = weighed(s, most)
        total = total * worth + tl.sum(p, axis=1)
        v = rows_of(value, place, there, HEAD_DIM, WIDE)
        acc = tl.dot(p.to(tl.float16), v, acc * worth[:, None])
    part = head.to(tl.int64) * rows + row
    tl.store(extent + 2 * part, most, mask=live)
    tl.store(extent + 2 * part + 1, total, mask=live)
    acc /= tl.where(live, total, 1.0)[:, None]
    to = (t.to(tl.int64) * heads + head * group + row % group)[:, None] * HEAD_DIM + d
    tl.store(y + to, acc.to(y.dtype.element_ty), mask=live[:, None] & (d < HEAD_DIM))


@triton.jit
def score_many(
    query, positions, control, key, position, extent, score,
    steps, heads, capacity, planes, scale, window, softcap,
    HEAD_DIM: tl.constexpr, WIDE: tl.constexpr, GROUP: tl.constexpr, TOKENS: tl.constexpr, SLOTS: tl.constexpr,
):  # fmt: skip
    """A program is SLOTS slots of a KV head: grid (kv_heads, blocks of slots). GROUP: the power of two that holds a
    group, so that rows here are TOKENS x GROUP, some of them empty."""
    head, kv_heads = tl.program_id(0), tl.num_programs(0)
    group = heads // kv_heads
    rows = steps * group
    committed, budget = kept(control), field(control, BUDGET)
    counted = counted_of(control)
    i = tl.program_id(1) * SLOTS + tl.arange(0, SLOTS)
    there = i < committed + steps
    if (counted > 0) & (tl.program_id(1) * SLOTS < committed + steps):
        place = places_of(i, head, committed, budget, capacity)
        when = tl.load(position + place, mask=there, other=0)
        k = rows_of(key, place, there, HEAD_DIM, WIDE)
        paid = tl.zeros([SLOTS], tl.float32)
        older = tl.zeros([SLOTS], tl.float32)
        of = tl.arange(0, TOKENS * GROUP)
        for first in range(0, counted, TOKENS):
            t = first + of // GROUP
            live = (t < counted) & (of % GROUP < group)
            row = tl.where(live, t * group + of % GROUP, rows)
            at = tl.load(positions + t, mask=live, other=0).to(tl.int32)
            q = rows_of(query, head * rows + row, live, HEAD_DIM, WIDE)
            s = logits_of(q, k, t, live, at, i, when, committed, steps, scale, window, softcap)
            part = extent + 2 * (head.to(tl.int64) * rows + row)
            most = tl.load(part, mask=live, other=0.0)
            total = tl.load(part + 1, mask=live, other=1.0)
            p = (tl.exp(s - most[:, None]) / total[:, None]).reshape([TOKENS, GROUP, SLOTS])
            now, before = voted(control, positions, p, first + tl.arange(0, TOKENS), counted, group)
            paid += now
            older += before
        settle(control, positions, score, place, there, planes, counted, paid, older)
