"""A bundle's graph run by the native library, without ONNX Runtime (kernels/engine/decoder.cc).

A decoder is a list of the same few operators: the library reads model.onnx itself and runs them one after the other.
ONNX Runtime would take 30 MB of the process, a tenth of a second to start, and time of its own between two layers.
"""

from __future__ import annotations

import ctypes
import weakref
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.kernels.library import engine
from edgellm.runtime.cache import CacheLayout
from edgellm.runtime.cache_buffers import CacheBuffers
from edgellm.runtime.errors import no_library, of_library
from edgellm.runtime.onnx_graph import check_threads

I64 = NDArray[np.int64]


def native_decoder(folder: Path, layout: CacheLayout, vocabulary: int, threads: int | None) -> NativeDecoder | None:
    """None where the graph is of another kind: of separate operators, LoRA's, or Optimum's.

    threads = None takes the physical cores this process may use. Raises BundleError for a graph that is damaged or does
    not fit the manifest, UsageError for a number of threads outside 1 to 1024, EdgellmError where there is no library.
    """
    try:
        library = engine()
    except FileNotFoundError as error:
        raise no_library(error) from None
    shape = (layout.layers, layout.kv_heads, layout.head_dim, vocabulary, layout.bits)
    handle = ctypes.c_void_p()
    check_threads(threads)
    arguments = bytes(folder), (ctypes.c_int64 * 5)(*shape), threads or 0, ctypes.byref(handle)
    if status := library.edgellm_decoder_open(*arguments):
        raise of_library(library, status)
    return NativeDecoder(library, handle) if handle else None


class NativeDecoder:
    """An open decoder of the library; native_decoder makes one."""

    def __init__(self, library: Any, handle: ctypes.c_void_p) -> None:
        self._library, self._handle = library, handle
        self._caches = np.empty((0, 6), np.int64)  # edgellm_cache [layers]
        self._caches_at = 0
        self._cache: CacheBuffers | None = None  # keeps the memory that they point to
        # What the library reads and writes, and where: runs alike, as decoding's are, ask for no address again.
        self._given: list[I64] = []
        self._addresses: list[int] = []
        self._logits, self._logits_at = np.empty((0, 0), np.float32), 0
        weakref.finalize(self, library.edgellm_decoder_close, handle)

    def bind(self, cache: CacheBuffers) -> None:
        """See Decoder.bind."""
        rows = []
        for layer in range(cache.layout.layers):
            buffers = [cache.arrays[f"{name}.{layer}"] for name in ("key", "value", "position", "score")]
            rows.append([*(b.ctypes.data for b in buffers), cache.layout.capacity(layer), cache.layout.policy.planes])
        self._caches, self._cache = np.array(rows, np.int64), cache
        self._caches_at = self._caches.ctypes.data

    def run(self, ids: I64, positions: I64, rows: I64, control: I64, logits: NDArray[np.float32]) -> None:
        """See Decoder.run."""
        given = (ids, positions, rows, control)
        if [len(x) for x in given] != [len(x) for x in self._given]:
            self._given = [np.empty(x.shape, np.int64) for x in given]
            self._addresses = [x.ctypes.data for x in self._given]
        for own, x in zip(self._given, given, strict=True):
            own[:] = x
        if logits is not self._logits:
            self._logits, self._logits_at = logits, logits.ctypes.data
        at_ids, at_positions, at_rows, at_control = self._addresses
        status = self._library.edgellm_decoder_run(
            self._handle,
            at_ids,
            at_positions,
            len(ids),
            at_rows,
            len(rows),
            at_control,
            self._caches_at,
            self._logits_at,
        )
        if status:
            raise of_library(self._library, status)
