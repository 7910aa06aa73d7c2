"""A bundle's graph on the CPU behind the Backend protocol: cache buffers, and whatever runs the graph over them."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgellm.runtime.bundle_files import LORA_GRAPH
from edgellm.runtime.cache import CacheLayout
from edgellm.runtime.cache_buffers import CacheBuffers
from edgellm.runtime.native_decoder import native_decoder
from edgellm.runtime.schema import Matrix

I64 = NDArray[np.int64]
F32 = NDArray[np.float32]


class Decoder(Protocol):
    """What runs a graph: the native library (native_decoder.py), or ONNX Runtime (onnx_decoder.py)."""

    def bind(self, cache: CacheBuffers) -> None:
        """From the next run on use these buffers' arrays."""
        ...

    def run(self, ids: I64, positions: I64, rows: I64, control: I64, logits: F32) -> None:
        """As Backend.step; what it returns goes to `logits` [R, vocabulary], contiguous. Raises BundleError."""
        ...


class CpuBackend:
    """The native library runs the graph where it can, else ONNX Runtime does; where LoRA's updates are in use, ONNX
    Runtime runs another graph of the same weights over the same buffers.

    matrices: the manifest's. onnx: ONNX Runtime whatever the graph is. Raises as native_decoder, OnnxDecoder and
    CacheBuffers do.
    """

    def __init__(
        self, folder: Path, layout: CacheLayout, vocabulary: int, threads: int | None = None,
        matrices: Sequence[Matrix] = (), onnx: bool = False,
    ) -> None:  # fmt: skip
        self._bundle = folder, threads, matrices
        native = None if onnx else native_decoder(folder, layout, vocabulary, threads)
        self._plain = self._decoder = native or self._onnx()
        self._cache = CacheBuffers(layout)
        self._decoder.bind(self._cache)
        self._logits = np.empty((0, vocabulary), np.float32)  # of the last run
        self._references = 0  # to it, while no caller has one

    @property
    def kv_bytes(self) -> int:
        """Bytes of the cache buffers."""
        return self._cache.nbytes

    def step(self, ids: I64, positions: I64, rows: I64, control: I64) -> F32:
        """See Backend.step; the returned array [R, vocabulary] is the caller's for as long as it is kept: another run
        writes into the same one only where nothing refers to it, or to a part of it, any more."""
        fresh = len(rows) != len(self._logits) or sys.getrefcount(self._logits) > self._references
        if fresh:
            self._logits = np.empty((len(rows), self._logits.shape[1]), np.float32)
        self._decoder.run(ids, positions, rows, control, self._logits)
        if fresh:
            self._references = sys.getrefcount(self._logits)
        return self._logits

    def update(self, inputs: Mapping[str, F32] | None) -> None:
        """See Updatable.update. The other graph is opened when first used, and stays open."""
        if inputs is None:
            self._decoder = self._plain
        else:
            self._with_updates.feed(inputs)
            self._decoder = self._with_updates
        self._decoder.bind(self._cache)

    def resize(self, layout: CacheLayout) -> None:
        """See Backend.resize."""
        self._cache.resize(layout)
        self._decoder.bind(self._cache)

    def read_slots(self, name: str, slots: I64) -> NDArray[Any]:
        """See Backend.read_slots."""
        return np.take(self._cache.arrays[name], slots, axis=1)

    def write_slots(self, name: str, slots: I64, values: NDArray[Any]) -> None:
        """See Backend.write_slots."""
        self._cache.arrays[name][:, slots] = values

    @cached_property
    def _with_updates(self) -> Any:
        return self._onnx(LORA_GRAPH)

    def _onnx(self, *graph: str) -> Any:
        from edgellm.runtime.onnx_decoder import OnnxDecoder  # late: onnxruntime takes a tenth of a second to import

        return OnnxDecoder(*self._bundle, *graph)
