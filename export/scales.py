"""Group scales searched by reconstruction error: the fp16 scale (and minimum) that leaves a group's weights the least
weighted squared error after rounding. The weights of inputs that are often large count more (AWQ, arXiv 2306.00978, and
llama.cpp's importance matrix weigh so); rounding to nearest spreads the group's whole range instead (quantize.py).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

Grid = tuple[Tensor, Tensor]
"""Scale and minimum of groups, float32 [...], both exactly fp16 (symmetric: the minimum is -scale * 2^(bits-1))."""

REFINED = 2  # least-squares fits of the best candidate to its own codes
CLIPPED = (0.0, 0.06, 0.12, 0.18)  # of the range, at either end


def search(w: Tensor, importance: Tensor, bits: int, zero: str) -> Grid:
    """The grid of least sum of importance * error^2 among candidates, for groups of weights float32 [..., g].

    importance: float32 >= 0, broadcast to [..., g]; 0 where a weight is dropped. Candidates with zero "symmetric":
    scales of either sign, so that the side with a code more is the one it serves, from the whole range to 60 % of it;
    with "min": ranges whose ends move inwards; then, for both, least-squares fits to the codes. At 8 bits nothing is
    clipped. A group whose weights are all zero or dropped has scale 0. Scales beyond fp16 come out infinite.
    """
    importance = importance.expand_as(w)
    candidates = (_symmetric if zero == "symmetric" else _range)(w, importance > 0, bits)
    best = next(candidates)
    least = _error(w, importance, best, bits)
    for candidate in candidates:
        best, least = _better(best, least, candidate, _error(w, importance, candidate, bits))
    for _ in range(REFINED):
        fitted = _fit(w, importance, best, bits, zero)
        best, least = _better(best, least, fitted, _error(w, importance, fitted, bits))
    return best


def codes(w: Tensor, grid: Grid, bits: int) -> Tensor:
    """The nearest codes 0 ... 2^bits - 1, float32 [..., g], of weights [..., g]; 0 where the scale is 0 or infinite."""
    inverse, low = reciprocal(grid)
    return nearest(w, inverse[..., None], low[..., None], bits)


def reciprocal(grid: Grid) -> Grid:
    """(1 / scale, minimum), both 0 where the scale is 0 or one of them infinite."""
    scale, minimum = grid
    usable = torch.isfinite(scale) & (scale != 0) & torch.isfinite(minimum)
    return torch.where(usable, 1 / torch.where(usable, scale, 1), 0), torch.where(usable, minimum, 0)


def nearest(w: Tensor, inverse: Tensor, low: Tensor, bits: int) -> Tensor:
    """The codes of weights, by what `reciprocal` gave."""
    return (w - low).mul_(inverse).round_().clamp_(0, (1 << bits) - 1)


def _symmetric(w: Tensor, kept: Tensor, bits: int) -> Iterator[Grid]:
    half = 1 << (bits - 1)
    largest = torch.where(kept, w.abs(), 0).amax(-1)
    # How many steps the largest weight is: half - 1 clips nothing whatever its sign.
    for step in range(11 if bits < 8 else 1):
        for sign in (1, -1):
            yield _anchored(largest * (sign / (half - 1 + half * step / 16)), half)


def _range(w: Tensor, kept: Tensor, bits: int) -> Iterator[Grid]:
    top = (1 << bits) - 1
    low = torch.where(kept, w, torch.inf).amin(-1)
    high = torch.where(kept, w, -torch.inf).amax(-1)
    empty = low > high  # every weight of the group was dropped
    low, high = torch.where(empty, 0, low), torch.where(empty, 0, high)
    span = high - low
    ends = CLIPPED if bits < 8 else CLIPPED[:1]
    for below in ends:
        for above in ends:
            minimum = _half(low + below * span)
            # From the rounded minimum, so that the upper end stays in reach.
            yield _half((high - above * span - minimum).clamp_min(0) / top), minimum


def _fit(w: Tensor, importance: Tensor, found: Grid, bits: int, zero: str) -> Grid:
    """The weighted least-squares scale (and minimum) for the codes that `found` gives."""
    q = codes(w, found, bits)
    weighted = importance * q
    if zero == "symmetric":
        half = 1 << (bits - 1)
        q -= half
        weighted = importance * q
        squares = (weighted * q).sum(-1)
        return _anchored(torch.where(squares > 0, (weighted * w).sum(-1) / squares.clamp_min(1e-37), found[0]), half)
    total, first = importance.sum(-1).double(), weighted.sum(-1).double()
    second, both = (weighted * q).sum(-1).double(), (weighted * w).sum(-1).double()
    value = (importance * w).sum(-1).double()
    determinant = total * second - first * first
    sound = determinant > 1e-6 * total * second  # else all weights have one code
    safe = torch.where(sound, determinant, 1)
    scale = torch.where(sound, ((total * both - first * value) / safe).float(), found[0])
    minimum = torch.where(sound, ((second * value - first * both) / safe).float(), found[1])
    return _half(scale), _half(minimum)


def _error(w: Tensor, importance: Tensor, grid: Grid, bits: int) -> Tensor:
    scale, minimum = grid
    off = codes(w, grid, bits).mul_(scale[..., None]).add_(minimum[..., None]).sub_(w)
    return off.square_().mul_(importance).sum(-1)


def _better(best: Grid, least: Tensor, other: Grid, error: Tensor) -> tuple[Grid, Tensor]:
    wins = error < least
    chosen = torch.where(wins, other[0], best[0]), torch.where(wins, other[1], best[1])
    return chosen, torch.where(wins, error, least)


def _anchored(scale: Tensor, half: int) -> Grid:
    scale = _half(scale)
    return scale, -half * scale


def _half(values: Tensor) -> Tensor:
    return values.half().float()
