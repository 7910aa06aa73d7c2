"""PrunedKVAttention, second part: this run's keys and values go behind the budget, its queries to a buffer."""

from __future__ import annotations

import triton
import triton.language as tl

from edgellm.kernels.control import NORM
from edgellm.kernels.gpu.run import BUDGET, field

LENGTH = tl.constexpr(NORM)


@triton.jit
def turned(
    x, t, live, norm, cos, sin, half, has_norm, epsilon, HEAD_DIM: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Heads x [R] (pointers) of tokens t [R], normed where has_norm and rotated, float32 [R, WIDE]; 0 beyond HEAD_DIM.

    Rotate-half: y[i] = x[i] cos[i] - x[half+i] sin[i],  y[half+i] = x[half+i] cos[i] + x[i] sin[i];  the rest passes.
    """
    d = tl.arange(0, WIDE)[None, :]
    other = tl.where(d < half, d + half, tl.where(d < 2 * half, d - half, d))
    there = live[:, None] & (d < HEAD_DIM)
    a = tl.load(x[:, None] + d, mask=there, other=0.0).to(tl.float32)
    b = tl.load(x[:, None] + other, mask=there, other=0.0).to(tl.float32)
    normed = (d < HEAD_DIM) & (has_norm + 0 * d != 0)
    root = tl.sqrt(tl.sum(a * a, axis=1) / HEAD_DIM + epsilon)[:, None]
    by = tl.where(has_norm + 0 * root != 0, 1 / root, 1.0)
    a *= by * tl.load(norm + d, mask=normed, other=1.0).to(tl.float32)
    b *= by * tl.load(norm + other, mask=normed, other=1.0).to(tl.float32)
    angle = t.to(tl.int64)[:, None] * half + tl.where(d < half, d, d - half)
    rotary = live[:, None] & (d < 2 * half)
    c = tl.load(cos + angle, mask=rotary, other=1.0).to(tl.float32)
    s = tl.load(sin + angle, mask=rotary, other=0.0).to(tl.float32)
    return a * c + tl.where(d < half, -b, b) * s


@triton.jit
def stage(
    qkv, cos, sin, positions, control, q_norm, k_norm, key, value, position, score, query,
    steps, heads, capacity, half, planes, has_norm, epsilon,
    HEAD_DIM: tl.constexpr, WIDE: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    """A program is TOKENS tokens of a KV head and its group: grid (kv_heads, blocks of tokens).

    query [kv_heads, token * group + query head, HEAD_DIM] is fp16, as the keys are that it meets.
    """
    head, kv_heads = tl.program_id(0), tl.num_programs(0)
    group = heads // kv_heads
    t = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)
    live = t < steps
    d = tl.arange(0, WIDE)[None, :]
    plane = tl.arange(0, 4)[None, :]
    wide = live[:, None] & (d < HEAD_DIM)
    token = qkv + t.to(tl.int64) * (heads + 2 * kv_heads) * HEAD_DIM
    slot = head.to(tl.int64) * capacity + field(control, BUDGET) + t
    at = slot[:, None]
    x = token + (heads + head) * HEAD_DIM
    k = turned(x, t, live, k_norm, cos, sin, half, has_norm, epsilon, HEAD_DIM, WIDE)
    tl.store(key + at * HEAD_DIM + d, k.to(tl.float16), mask=wide)
    v = tl.load(x[:, None] + kv_heads * HEAD_DIM + d, mask=wide, other=0.0).to(tl.float16)
    tl.store(value + at * HEAD_DIM + d, v, mask=wide)
    tl.store(position + slot, tl.load(positions + t, mask=live, other=0).to(tl.int32), mask=live)
    length = tl.sum(tl.abs(v.to(tl.float32)), axis=1)[:, None]
    tl.store(score + at * planes + plane, tl.where(plane == LENGTH, length, 0.0), mask=live[:, None] & (plane < planes))
    for g in range(group):
        x = token + (head * group + g) * HEAD_DIM
        q = turned(x, t, live, q_norm, cos, sin, half, has_norm, epsilon, HEAD_DIM, WIDE)
        row = (head.to(tl.int64) * steps + t) * group + g
        tl.store(query + row[:, None] * HEAD_DIM + d, q.to(tl.float16), mask=wide)
