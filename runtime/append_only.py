"""The Backend protocol over a graph in standard operators (export/standard_dialect.py): a cache that only grows.

Slot = position, so that cutting the sequence back is to write over it; nothing is evicted, `full` is the only policy.
What runs the graph is a Runner: TensorRT (tensorrt_runner.py), or ONNX Runtime where an export checks it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgellm.runtime.cache import CacheLayout
from edgellm.runtime.errors import UsageError


class Runner(Protocol):
    """A loaded graph whose cache buffers lie where it reads and writes them in place."""

    @property
    def kv_bytes(self) -> int:
        """Bytes of the cache buffers."""
        ...

    def run(self, feed: dict[str, NDArray[Any]]) -> NDArray[np.float32]:
        """Run on all inputs but the cache; logits [R, vocabulary], the caller's to keep. Raises EdgellmError."""
        ...

    def read(self, name: str) -> NDArray[Any]:
        """A copy of one cache buffer, by its input's name."""
        ...

    def write(self, name: str, values: NDArray[Any]) -> None:
        """Overwrite one cache buffer."""
        ...


class AppendOnly:
    """capacity: slots of the graph's cache. most: (T, R), the most tokens and rows of one run.

    embedded: ids [T] -> the embedding's rows, float32 [T, hidden]. Raises UsageError for another policy than full, or
    for more tokens than the graph has slots.
    """

    def __init__(
        self,
        runner: Runner,
        embedded: Callable[[NDArray[np.int64]], NDArray[np.float32]],
        layout: CacheLayout,
        capacity: int,
        most: tuple[int, int],
    ) -> None:
        if layout.policy.name != "full" or layout.policy.budget > capacity:
            raise UsageError(
                f"KV policy {layout.policy}: this engine is of standard operators, which evict nothing, and has "
                f"{capacity} slots",
                f"Use --kv full:{capacity} or fewer, or run the bundle without --backend.",
            )
        self._runner, self._embedded, self._layout, self._most = runner, embedded, layout, most
        self._held = 0  # tokens in the cache
        self._committed = 0  # of them, those that lie before the staging area in the session's eyes

    @property
    def kv_bytes(self) -> int:
        """Bytes of the cache buffers."""
        return self._runner.kv_bytes

    def step(
        self,
        ids: NDArray[np.int64],
        positions: NDArray[np.int64],
        rows: NDArray[np.int64],
        control: NDArray[np.int64],
    ) -> NDArray[np.float32]:
        """See Backend.step. A run of more tokens or rows than the graph takes is split into several."""
        self._held = self._committed = int(control[0, 0] + control[0, 1])  # layers are alike
        tokens, wanted = self._most
        size = tokens if len(rows) <= wanted else min(tokens, wanted)
        parts = []
        for start in range(0, len(ids), size):
            here = np.flatnonzero((rows >= start) & (rows < start + size))
            chunk = slice(start, start + size)
            # A run has at least one row; the first token's is as good as any where none is wanted.
            within = rows[here] - start if len(here) else np.zeros(1, np.int64)
            logits = self._run(ids[chunk], positions[chunk], within)
            if len(here):
                parts.append((here, logits))
        if len(parts) == 1:
            return parts[0][1]
        chosen = np.empty((len(rows), parts[0][1].shape[1]), np.float32)
        for here, logits in parts:
            chosen[here] = logits
        return chosen

    def resize(self, layout: CacheLayout) -> None:
        """See Backend.resize: the graph's cache has one size, which all its tokens fit."""

    def read_slots(self, name: str, slots: NDArray[np.int64]) -> NDArray[Any]:
        """See Backend.read_slots."""
        budget = self._layout.policy.budget
        at = np.where(slots < budget, slots, slots - budget + self._committed)
        if name.startswith("position."):  # slots of a full cache are the positions
            return np.tile(at.astype(np.int32), (self._layout.kv_heads, 1))
        return np.take(self._runner.read(name)[0], at, axis=1)

    def write_slots(self, name: str, slots: NDArray[np.int64], values: NDArray[Any]) -> None:
        """See Backend.write_slots. Slots are 0 to S-1: a full cache is restored as a whole, in the sequence's order."""
        if name.startswith("position."):
            return
        buffer = self._runner.read(name)
        buffer[0][:, slots] = values
        self._runner.write(name, buffer)

    def _run(self, ids: NDArray[np.int64], positions: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[Any]:
        start = np.array([self._held], np.int64)
        feed: dict[str, NDArray[Any]] = {
            "embedded": self._embedded(ids),
            "positions": positions,
            "start": start,
            "rows": rows,
        }
        logits = self._runner.run(feed)
        self._held += len(ids)
        return logits
