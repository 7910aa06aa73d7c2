"""Packing: a Quantized matrix into the bytes that kernels read (kernels/layout.py says how they lie)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.kernels.layout import BLOCKS, PANEL, TILE, Format, Quantized, to_blocks


def pack(q: Quantized) -> NDArray[np.uint8]:
    """The final tile order of a matrix: uint8 [q.format.nbytes]. Outputs are padded to 16 with zero weights.

    Raises ValueError when the mask does not keep exactly n of every m, or an array's shape is not the format's.
    """
    f = q.format
    check(q)
    out = np.zeros(f.nbytes, np.uint8)
    runs, inner = f.k_in // max(f.group, TILE), max(f.group, TILE) // TILE
    rows = out.reshape(f.panels, runs, f.scale_bytes + inner * f.tile_bytes)
    rows[:, :, : f.scale_bytes] = _scales(q)
    rows[:, :, f.scale_bytes :] = _tiles(q).reshape(f.panels, runs, inner * f.tile_bytes)
    return out


def check(q: Quantized) -> None:
    """Raise ValueError unless the shapes fit the format and its mask keeps exactly n of m."""
    f = q.format
    groups = (f.n_out, f.k_in // f.group)
    if q.code.shape != (f.n_out, f.k_in) or q.scale.shape != groups:
        raise ValueError(f"codes {q.code.shape} and scales {q.scale.shape} do not fit {f}")
    if (q.minimum is None) == (f.zero == "min") or (q.minimum is not None and q.minimum.shape != groups):
        raise ValueError(f'zero is "{f.zero}": minima are expected with "min" and only then')
    if (q.mask is None) == f.sparse:
        raise ValueError(f"{f.n}:{f.m} format {'without a' if f.sparse else 'with a needless'} mask")
    if q.mask is not None:
        along = q.mask if f.axis == "in" else q.mask.T
        counts = along.reshape(along.shape[0], -1, f.m).sum(axis=-1)
        if not (counts == f.n).all():
            raise ValueError(f"the mask keeps {counts.min()} to {counts.max()} of {f.m}; expected exactly {f.n}")


def interleave(gate: Quantized, up: Quantized) -> Quantized:
    """Gate and up [ff, k_in] as one [2*ff, k_in]: 16 gate outputs, then the 16 up outputs they multiply, and so on.

    Raises ValueError when the two differ in format or ff does not divide by 16.
    """
    if gate.format != up.format:
        raise ValueError(f"gate is {gate.format}, up is {up.format}: both must have one format")
    f = gate.format
    if f.n_out % PANEL:
        raise ValueError(f"{f.n_out} neurons do not divide by {PANEL}")

    def rows(a: NDArray[Any] | None, b: NDArray[Any] | None) -> Any:
        if a is None or b is None:
            return None
        both = np.stack([a.reshape(-1, PANEL, a.shape[1]), b.reshape(-1, PANEL, b.shape[1])], axis=1)
        return both.reshape(2 * f.n_out, a.shape[1])

    double = Format(**{**f.attributes(), "n_out": 2 * f.n_out})
    pairs = ((gate.code, up.code), (gate.scale, up.scale), (gate.minimum, up.minimum), (gate.mask, up.mask))
    return Quantized(double, *(rows(a, b) for a, b in pairs))


def stack(parts: Sequence[Quantized]) -> Quantized:
    """Matrices of one format [n_i, k_in] as one [sum n_i, k_in], in this order (q, k and v as "qkv")."""

    def joined(arrays: list[NDArray[Any] | None]) -> Any:
        return None if arrays[0] is None else np.concatenate([a for a in arrays if a is not None])

    rows = sum(part.format.n_out for part in parts)
    fields = ("code", "scale", "minimum", "mask")
    return Quantized(replace(parts[0].format, n_out=rows), *(joined([getattr(p, f) for p in parts]) for f in fields))


def _pad(matrix: NDArray[Any], f: Format, value: int = 0) -> NDArray[Any]:
    return np.pad(matrix, ((0, f.panels * PANEL - f.n_out), (0, 0)), constant_values=value)


def _scales(q: Quantized) -> NDArray[np.uint8]:
    f = q.format
    planes = [q.scale] if q.minimum is None else [q.scale, q.minimum]
    padded = np.stack([_pad(plane, f) for plane in planes])  # [planes, panels*16, groups]
    per_run = max(1, TILE // f.group)
    cut = padded.reshape(len(planes), f.panels, PANEL, -1, per_run).transpose(1, 3, 0, 4, 2)
    cut = np.ascontiguousarray(cut, np.float16)
    return cut.reshape(f.panels, -1, f.scale_bytes // 2).view(np.uint8)


def _tiles(q: Quantized) -> NDArray[np.uint8]:
    f = q.format
    filler = f.zero_point if f.zero == "symmetric" else 0
    code = to_blocks(_pad(q.code, f, filler), f)
    if q.mask is None:
        return _nibbles(code, f).reshape(f.panels, f.k_in // TILE, f.tile_bytes)
    # Padding outputs keep the first n of every m, so that every block holds the same count.
    padded = _pad(q.mask, f)
    spare = np.arange(f.k_in)[None] if f.axis == "in" else np.arange(f.n_out, len(padded))[:, None]
    padded[f.n_out :] = spare % f.m < f.n
    mask = to_blocks(padded, f)
    kept = code[mask].reshape(f.panels, f.k_in // TILE, BLOCKS, 64 * f.n // f.m)
    if f.places:
        return _chunks(kept, np.nonzero(mask)[-1].reshape(kept.shape) % 4, f)
    bits = np.packbits(mask, axis=-1, bitorder="little").reshape(f.panels, f.k_in // TILE, 8 * BLOCKS)
    codes = _nibbles(kept, f).reshape(f.panels, f.k_in // TILE, -1)
    return np.concatenate([bits, codes], axis=-1)


def _chunks(kept: NDArray[np.uint8], place: NDArray[np.int64], f: Format) -> NDArray[np.uint8]:
    """Tiles of codes and places [panels, tiles, 16, 32] in chunks of four blocks."""
    chunks = (*kept.shape[:2], 4, 4, 32)
    places = (place.reshape(chunks) << np.arange(0, 8, 2)[:, None]).sum(axis=-2).astype(np.uint8)
    codes = kept.reshape(chunks)
    if f.bits == 4:
        codes = codes[..., 0::2, :] | codes[..., 1::2, :] << np.uint8(4)
    both = np.concatenate([places, codes.reshape(*places.shape[:3], -1)], axis=-1)
    return both.reshape(*kept.shape[:2], f.tile_bytes)


def _nibbles(kept: NDArray[np.uint8], f: Format) -> NDArray[np.uint8]:
    if f.bits == 8:
        return kept
    half = kept.shape[-1] // 2
    packed: NDArray[np.uint8] = kept[..., :half] | (kept[..., half:] << np.uint8(4))
    return packed
