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


def read_bandwidth(threads: int, size: int | None = None) -> float:
    """Bytes a second that `threads` threads read together: the median of several passes over `size` bytes.

    size: default 512 MiB, or an eighth of the free memory if that is less. Raises FileNotFoundError without the native
    library, MemoryError where the buffer cannot be had.
    """
    if size is None:
        size = min(MOST, (available_bytes() or MOST) // 8)
    # Ones, not zeros: pages that were never written are all the same page, and lie in the cache.
    parts = np.array_split(np.ones(max(size // 8, threads), np.uint64), threads)
    seconds: list[float] = []
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(PASSES):
            begin = perf_counter()
            list(pool.map(read_bytes, parts))
            seconds.append(perf_counter() - begin)
    return sum(part.nbytes for part in parts) / median(seconds)
