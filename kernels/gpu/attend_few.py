"""Decoding, in the manner of Flash-Decoding (arXiv 2307.08691): slots are split among programs, then combined.

For a split S of the slots:  m = max_S s,  l = sum_S exp(s - m),  y' = sum_S exp(s - m) value,  s the logits (run.py)

  y = sum_S exp(m_S - m) y'_S / sum_S exp(m_S - m) l_S,   paid[row, slot] = exp(s - m) / l   with m, l over all slots

All query heads of a KV head, and all tokens, pass together as rows: keys and values are read once. Logits are kept for
the scores: 4 bytes a row and slot instead of the key again.
"""

from __future__ import annotations

import triton
import triton.language as tl

from edgellm.kernels.gpu.run import BUDGET, field, kept, logits_of, places_of, rows_of, weighed
from edgellm.kernels.gpu.votes import counted_of, settle, voted


@triton.jit
def attend_few(
    query, positions, control, key, value, position, extent, sums, logits,
    steps, heads, capacity, scale, window, softcap,
    HEAD_DIM: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr, SLOTS: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """A program is a KV head's split of SPLIT slots: grid (kv_heads, splits); behind those seen it do nothing."""
    head, split = tl.program_id(0), tl.program_id(1)
    kv_heads, splits = tl.num_programs(0), tl.num_programs(1)
    group = heads // kv_heads
    rows = steps * group
    committed, budget = kept(control), field(control, BUDGET)
    row = tl.arange(0, ROWS)
    t = row // group
    live = row < rows
    d = tl.arange(0, WIDE)[None, :]
    if split * SPLIT < committed + steps:
        at = tl.load(positions + t, mask=live, other=0).to(tl.int32)
        q = rows_of(query, head * rows + row, live, HEAD_DIM, WIDE)
        most = tl.full([ROWS], float("-inf"), tl.float32)
        total = tl.zeros([ROWS], tl.float32)
        y = tl.zeros([ROWS, WIDE], tl.float32)
        for first in range(split * SPLIT, tl.minimum(split * SPLIT + SPLIT, committed + steps), SLOTS):
            i = first + tl.arange(0, SLOTS)
            place = places_of(i, head, committed, budget, capacity)
            there = i < committed + steps
            when = tl.load(position + place, mask=there, other=0)
            k = rows_of(key, place, there, HEAD_DIM, WIDE)
            s = logits_of(q, k, t, live, at, i, when, committed, steps, scale, window, softcap)
            keep = (head * rows + row).to(tl.int64)[:, None] * (splits * SPLIT) + i[None, :]
            tl.store(logits + keep, s, mask=live[:, None] & there[None, :])
            p, most, worth = weighed(s, most)
            total = total * worth + tl.sum(p, axis=1)
            v = rows_of(value, place, there, HEAD_DIM, WIDE)
            y = tl.dot(p.to(tl.float16), v, y * worth[:, None])
        part = (head * splits + split) * rows + row
        tl.store(extent + 2 * part, most, mask=live)
        tl.store(extent + 2 * part + 1, total, mask=live)
        tl.store(sums + part.to(tl.int64)[:, None] * HEAD_DIM + d, y, mask=live[:, None] & (d < HEAD_DIM))


@triton.jit
def _all(extent, part, parts, rows, live):
    """Maximum and total of rows over the first `parts` splits; part: where each row's first split lies in extent."""
    most = tl.full(part.shape, float("-inf"), tl.float32)
    total = tl.zeros(part.shape, tl.float32)
    for split in range(parts):
        m = tl.load(extent + 2 * (part + split * rows), mask=live, other=0.0)
        l = tl.load(extent + 2 * (part + split * rows) + 1, mask=live, other=1.0)
        new = tl.maximum(most, m)
        by = tl.where(new == float("-inf"), 0.0, new)
        total = total * tl.exp(most - by) + l * tl.exp(m - by)
        most = new
    return most, total


@triton.jit
def combine_few(
    positions, control, extent, sums, logits, score, y, steps, heads, capacity, planes,
    HEAD_DIM: tl.constexpr, WIDE: tl.constexpr, GROUP: tl.constexpr, TOKENS: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """Results and scores: grid (kv_heads, splits). A program writes the scores of its split, and every splits-th block
    of TOKENS tokens of y. GROUP: the power of two that holds a group."""
    head, split = tl.program_id(0), tl.program_id(1)
    kv_heads, splits = tl.num_programs(0), tl.num_programs(1)
    group = heads // kv_heads
    rows = steps * group
    committed, budget = kept(control), field(control, BUDGET)
    parts = tl.cdiv(committed + steps, SPLIT)
    d = tl.arange(0, WIDE)[None, :]
    of = tl.arange(0, TOKENS * GROUP)
    i = split * SPLIT + tl.arange(0, SPLIT)
    there = i < committed + steps
    counted = tl.where(split < parts, counted_of(control), 0)
    paid = tl.zeros([SPLIT], tl.float32)
    older = tl.zeros([SPLIT], tl.float32)
    for first in range(0, steps, TOKENS):
        t = first + of // GROUP
        live = (t < steps) & (of % GROUP < group)
        row = t * group + of % GROUP
        part = (head * splits * rows + row).to(tl.int64)
        if first // TOKENS % splits == split:
            most, total = _all(extent, part, parts, rows, live)
            mixed = tl.zeros([TOKENS * GROUP, WIDE], tl.float32)
            for other in range(parts):
                at = part + other * rows
                worth = tl.exp(tl.load(extent + 2 * at, mask=live, other=0.0) - most)
                wide = live[:, None] & (d < HEAD_DIM)
                mixed += worth[:, None] * tl.load(sums + at[:, None] * HEAD_DIM + d, mask=wide, other=0.0)
            to = (t * heads + head * group + of % GROUP).to(tl.int64)[:, None] * HEAD_DIM + d
            tl.store(y + to, (mixed / total[:, None]).to(y.dtype.element_ty), mask=live[:, None] & (d < HEAD_DIM))
        if first < counted:
            most, total = _all(extent, part, parts, rows, live)
            keep = (head * rows + row).to(tl.int64)[:, None] * (splits * SPLIT) + i[None, :]
            s = tl.load(logits + keep, mask=live[:, None] & there[None, :], other=float("-inf"))
            p = (tl.exp(s - most[:, None]) / total[:, None]).reshape([TOKENS, GROUP, SPLIT])
            now, before = voted(control, positions, p, first + tl.arange(0, TOKENS), counted, group)
            paid += now
            older += before
    if counted > 0:
        place = places_of(i, head, committed, budget, capacity)
        settle(control, positions, score, place, there, planes, counted, paid, older)
