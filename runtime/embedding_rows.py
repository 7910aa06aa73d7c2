"""Rows of the packed embedding, read from the mapped data file: what an engine is fed instead of token ids."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgellm.kernels.layout import PANEL, Format, dequantize, unpack


class EmbeddingRows:
    """QuantGather (kernels/reference.py) on the host. Memory: the pages of the rows asked for.

    offset: where the matrix begins in the file `data`. Raises OSError or ValueError where the file cannot be mapped.
    """

    def __init__(self, data: Path, offset: int, format: Format) -> None:
        self._format = format
        self._panels = np.memmap(data, np.uint8, "r", offset, (format.panels, format.panel_bytes))

    def __call__(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """ids [T] -> float32 [T, k_in]."""
        panels, which = np.unique(ids // PANEL, return_inverse=True)
        held = replace(self._format, n_out=PANEL * len(panels))
        rows = dequantize(unpack(self._panels[panels].reshape(-1), held))
        wanted: NDArray[np.float32] = rows[which * PANEL + ids % PANEL]
        return wanted
