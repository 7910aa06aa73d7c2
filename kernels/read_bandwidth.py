"""How fast this machine reads its memory: the most that decoding, which reads every weight once a token, can have."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from statistics import median
from time import perf_counter

import numpy as np

from edgellm.devices.memory import available_bytes
from edgellm.kernels.library import read_bytes

MOST = 512 << 20  # bytes: many times the largest cache, so that every pass comes from memory
PASSES = 9


class ReadBandwidth:
    """A buffer, and how fast so many threads read it together, at any moment one asks.

    size: bytes; default 512 MiB, or an eighth of the free memory if that is less. Raises MemoryError where the buffer
    cannot be had.
    """

    def __init__(self, threads: int, size: int | None = None) -> None:
        if size is None:
            size = min(MOST, (available_bytes() or MOST) // 8)
        # Ones, not zeros: pages that were never written are all the same page, and lie in the cache.
        self._parts = np.array_split(np.ones(max(size // 8, threads), np.uint64), threads)

    def measure(self, passes: int = PASSES) -> float:
        """Bytes a second: the median of several passes over the buffer. Raises FileNotFoundError without the native
        library."""
        seconds: list[float] = []
        with ThreadPoolExecutor(len(self._parts)) as pool:
            for _ in range(passes):
                begin = perf_counter()
                list(pool.map(read_bytes, self._parts))
                seconds.append(perf_counter() - begin)
        return sum(part.nbytes for part in self._parts) / median(seconds)


def read_bandwidth(threads: int, size: int | None = None) -> float:
    """Bytes a second, measured once. Raises as ReadBandwidth and its `measure` do."""
    return ReadBandwidth(threads, size).measure()
