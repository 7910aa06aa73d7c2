"""model.onnx.data mapped as a whole, and ONNX Runtime told to read the packed matrices there.

By itself ONNX Runtime maps every tensor apart, and most are smaller than a huge page. In one mapping a kernel whose
file system keeps files in huge pages (Linux 6.16 with ext4; xfs and btrfs earlier) reads the file into them, unless it
lies in memory already: decoding, which reads all weights once a token, then looks up a hundred addresses instead of
tens of thousands. On others nothing changes.
"""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgellm.runtime.bundle_files import AGAIN, WEIGHTS
from edgellm.runtime.errors import BundleError
from edgellm.runtime.onnx_graph import the_onnxruntime
from edgellm.runtime.schema import Matrix


class Weights:
    """The matrices of a bundle whose place the manifest says, uint8 [bytes] each; the others stay ONNX Runtime's. It
    must outlive the sessions that they are given to.

    Raises BundleError for a file that cannot be mapped, or ends before a matrix does.
    """

    def __init__(self, folder: Path, matrices: Sequence[Matrix]) -> None:
        onnxruntime = the_onnxruntime()

        self._values: dict[str, Any] = {}
        placed = [(matrix, matrix.offset) for matrix in matrices if matrix.offset is not None]
        if not placed:
            return
        try:
            with open(folder / WEIGHTS, "rb") as file:
                data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:  # ValueError: it is empty
            raise BundleError(f"{WEIGHTS} cannot be mapped: {error}", AGAIN) from None
        if hasattr(mmap, "MADV_HUGEPAGE"):  # Linux
            with contextlib.suppress(OSError):  # a kernel without huge pages
                data.madvise(mmap.MADV_HUGEPAGE)
        for matrix, offset in placed:
            if offset + matrix.bytes > len(data):
                raise BundleError(f"{WEIGHTS} ends before {matrix.name} does", AGAIN)
            tiles = np.frombuffer(data, np.uint8, matrix.bytes, offset)
            self._values[matrix.name] = onnxruntime.OrtValue.ortvalue_from_numpy(tiles)  # not a copy

    def give(self, options: Any) -> None:
        """To the session that will be made with these SessionOptions."""
        for name, value in self._values.items():
            options.add_initializer(name, value)
