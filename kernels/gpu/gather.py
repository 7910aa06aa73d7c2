"""QuantGather: rows of a packed matrix."""

from __future__ import annotations

import triton
import triton.language as tl

from edgellm.kernels.gpu.unpack import panel_bytes, unpack


@triton.jit
def quant_gather(
    ids, tiles, y, k_in,
    BITS: tl.constexpr, GROUP: tl.constexpr, MINIMA: tl.constexpr, N: tl.constexpr, M: tl.constexpr,
    OUT: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """A program is one id: grid (T,). It unpacks the panel of 16 rows that its own lies in: a token asks for one."""
    token = tl.program_id(0)
    row = tl.load(ids + token)
    start = row // 16 * panel_bytes(k_in, BITS, GROUP, MINIMA, N, M)
    wanted = tl.arange(0, 16)[None, None, :] == row % 16
    for first in range(0, k_in // 64, TILES):
        t = first + tl.arange(0, TILES)
        live = t < k_in // 64
        w = unpack(tiles, start + tl.zeros([TILES], tl.int64), t, live, BITS, GROUP, MINIMA, N, M, OUT)
        found = tl.sum(tl.where(wanted, w, 0.0), axis=2)
        at = token.to(tl.int64) * k_in + t[:, None] * 64 + tl.arange(0, 64)[None, :]
        tl.store(y + at, found.to(y.dtype.element_ty), mask=live[:, None])
