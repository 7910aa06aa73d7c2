"""Doctor's check: the product that decoding and prefill are made of, in the library, against its reference."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from edgellm.kernels.layout import TILE, Format
from edgellm.kernels.library import nm_matmul
from edgellm.kernels.reference import nm_matmul as reference

OUT, IN = 48, 256
FORMATS = (
    Format(OUT, IN, 4, 64),
    Format(OUT, IN, 8, 128),
    Format(OUT, IN, 4, 32, "min"),
    Format(OUT, IN, 4, 64, n=2, m=4),
    Format(OUT, IN, 8, 64, n=4, m=8),
)
ROWS = (1, 40)  # a token; a prompt
TOLERANCE = 1e-3  # of the norm: activations are rounded to 16 bits


def self_test(formats: Iterable[Format] = FORMATS) -> None:
    """Raises RuntimeError naming the format where the product strays from its reference."""
    random = np.random.default_rng(0)
    for f in formats:
        tiles = _tiles(f, random)
        for rows in ROWS:
            x = random.standard_normal((rows, f.k_in), np.float32)
            expected = reference(x, tiles, f)
            if not np.linalg.norm(nm_matmul(x, tiles, f) - expected) <= TOLERANCE * np.linalg.norm(expected):
                raise RuntimeError(f"NMMatMul strays from its reference for {rows} rows and {f}")


def _tiles(f: Format, random: np.random.Generator) -> NDArray[np.uint8]:
    """Random codes, with scales that are numbers and, where weights are dropped, n kept of every m."""
    tiles = random.integers(0, 256, f.nbytes).astype(np.uint8)
    runs = tiles.reshape(-1, f.scale_bytes + max(f.group, TILE) // TILE * f.tile_bytes)
    runs[:, : f.scale_bytes] = np.linspace(0.1, 1, f.scale_bytes // 2).astype(np.float16).view(np.uint8)
    for start in range(f.scale_bytes, runs.shape[1] if f.sparse else 0, f.tile_bytes):
        if f.places:  # inputs 0 and 3 of every four, ahead of each chunk's codes
            for chunk in range(start, start + f.tile_bytes, f.tile_bytes // 4):
                runs[:, chunk : chunk + 32] = np.tile([0, 255], 16)
        else:
            runs[:, start : start + 128] = 0b01010101
    return tiles
