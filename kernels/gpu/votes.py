"""How attention becomes scores (attention_reference.py, count), in closed form: tokens may add up in any order.

  score[s] = forget^counted * score[s] + sum_t forget^(counted - 1 - t) * paid[t, s]

Windows end where position + 1 - anchor divides by `queries`. A token after which none ended adds to the open one's
plane; after which one did, to the plane of the one before; else to none. The same holds for what was there before. A
run's positions are consecutive.
"""

from __future__ import annotations

import triton
import triton.language as tl

from edgellm.kernels.control import ATTENTION as _ATTENTION
from edgellm.kernels.control import HEADS as _HEADS
from edgellm.kernels.control import MILLION as _MILLION
from edgellm.kernels.control import OLDER as _OLDER
from edgellm.kernels.control import SCORE as _SCORE
from edgellm.kernels.gpu.run import ANCHOR, COUNTED, FORGET, HEADS, POLICY, QUERIES, field

ATTENTION, OLDER, MILLION = tl.constexpr(_ATTENTION), tl.constexpr(_OLDER), tl.constexpr(_MILLION)
SCORE = tl.constexpr(_SCORE)
MEAN, MAX = tl.constexpr(_HEADS.index("mean")), tl.constexpr(_HEADS.index("max"))


@triton.jit
def counted_of(control):
    """How many of the run's tokens count; 0 where the policy has no scores."""
    return tl.where(field(control, POLICY) == SCORE, field(control, COUNTED), 0)


@triton.jit
def _power(control, n):
    """forget^n, with 0^0 = 1."""
    stays = field(control, FORGET).to(tl.float32) / MILLION
    return tl.where(n == 0, 1.0, tl.exp2(n.to(tl.float32) * tl.log2(tl.maximum(stays, 1e-38))))


@triton.jit
def _ended(control, positions, t, counted):
    """How many windows end with token t or a later counted one."""
    length, anchor = field(control, QUERIES), field(control, ANCHOR)
    first = tl.load(positions).to(tl.int32)
    windows = tl.maximum(length, 1)
    by_last = (first + counted - anchor + windows) // windows
    before = (first + t - anchor + windows) // windows
    return tl.where(length > 0, by_last - before, 0)


@triton.jit
def voted(control, positions, p, t, counted, group):
    """What tokens t [T] paid in all, from probabilities p [T, heads, S]: in the open window and in the one before.

    paid[t, s] = sum | mean | max over the group's query heads; what is no head must be 0.
    """
    how = field(control, HEADS)
    of_heads = tl.where(how == MAX, tl.max(p, axis=1), tl.sum(p, axis=1) / tl.where(how == MEAN, group, 1))
    worth = tl.where(t < counted, _power(control, tl.maximum(counted - 1 - t, 0)), 0.0)
    gone = _ended(control, positions, t, counted)
    now = tl.sum(tl.where(gone == 0, worth, 0.0)[:, None] * of_heads, axis=0)
    return now, tl.sum(tl.where(gone == 1, worth, 0.0)[:, None] * of_heads, axis=0)


@triton.jit
def settle(control, positions, score, place, there, planes, counted, paid, older):
    """Scores at `place` from what they were and this run's sums of the open window (paid) and of the one before."""
    stays = _power(control, counted)
    gone = _ended(control, positions, 0, counted)
    at = score + place * planes
    attention = tl.load(at + ATTENTION, mask=there, other=0.0)
    tl.store(at + ATTENTION, tl.where(gone == 0, stays * attention, 0.0) + paid, mask=there)
    windows = there & (field(control, QUERIES) + 0 * place > 0)
    was = tl.load(at + OLDER, mask=windows, other=0.0)
    was = tl.where(gone == 0, was, tl.where(gone == 1, attention, 0.0))
    tl.store(at + OLDER, stays * was + older, mask=windows)
