"""What a session needs from whatever runs the graph: the CPU, TensorRT, a fake in tests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from edgellm.runtime.cache import CacheLayout


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

        control [layers, fields] is edgellm.runtime.cursor.Cursor.control(); T is at most the staging size. Raises
        BundleError.
        """
        ...

    def resize(self, layout: CacheLayout) -> None:
        """Change the buffers' capacity to another layout's; as many first slots as both have keep their content.

        Raises EdgellmError, with the buffers as they were, where there is no memory for it.
        """
        ...

    def read_slots(self, name: str, slots: NDArray[np.int64]) -> NDArray[Any]:
        """A copy of one cache buffer (CacheLayout's names) at slots [S]: [kv_heads, S, …]."""
        ...

    def write_slots(self, name: str, slots: NDArray[np.int64], values: NDArray[Any]) -> None:
        """Overwrite one cache buffer at slots [S] with values [kv_heads, S, …]."""
        ...


@runtime_checkable
class Updatable(Protocol):
    """A backend that can also answer with LoRA's updates."""

    def update(self, inputs: Mapping[str, NDArray[np.float32]] | None) -> None:
        """From the next run on answer with low_rank.graph_inputs, or with None of the model alone; the cache's buffers
        are the same ones, and what they hold of the sequence is to be forgotten. Raises BundleError.
        """
        ...
