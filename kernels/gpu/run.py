"""What the attention kernels share: the control row, the slots that a run sees, and its logits over them."""

from __future__ import annotations

import triton
import triton.language as tl

from edgellm.kernels.control import Control


def _field(name: str) -> tl.constexpr:
    return tl.constexpr(Control._fields.index(name))


COMMITTED, ACCEPTED, STAGED, BUDGET = (_field(name) for name in ("committed", "accepted", "staged", "budget"))
SINKS, POLICY, RECENT, NORM = (_field(name) for name in ("sinks", "policy", "recent", "norm"))
COUNTED, FORGET, QUERIES, ANCHOR = (_field(name) for name in ("counted", "forget", "queries", "anchor"))
HEADS = _field("heads")


@triton.jit
def field(control, WHICH: tl.constexpr):
    """A number of the control row as int32."""
    return tl.load(control + WHICH).to(tl.int32)


@triton.jit
def kept(control):
    """How many tokens are committed once the last run's accepted ones are."""
    return tl.minimum(field(control, BUDGET), field(control, COMMITTED) + field(control, ACCEPTED))


@triton.jit
def places_of(i, head, committed, budget, capacity):
    """Where the i-th slot seen of a KV head lies among all heads' slots: committed ones come first, then this run's."""
    return head.to(tl.int64) * capacity + tl.where(i < committed, i, budget + i - committed)


@triton.jit
def rows_of(buffer, row, live, HEAD_DIM: tl.constexpr, WIDE: tl.constexpr):
    """Heads number `row` of a buffer of them, fp16 [R, WIDE]; 0 where not live and beyond HEAD_DIM."""
    d = tl.arange(0, WIDE)[None, :]
    return tl.load(buffer + row.to(tl.int64)[:, None] * HEAD_DIM + d, mask=live[:, None] & (d < HEAD_DIM), other=0.0)


@triton.jit
def logits_of(q, k, t, live, at, i, when, committed, steps, scale, window, softcap):
    """Logits [R, S] of queries q, of tokens t at positions `at`, and keys k, of the slots seen number i, with tokens of
    positions `when`; -inf where unseen.

    scale * q . k, capped to softcap * tanh(. / softcap); token t sees committed slots and staged ones up to its own, of
    these in a sliding layer the last `window` positions.
    """
    s = tl.dot(q, tl.trans(k)) * scale
    if softcap > 0:
        s = softcap * (2 * tl.sigmoid(2 * s / softcap) - 1)
    seen = live[:, None] & (i < committed + steps)[None, :] & (i[None, :] <= committed + t[:, None])
    seen = seen & ((when[None, :] > at[:, None] - window) | (window + 0 * t[:, None] == 0))
    return tl.where(seen, s, float("-inf"))


@triton.jit
def weighed(s, most):
    """Logits s [R, S] under a running maximum `most` [R]: weights exp(s - new), the new maximum, and what earlier
    weights are worth under it. A row that saw nothing yet stays at -inf, with weights of 0."""
    new = tl.maximum(most, tl.max(s, axis=1))
    by = tl.where(new == float("-inf"), 0.0, new)
    return tl.exp(s - by[:, None]), new, tl.exp(most - by)
