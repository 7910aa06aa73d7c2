"""The Backend protocol over a graph with our plugins (export/plugin_dialect.py): the CPU's cache, slot for slot."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.runtime.append_only import Runner
from edgellm.runtime.cache import CacheLayout
from edgellm.runtime.errors import UsageError


class PluginBackend:
    """capacity, planes: of the graph's buffers, which any smaller cache fits. embedded: as AppendOnly's.

    Raises UsageError for a policy that needs more of either.
    """

    def __init__(
        self,
        runner: Runner,
        embedded: Callable[[NDArray[np.int64]], NDArray[np.float32]],
        layout: CacheLayout,
        capacity: int,
        planes: int,
    ) -> None:
        self._runner, self._embedded, self._capacity, self._planes = runner, embedded, capacity, planes
        self.resize(layout)

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
        """See Backend.step."""
        feed: dict[str, NDArray[Any]] = {"embedded": self._embedded(ids), "positions": positions}
        return self._runner.run({**feed, "rows": rows, "control": control})

    def resize(self, layout: CacheLayout) -> None:
        """See Backend.resize: the buffers stay; only what does not fit them is refused."""
        needed = max(layout.capacity(layer) for layer in range(layout.layers))
        if needed > self._capacity or layout.policy.planes > self._planes:
            raise UsageError(
                f"KV policy {layout.policy} needs {needed} slots and {layout.policy.planes} scores a slot; "
                f"this engine has {self._capacity} and {self._planes}",
                "Give a smaller --kv, or export again with --engine and that --kv.",
            )
        self._used = layout.policy.planes

    def read_slots(self, name: str, slots: NDArray[np.int64]) -> NDArray[Any]:
        """See Backend.read_slots."""
        found = np.take(self._runner.read(name), slots, axis=1)
        return np.ascontiguousarray(found[..., : self._used]) if name.startswith("score.") else found

    def write_slots(self, name: str, slots: NDArray[np.int64], values: NDArray[Any]) -> None:
        """See Backend.write_slots."""
        buffer = self._runner.read(name)
        part = buffer[..., : self._used] if name.startswith("score.") else buffer
        part[:, slots] = values
        self._runner.write(name, buffer)
