"""Rounding: float weights -> codes, fp16 scales (and minima) by row and group of inputs."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgellm.export.scales import codes, search
from edgellm.kernels.layout import Format, Quantized
from edgellm.runtime.errors import EdgellmError

_ROWS_AT_ONCE = 4096
_WEIGHTS_AT_ONCE = 1 << 20  # of a search: its dozens of passes stay in the cache


def round_to_nearest(
    weight: Tensor,
    bits: int,
    group: int,
    zero: str = "symmetric",
    n: int = 1,
    m: int = 1,
    axis: str = "in",
    mask: Tensor | None = None,
) -> Quantized:
    """Quantize float32 [out, in]; with n < m, mask bool [out, in] says which weights are kept (n of every m).

    symmetric: scale = absmax / (2^(bits-1) - 1); min: scale = (max - min) / (2^bits - 1), minimum = min; over the kept
    weights of one row and group. Scales are rounded to fp16 first and codes against them; a group of zeros has scale 0
    (and code = zero point). Dropped codes are the zero point (symmetric) or 0, as unpacking returns them.
    Raises EdgellmError for sizes that the tile cannot hold, NaN or infinite weights, and scales beyond fp16.
    """
    try:
        layout = Format(weight.shape[0], weight.shape[1], bits, group, zero, n, m, axis)
    except ValueError as error:
        raise EdgellmError(f"cannot quantize: {error}", "Choose another --bits, group or --sparsity.") from None
    kept = _kept(mask, layout)
    values = weight.detach().numpy()
    code = np.empty(values.shape, np.uint8)
    groups = layout.k_in // group
    scale = np.empty((layout.n_out, groups), np.float16)
    minimum = np.empty((layout.n_out, groups), np.float16) if zero == "min" else None
    for start in range(0, layout.n_out, _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        w = values[rows].reshape(-1, groups, group)
        k = np.True_ if kept is None else kept[rows].reshape(w.shape)
        if minimum is None:
            scale[rows], codes = _symmetric(w, k, bits)
        else:
            scale[rows], minimum[rows], codes = _minimum(w, k, bits)
        code[rows] = codes.reshape(-1, layout.k_in)
    return _finite(Quantized(layout, code, scale, minimum, kept))


def round_searched(
    weight: Tensor, f: Format, importance: Tensor | None = None, mask: Tensor | None = None
) -> Quantized:
    """The same to `f`, with the grids of scales.search.

    importance: float [in] >= 0, the mean squares of the inputs, or None: all alike. Raises as round_to_nearest does.
    """
    _kept(mask, f)
    groups = f.k_in // f.group
    counts = torch.ones(f.k_in) if importance is None else _floored(importance).float()
    pieces = []
    step = max(1, _WEIGHTS_AT_ONCE // f.k_in)
    for start in range(0, f.n_out, step):
        w = weight[start : start + step].view(-1, groups, f.group)
        h = counts.view(groups, f.group)
        if mask is not None:
            h = h * mask[start : start + step].view(w.shape)
        grid = search(w, h, f.bits, f.zero)
        pieces.append((codes(w, grid, f.bits).to(torch.uint8).view(-1, f.k_in), *grid))
    code, scale, minimum = (torch.cat(parts) for parts in zip(*pieces, strict=True))
    return checked(f, code, scale, minimum, mask)


def checked(f: Format, code: Tensor, scale: Tensor, minimum: Tensor, mask: Tensor | None = None) -> Quantized:
    """What a search found as a Quantized: code uint8 [out, in], scale and minimum [out, groups], mask or None.

    Dropped codes become the zero point (symmetric) or 0, as unpacking returns them, and so do those of a group of
    zeros. Raises EdgellmError for a mask that is not f's N:M, NaN or infinite weights, and scales beyond fp16.
    """
    kept = _kept(mask, f)
    at_zero = f.zero_point if f.zero == "symmetric" else 0
    empty = (scale == 0).numpy().repeat(f.group, axis=1)
    values = np.where(empty if kept is None else empty | ~kept, np.uint8(at_zero), code.numpy())
    minima = _half(minimum.numpy()) if f.zero == "min" else None
    return _finite(Quantized(f, values, _half(scale.numpy()), minima, kept))


def _floored(importance: Tensor) -> Tensor:
    """No input counts nothing: a text that never excites it says little of the next one."""
    mean = importance.mean()
    return importance + 0.01 * mean if mean > 0 else torch.ones_like(importance)


def _finite(q: Quantized) -> Quantized:
    for halves in (q.scale, q.minimum):
        if halves is not None and not np.isfinite(halves).all():
            raise EdgellmError(
                "a weight is NaN, infinite, or too large for an fp16 scale", "Check the checkpoint's weights."
            )
    return q


def _symmetric(
    w: NDArray[np.float32], kept: NDArray[np.bool_] | np.bool_, bits: int
) -> tuple[NDArray[np.float16], NDArray[np.uint8]]:
    zero_point, top = 1 << (bits - 1), (1 << (bits - 1)) - 1
    w = np.where(kept, w, np.float32(0))
    scale = _half(np.abs(w).max(axis=-1) / np.float32(top))
    steps = _divide(w, scale)
    return scale, (np.clip(np.rint(steps), -zero_point, top) + zero_point).astype(np.uint8)


def _minimum(
    w: NDArray[np.float32], kept: NDArray[np.bool_] | np.bool_, bits: int
) -> tuple[NDArray[np.float16], NDArray[np.float16], NDArray[np.uint8]]:
    top = (1 << bits) - 1
    low = np.where(kept, w, np.float32(np.inf)).min(axis=-1)
    high = np.where(kept, w, np.float32(-np.inf)).max(axis=-1)
    empty = low > high  # every weight of the group was dropped
    minimum = _half(np.where(empty, np.float32(0), low))
    # From the rounded minimum, so that the largest weight stays in reach.
    span = np.where(empty, np.float32(0), high) - minimum.astype(np.float32)
    scale = _half(np.maximum(span, 0) / np.float32(top))
    steps = _divide(w - minimum.astype(np.float32)[..., None], scale)
    return scale, minimum, np.where(kept, np.clip(np.rint(steps), 0, top), 0).astype(np.uint8)


def _half(values: NDArray[np.float32]) -> NDArray[np.float16]:
    with np.errstate(over="ignore"):  # infinities are refused by the caller
        return values.astype(np.float16)


def _divide(w: NDArray[np.float32], scale: NDArray[np.float16]) -> NDArray[np.float32]:
    """w / scale, 0 where the scale is 0 or not finite."""
    usable = np.isfinite(scale) & (scale > 0)
    inverse = np.where(usable, scale, np.float16(1)).astype(np.float32)[..., None]
    return np.where(usable[..., None], w / inverse, np.float32(0))


def _kept(mask: Tensor | None, layout: Format) -> NDArray[np.bool_] | None:
    if not layout.sparse:
        return None
    if mask is None or mask.shape != (layout.n_out, layout.k_in):
        raise EdgellmError(f"{layout.n}:{layout.m} needs a mask of {layout.n_out} x {layout.k_in}", "Prune first.")
    groups = mask.T if layout.axis == "out" else mask
    counts = groups.reshape(groups.shape[0], -1, layout.m).sum(dim=-1)
    if not torch.equal(counts, torch.full_like(counts, layout.n)):
        raise EdgellmError(
            f"the mask does not keep exactly {layout.n} of every {layout.m} along {layout.axis}", "Prune with this N:M."
        )
    return np.ascontiguousarray(mask.numpy())
