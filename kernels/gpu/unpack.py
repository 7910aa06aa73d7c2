"""Weight tiles (kernels/layout.py: the CPU's own order) to weights in registers: NMMatMul and QuantGather share it.

A *group* here is the m weights among which n are kept; their codes are neighbours in memory, and dense weights are
groups of four, all kept. In order of memory a tile has 64/m x 16 outputs of them where groups lie along the input, 64
inputs x 16/m where they lie along the output. At 4 bits the low half of a byte is of a block's first groups and the
high half of its last ones; with places, of an even block and of the next.

Where n is a power of two, a group's codes are one load of n bytes, from which shifts take each: a warp reads whole
lines. Other n (3:4, 6:8, …) fetch them byte by byte.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def panel_bytes(k_in, BITS: tl.constexpr, GROUP: tl.constexpr, MINIMA: tl.constexpr, N: tl.constexpr, M: tl.constexpr):
    """Format.panel_bytes: those of 16 outputs over all inputs, int64."""
    tile: tl.constexpr = 128 * N // M * BITS + (128 if N < M else 0)
    span: tl.constexpr = max(GROUP, 64)
    scales: tl.constexpr = span // GROUP * (64 if MINIMA else 32)
    return (k_in // 64 * tile + k_in // span * scales).to(tl.int64)


@triton.jit
def unpack(
    tiles, panel, t, live, BITS: tl.constexpr, GROUP: tl.constexpr, MINIMA: tl.constexpr,
    N: tl.constexpr, M: tl.constexpr, OUT: tl.constexpr,
):  # fmt: skip
    """Q tiles as weights, float32 [Q, 64 inputs, 16 outputs].

    panel int64 [Q]: a tile's panel begins so many bytes into `tiles`; t [Q]: its number there; live [Q]: where not,
    nothing is read and the weights mean nothing. BITS … OUT: Format's bits, group, zero = "min", n, m, axis = "out".
    """
    Q: tl.constexpr = t.shape[0]
    TILE: tl.constexpr = 128 * N // M * BITS + (128 if N < M else 0)
    SPAN: tl.constexpr = max(GROUP, 64)
    PARTS: tl.constexpr = SPAN // GROUP  # scales an output at the head of a run
    SCALES: tl.constexpr = PARTS * (64 if MINIMA else 32)
    INNER: tl.constexpr = SPAN // 64
    run = tiles + panel + (t // INNER) * (SCALES + INNER * TILE)
    body = run + SCALES + (t % INNER) * TILE
    part = tl.arange(0, PARTS)[None, :, None, None]
    at = (run[:, None, None, None] + 32 * part + 2 * tl.arange(0, 16)[None, None, None, :]).to(
        tl.pointer_type(tl.float16)
    )
    there = live[:, None, None, None]
    scale = tl.load(at, mask=there, other=0.0).to(tl.float32)
    if MINIMA:
        minimum = tl.load(at + 16 * PARTS, mask=there, other=0.0).to(tl.float32)
    code, kept = _codes(body, live, BITS, 0 if MINIMA else 1 << (BITS - 1), N, M, OUT)
    w = code.reshape([Q, PARTS, 64 // PARTS, 16]) * scale
    if MINIMA:
        w += kept.reshape([Q, PARTS, 64 // PARTS, 16]) * minimum
    return w.reshape([Q, 64, 16])


@triton.jit
def _codes(body, live, BITS: tl.constexpr, ZERO: tl.constexpr, N: tl.constexpr, M: tl.constexpr, OUT: tl.constexpr):
    """Codes less the zero point, 0 where dropped, and 1 where kept, both float32 [Q, 64 inputs, 16 outputs]."""
    Q: tl.constexpr = body.shape[0]
    SPARSE: tl.constexpr = N < M
    WIDE: tl.constexpr = M if SPARSE else 4  # weights a group
    KEEP: tl.constexpr = N if SPARSE else 4
    PLACES: tl.constexpr = N == 2 and M == 4 and not OUT
    HALF: tl.constexpr = BITS == 4
    A: tl.constexpr = 8 if PLACES and HALF else 16
    H: tl.constexpr = 16 if PLACES else 64 // WIDE // (2 if HALF else 1)
    a = tl.arange(0, A)[None, :, None]
    h = tl.arange(0, H)[None, None, :]
    body = body[:, None, None]
    live = live[:, None, None] & (a >= 0) & (h >= 0)
    if PLACES:
        STEPS: tl.constexpr = A // 4  # of codes a chunk of four blocks
        chunk = body + a // STEPS * (32 + 32 * STEPS)
        at = chunk + 32 + a % STEPS * 32 + 2 * h
        places = _word(chunk + 2 * h, live, 2)
        block = 2 * (a % STEPS) if HALF else a % STEPS
        low = _placed(places, block)
        high = _placed(places, block + 1)
    else:
        at = body + (128 if SPARSE else 0) + a * (8 * KEEP // WIDE * BITS) + h * KEEP
        low = _mask(body + 8 * a, h, live, SPARSE, WIDE)
        high = _mask(body + 8 * a, h + H, live, SPARSE, WIDE)
    word = _word(at, live, KEEP)
    code, kept = _lanes(word, at, live, low, 0, BITS, ZERO, KEEP, WIDE)
    if HALF:  # [Q, A, H, WIDE, half] -> [Q, A, half, H, WIDE]
        other, too = _lanes(word, at, live, high, 4, BITS, ZERO, KEEP, WIDE)
        code = tl.join(code, other).permute(0, 1, 4, 2, 3)
        kept = tl.join(kept, too).permute(0, 1, 4, 2, 3)
    if OUT:
        return code.reshape([Q, 64, 16]), kept.reshape([Q, 64, 16])
    code = code.reshape([Q, 64 // WIDE, 16, WIDE]).permute(0, 1, 3, 2)
    kept = kept.reshape([Q, 64 // WIDE, 16, WIDE]).permute(0, 1, 3, 2)
    return code.reshape([Q, 64, 16]), kept.reshape([Q, 64, 16])


@triton.jit
def _word(at, live, KEEP: tl.constexpr):
    """KEEP bytes as one integer; where they make none, 0."""
    if KEEP == 1:
        return tl.load(at, mask=live, other=0).to(tl.int32)
    if KEEP == 2:
        return tl.load(at.to(tl.pointer_type(tl.uint16)), mask=live, other=0).to(tl.int32)
    if KEEP == 4:
        return tl.load(at.to(tl.pointer_type(tl.int32)), mask=live, other=0)
    if KEEP == 8:
        return tl.load(at.to(tl.pointer_type(tl.int64)), mask=live, other=0)
    return tl.zeros(live.shape, tl.int32)


@triton.jit
def _placed(places, block):
    """The mask of a group of 2:4 along the input: two places of two bits each, at bits 2*block of either byte."""
    return (1 << ((places >> 2 * block) & 3)) | (1 << ((places >> (8 + 2 * block)) & 3))


@triton.jit
def _mask(at, h, live, SPARSE: tl.constexpr, WIDE: tl.constexpr):
    """Group h's bits of a block's mask, which begins at `at`; of dense weights all."""
    if not SPARSE:
        return tl.full(live.shape, 15, tl.int32)
    if WIDE == 4:
        return (tl.load(at + h // 2, mask=live, other=0).to(tl.int32) >> (h % 2 * 4)) & 15
    return _word(at + h * (WIDE // 8), live, WIDE // 8)


@triton.jit
def _lanes(word, at, live, mask, SHIFT: tl.constexpr, BITS: tl.constexpr, ZERO: tl.constexpr, KEEP: tl.constexpr,
           WIDE: tl.constexpr):  # fmt: skip
    """The weights of each group and 1 where kept, [..., WIDE]."""
    code, kept, rank = _four(word, at, live, mask, 0, 0, SHIFT, BITS, ZERO, KEEP)
    if WIDE >= 8:
        c, k, rank = _four(word, at, live, mask, rank, 4, SHIFT, BITS, ZERO, KEEP)
        code, kept = _beside(code, c), _beside(kept, k)
    if WIDE == 16:
        c, k, rank = _four(word, at, live, mask, rank, 8, SHIFT, BITS, ZERO, KEEP)
        d, q, rank = _four(word, at, live, mask, rank, 12, SHIFT, BITS, ZERO, KEEP)
        code, kept = _beside(code, _beside(c, d)), _beside(kept, _beside(k, q))
    return code, kept


@triton.jit
def _four(word, at, live, mask, rank, I: tl.constexpr, SHIFT: tl.constexpr, BITS: tl.constexpr, ZERO: tl.constexpr,
          KEEP: tl.constexpr):  # fmt: skip
    """Weights I … I+3 of each group and 1 where kept, [..., 4], and the rank of what follows.

    A kept weight's code is the one of its rank among the kept: how many bits of the mask are below its own.
    """
    a, b, c, d = (mask >> I) & 1, (mask >> (I + 1)) & 1, (mask >> (I + 2)) & 1, (mask >> (I + 3)) & 1
    r1 = rank + a
    r2 = r1 + b
    r3 = r2 + c
    w0 = _weight(word, at, live, a, rank, SHIFT, BITS, ZERO, KEEP)
    w1 = _weight(word, at, live, b, r1, SHIFT, BITS, ZERO, KEEP)
    w2 = _weight(word, at, live, c, r2, SHIFT, BITS, ZERO, KEEP)
    w3 = _weight(word, at, live, d, r3, SHIFT, BITS, ZERO, KEEP)
    kept = _quad(a, b, c, d).to(tl.float32)
    return _quad(w0, w1, w2, w3), kept, r3 + d


@triton.jit
def _weight(word, at, live, there, rank, SHIFT: tl.constexpr, BITS: tl.constexpr, ZERO: tl.constexpr,
            KEEP: tl.constexpr):  # fmt: skip
    """The rank-th code of each group less ZERO, 0 where none is `there`.

    The bits of float 2^23 + code are those of 2^23 or'ed with code: cheaper on a GPU than a conversion.
    """
    if KEEP == 1 or KEEP == 2 or KEEP == 4 or KEEP == 8:
        byte = word >> (8 * rank + SHIFT)
    else:
        byte = tl.load(at + rank, mask=live & (there != 0), other=0).to(tl.int32) >> SHIFT
    bits = (byte & ((1 << BITS) - 1)).to(tl.int32) | 0x4B000000
    return tl.where(there != 0, bits.to(tl.float32, bitcast=True) - (8388608.0 + ZERO), 0.0)


@triton.jit
def _quad(a, b, c, d):
    """Four tensors as one of a dimension more, [..., 4]."""
    x = tl.join(tl.join(a, c), tl.join(b, d))
    return x.reshape([x.shape[0], x.shape[1], x.shape[2], 4])


@triton.jit
def _beside(x, y):
    """[..., k] and [..., k] -> [..., 2k]."""
    both = tl.join(x, y).permute(0, 1, 2, 4, 3)
    return both.reshape([x.shape[0], x.shape[1], x.shape[2], 2 * x.shape[3]])
