"""The memory of a cache's buffers, where they lie in this process."""

from __future__ import annotations

import contextlib
import math
import mmap
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from edgellm.runtime.cache import CacheLayout
from edgellm.runtime.errors import EdgellmError

ALIGNMENT = 64  # bytes: a cache line, and the widest vector


class CacheBuffers:
    """A cache's buffers by name, in `arrays`; resizing makes others. Raises EdgellmError where there is no memory."""

    def __init__(self, layout: CacheLayout) -> None:
        self.layout = layout
        self.arrays = _allocate(layout)

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers."""
        return sum(buffer.nbytes for buffer in self.arrays.values())

    def resize(self, layout: CacheLayout) -> None:
        """See Backend.resize. Peak memory: both sizes, as far as they are filled."""
        wanted = _allocate(layout)
        for name, buffer in wanted.items():
            old = self.arrays[name]
            kept = min(buffer.shape[1], old.shape[1])
            buffer[:, :kept] = old[:, :kept]
        self.layout, self.arrays = layout, wanted


def _allocate(layout: CacheLayout) -> dict[str, NDArray[Any]]:
    try:
        return cache_buffers(layout)
    except (MemoryError, OSError):
        size = layout.nbytes / 2**20
        raise EdgellmError(f"no memory for a KV cache of {size:.0f} MiB", "Try --kv window:512.") from None


def cache_buffers(layout: CacheLayout) -> dict[str, NDArray[Any]]:
    """A cache's buffers by name, each zeros from a 64-byte boundary, in one mapping of its own.

    Its pages stay unbacked until written, so that an unused budget costs no memory: zeros from the heap back what an
    earlier owner had written. Pages are small, since one token in every head would otherwise back all of them.
    Raises MemoryError or OSError where there is no room.
    """
    places: list[tuple[str, tuple[int, ...], DTypeLike, int]] = []
    end = 0
    for name, shape, dtype in layout.buffers():
        places.append((name, shape, dtype, end))
        end += math.prod(shape) * np.dtype(dtype).itemsize
        end += -end % ALIGNMENT
    memory: Any
    if hasattr(mmap, "MADV_NOHUGEPAGE"):  # Linux
        memory = mmap.mmap(-1, end, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with contextlib.suppress(OSError):  # a kernel without huge pages
            memory.madvise(mmap.MADV_NOHUGEPAGE)
    else:
        memory = np.zeros(end + ALIGNMENT, np.uint8)
        memory = memory[-memory.ctypes.data % ALIGNMENT :]
    return {
        name: np.frombuffer(memory, dtype, math.prod(shape), start).reshape(shape)
        for name, shape, dtype, start in places
    }
