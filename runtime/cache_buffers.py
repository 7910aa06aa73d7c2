"""The memory of a cache's buffers, where they lie in this process."""

from __future__ import annotations

import contextlib
import math
import mmap
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from edgellm.runtime.cache import CacheLayout

ALIGNMENT = 64  # bytes: a cache line, and the widest vector


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
