"""Decoding, in the manner of Flash-Decoding (arXiv 2307.08691): slots are split among programs, then combined.

For a split S of the slots:  m = max_S s,  l = sum_S exp(s - m),  y' = sum_S exp(s - m) value,  s the logits (run.py)

  y = sum_S exp(m_S - m) y'_S / sum_S exp(m_S - m) l_S,     paid[row, slot] = exp(s - m) / l      with m, l over all slots

All query heads of a KV head, and all tokens, pass together as rows: keys and values are read once. Logits are kept for the
scores: 4 bytes a row and slot instead of the key again.
"""

from __future__ import annotations

import triton
import triton.language as tl

from edgellm.kernels.gpu.run import BUDGET, HEADS, field, kept, logits_of, places_of, rows_of, weighed
from edgellm.kernels.gpu.votes import counted_of, ended, settle, weight


@triton.jit
def attend_few(
    query, positions, control, key, value, position, extent, sums, logits,
    steps, heads, capacity, scale, window, softcap,
    HEAD_DIM: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr, SLOTS: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """A program is a KV head's split of SPLIT slots: grid (kv_heads, splits); those beyond the slots seen do nothing."""
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
def _all(extent, head, row, rows, splits, parts):
    """A row's maximum and total over the first `parts` splits."""
    most = tl.full([], float("-inf"), tl.float32)
    total = tl.full([], 0.0, tl.float32)
    for first in range(0, parts, 32):
        split = first + tl.arange(0, 32)
        part = extent + 2 * ((head * splits + split) * rows + row)
        m = tl.load(part, mask=split < parts, other=float("-inf"))
        l = tl.load(part + 1, mask=split < parts, other=0.0)
        new = tl.maximum(most, tl.max(m, axis=0))
        by = tl.where(new == float("-inf"), 0.0, new)
        total = total * tl.exp(most - by) + tl.sum(l * tl.exp(m - by), axis=0)
        most = new
    return most, total


@triton.jit
def combine_few(
    positions, control, extent, sums, logits, score, y, steps, heads, capacity, planes,
    HEAD_DIM: tl.constexpr, WIDE: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """Results and scores: grid (kv_heads, splits). A program writes every splits-th row and the scores of its split."""
    head, split = tl.program_id(0), tl.program_id(1)
    kv_heads, splits = tl.num_programs(0), tl.num_programs(1)
    group = heads // kv_heads
    rows = steps * group
    committed, budget = kept(control), field(control, BUDGET)
    parts = tl.cdiv(committed + steps, SPLIT)
    d = tl.arange(0, WIDE)
    for row in range(split, rows, splits):
        most, total = _all(extent, head, row, rows, splits, parts)
        mixed = tl.zeros([WIDE], tl.float32)
        for other in range(0, parts):
            part = (head * splits + other) * rows + row
            worth = tl.exp(tl.load(extent + 2 * part) - most)
            mixed += worth * tl.load(sums + part.to(tl.int64) * HEAD_DIM + d, mask=d < HEAD_DIM, other=0.0)
        t = row // group
        at = (t * heads + head * group + row % group).to(tl.int64) * HEAD_DIM + d
        tl.store(y + at, (mixed / total).to(y.dtype.element_ty), mask=d < HEAD_DIM)

    counted = counted_of(control)
    how = field(control, HEADS)
    if (counted > 0) & (split < parts):
        i = split * SPLIT + tl.arange(0, SPLIT)
        there = i < committed + steps
        paid = tl.zeros([SPLIT], tl.float32)
        older = tl.zeros([SPLIT], tl.float32)
        for t in range(0, counted):
            of_heads = tl.zeros([SPLIT], tl.float32)
            for g in range(0, group):
                row = t * group + g
                most, total = _all(extent, head, row, rows, splits, parts)
                keep = (head * rows + row).to(tl.int64) * (splits * SPLIT) + i
                p = tl.exp(tl.load(logits + keep, mask=there, other=float("-inf")) - most) / total
                of_heads = tl.where(how == 2, tl.maximum(of_heads, p), of_heads + p)
            worth = weight(control, t, counted) / tl.where(how == 1, group, 1)
            gone = ended(control, positions, t, counted)
            paid += tl.where(gone == 0, worth, 0.0) * of_heads
            older += tl.where(gone == 1, worth, 0.0) * of_heads
        place = places_of(i, head, committed, budget, capacity)
        settle(control, positions, score, place, there, planes, counted, paid, older)
