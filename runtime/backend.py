"""What a session needs from whatever runs the graph: ONNX Runtime today, TensorRT later, a fake in tests."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class Backend(Protocol):
    """One sequence's graph and its cache buffers, allocated once."""

    @property
    def kv_bytes(self) -> int:
        """Bytes of the cache buffers."""
        ...

    def step(
        self,
        ids: NDArray[np.int64],
        positions: NDArray[np.int64],
        rows: NDArray[np.int64],
        control: NDArray[np.int64],
    ) -> NDArray[np.float32]:
        """Run ids [T] at absolute positions [T]; logits float32 [R, vocabulary] of rows [R] (indices into T).

        control [5] is edgellm.runtime.cache.Cursor.control(); T is at most the staging size. Raises BundleError.
        """
        ...

    def read_slots(self, slots: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """Copies of every cache buffer at slots [S], by CacheLayout's names: [kv_heads, S, …]."""
        ...

    def write_slots(self, name: str, slots: NDArray[np.int64], values: NDArray[Any]) -> None:
        """Overwrite one cache buffer at slots [S] with values [kv_heads, S, …]."""
        ...
