"""NMMatMul:  y = x W^T + bias + residual,  or  y = act(x W_gate^T) * (x W_up^T),  W unpacked from tiles in registers.

Decoding reads every packed byte once and multiplies outside the tensor cores; more rows go through them, the weights
rounded to x's type first, as everybody's 4-bit kernels do. Sums are float32 in both.
"""

from __future__ import annotations

import triton
import triton.language as tl

from edgellm.kernels.gpu.unpack import panel_bytes, unpack


@triton.jit
def _activated(gate, ACTIVATION: tl.constexpr):
    """silu(gate) = gate * sigmoid(gate), or GELU in its tanh form: tanh(z) = 2 sigmoid(2z) - 1."""
    if ACTIVATION == "silu":
        return gate * tl.sigmoid(gate)
    return gate * tl.sigmoid(1.5957691216057308 * (gate + 0.044715 * gate * gate * gate))


@triton.jit
def _added(y, bias, residual, place, column, live, has_bias, has_residual):
    """y + bias + residual, of those that there are."""
    y += tl.load(bias + column, mask=live & (column >= 0) & (has_bias + 0 * column != 0), other=0.0).to(tl.float32)
    return y + tl.load(residual + place, mask=live & (has_residual + 0 * column != 0), other=0.0).to(tl.float32)


@triton.jit
def _one_panel(
    x, tiles, panel, k_in, BITS: tl.constexpr, GROUP: tl.constexpr, MINIMA: tl.constexpr, N: tl.constexpr,
    M: tl.constexpr, OUT: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """One row times one panel, float32 [16]; TILES tiles at a time, a thread keeps sums of its own until the end."""
    start = panel * panel_bytes(k_in, BITS, GROUP, MINIMA, N, M)
    acc = tl.zeros([TILES, 64, 16], tl.float32)
    for first in range(0, k_in // 64, TILES):
        t = first + tl.arange(0, TILES)
        live = t < k_in // 64
        at = t[:, None, None] * 64 + tl.arange(0, 64)[None, :, None]
        part = tl.load(x + at, mask=live[:, None, None], other=0.0).to(tl.float32)
        w = unpack(tiles, start + tl.zeros([TILES], tl.int64), t, live, BITS, GROUP, MINIMA, N, M, OUT)
        acc += w * part
    return tl.sum(acc.reshape([TILES * 64, 16]), axis=0)


@triton.jit
def nm_decode(
    x, tiles, bias, residual, y, n_out, k_in, has_bias, has_residual,
    BITS: tl.constexpr, GROUP: tl.constexpr, MINIMA: tl.constexpr, N: tl.constexpr, M: tl.constexpr,
    OUT: tl.constexpr, ACTIVATION: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """A program is 16 results of one row: grid (panels, rows), with an activation (panels/2, rows)."""
    panel, row = tl.program_id(0), tl.program_id(1)
    x += row.to(tl.int64) * k_in
    column = panel * 16 + tl.arange(0, 16)
    if ACTIVATION == "none":
        width = n_out
        sums = _one_panel(x, tiles, panel, k_in, BITS, GROUP, MINIMA, N, M, OUT, TILES)
        place = row.to(tl.int64) * width + column
        sums = _added(sums, bias, residual, place, column, column < width, has_bias, has_residual)
    else:
        width = n_out // 2
        gate = _one_panel(x, tiles, 2 * panel, k_in, BITS, GROUP, MINIMA, N, M, OUT, TILES)
        up = _one_panel(x, tiles, 2 * panel + 1, k_in, BITS, GROUP, MINIMA, N, M, OUT, TILES)
        place = row.to(tl.int64) * width + column
        sums = _activated(gate, ACTIVATION) * up
    tl.store(y + place, sums.to(y.dtype.element_ty), mask=column < width)


@triton.jit
def _dense(
    tiles, panel, live, first, k_in, BITS: tl.constexpr, GROUP: tl.constexpr, MINIMA: tl.constexpr,
    N: tl.constexpr, M: tl.constexpr, OUT: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """Tiles first … first+TILES-1 of P panels as one matrix, float32 [64*TILES, 16*P]."""
    P: tl.constexpr = panel.shape[0]
    t = (first + tl.arange(0, TILES))[None, :]
    inside = (live[:, None] & (t < k_in // 64)).reshape([P * TILES])
    start = (panel * panel_bytes(k_in, BITS, GROUP, MINIMA, N, M))[:, None] + 0 * t
    t = (t + tl.zeros([P, 1], tl.int32)).reshape([P * TILES])
    w = unpack(tiles, start.reshape([P * TILES]), t, inside, BITS, GROUP, MINIMA, N, M, OUT)
    return w.reshape([P, 64 * TILES, 16]).permute(1, 0, 2).reshape([64 * TILES, 16 * P])


@triton.jit
def nm_rows(
    x, tiles, bias, residual, y, rows, n_out, k_in, has_bias, has_residual,
    BITS: tl.constexpr, GROUP: tl.constexpr, MINIMA: tl.constexpr, N: tl.constexpr, M: tl.constexpr,
    OUT: tl.constexpr, ACTIVATION: tl.constexpr, TILES: tl.constexpr, ROWS: tl.constexpr, PANELS: tl.constexpr,
):  # fmt: skip
    """A program is ROWS rows by 16*PANELS results: grid (blocks of results, blocks of rows)."""
    width = n_out if ACTIVATION == "none" else n_out // 2
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    panel = tl.program_id(0) * PANELS + tl.arange(0, PANELS)
    live = panel * 16 < width
    column = tl.program_id(0) * (16 * PANELS) + tl.arange(0, 16 * PANELS)
    acc = tl.zeros([ROWS, 16 * PANELS], tl.float32)
    other = tl.zeros([ROWS, 16 * PANELS], tl.float32)
    for first in range(0, k_in // 64, TILES):
        k = first * 64 + tl.arange(0, 64 * TILES)
        there = (row < rows)[:, None] & (k < k_in)[None, :]
        part = tl.load(x + row.to(tl.int64)[:, None] * k_in + k[None, :], mask=there, other=0.0)
        if ACTIVATION == "none":
            w = _dense(tiles, panel, live, first, k_in, BITS, GROUP, MINIMA, N, M, OUT, TILES)
            acc = tl.dot(part, w.to(x.dtype.element_ty), acc)
        else:
            gate = _dense(tiles, 2 * panel, live, first, k_in, BITS, GROUP, MINIMA, N, M, OUT, TILES)
            up = _dense(tiles, 2 * panel + 1, live, first, k_in, BITS, GROUP, MINIMA, N, M, OUT, TILES)
            acc = tl.dot(part, gate.to(x.dtype.element_ty), acc)
            other = tl.dot(part, up.to(x.dtype.element_ty), other)
    place = row.to(tl.int64)[:, None] * width + column[None, :]
    inside = (row < rows)[:, None] & (column < width)[None, :]
    if ACTIVATION == "none":
        acc = _added(acc, bias, residual, place, column[None, :] + 0 * row[:, None], inside, has_bias, has_residual)
    else:
        acc = _activated(acc, ACTIVATION) * other
    tl.store(y + place, acc.to(y.dtype.element_ty), mask=inside)
