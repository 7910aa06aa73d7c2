"""ONNX Runtime behind the Backend protocol: the operator library, and cache buffers bound in place."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.kernels.control import FIELDS
from edgellm.runtime.bundle_files import GRAPH, LORA_GRAPH
from edgellm.runtime.cache import CacheLayout
from edgellm.runtime.cache_buffers import cache_buffers
from edgellm.runtime.errors import EdgellmError, no_library
from edgellm.runtime.onnx_graph import check_ends, failed, first_line, open_graph
from edgellm.runtime.schema import Matrix
from edgellm.runtime.weights import Weights

SPIN = "20"  # microseconds


class OnnxBackend:
    """A graph in an onnxruntime.InferenceSession. One OrtValue is each cache buffer's input and output. Where LoRA's
    updates are in use, another graph of the same weights takes its place, over the same buffers.

    matrices: the manifest's. Raises as open_graph and Weights do, and EdgellmError when the operator library cannot be
    loaded.
    """

    def __init__(
        self, folder: Path, layout: CacheLayout, vocabulary: int, threads: int | None = None,
        matrices: Sequence[Matrix] = (),
    ) -> None:  # fmt: skip
        import onnxruntime

        self._value: Any = onnxruntime.OrtValue.ortvalue_from_numpy
        self._vocabulary = vocabulary
        self._layout = layout
        self._where = folder, threads
        self._weights = Weights(folder, matrices)
        self._plain = self._session = self._open(GRAPH)
        self._binding = self._session.io_binding()
        self._inputs: list[NDArray[np.int64]] = []  # ids, positions, rows, control, of the sizes in self._bound
        self._logits = np.empty((0, vocabulary), np.float32)  # of the last run
        self._references = 0  # to it, while no caller has one
        self._bound = (0, 0)
        self._updates: Mapping[str, NDArray[np.float32]] = {}  # more inputs, that the binding refers to
        self._buffers: dict[str, NDArray[Any]] = {}
        self._bind_cache(self._allocate(layout))

    @property
    def kv_bytes(self) -> int:
        """Bytes of the cache buffers."""
        return sum(buffer.nbytes for buffer in self._buffers.values())

    def step(
        self,
        ids: NDArray[np.int64],
        positions: NDArray[np.int64],
        rows: NDArray[np.int64],
        control: NDArray[np.int64],
    ) -> NDArray[np.float32]:
        """See Backend.step; the returned array [R, vocabulary] is the caller's for as long as it is kept: another run
        writes into the same one only where nothing refers to it, or to a part of it, any more."""
        try:
            if (len(ids), len(rows)) != self._bound:
                self._bind_inputs(len(ids), len(rows))
            elif sys.getrefcount(self._logits) > self._references:
                self._bind_logits(len(rows))
            for buffer, given in zip(self._inputs, (ids, positions, rows, control), strict=True):
                buffer[:] = given
            self._session.run_with_iobinding(self._binding)
        except Exception as error:  # onnxruntime's exceptions share no base class
            raise failed(error, GRAPH if self._session is self._plain else LORA_GRAPH) from error
        return self._logits

    def update(self, inputs: Mapping[str, NDArray[np.float32]] | None) -> None:
        """See Updatable.update. The other graph is opened when first used, and stays open."""
        if inputs is None and self._session is self._plain:
            return
        self._session = self._plain if inputs is None else self._with_updates
        self._binding, self._bound = self._session.io_binding(), (0, 0)
        self._bind_cache(self._buffers)
        self._updates = inputs or {}
        for name, value in self._updates.items():
            self._binding.bind_ortvalue_input(name, self._value(value))

    def resize(self, layout: CacheLayout) -> None:
        """See Backend.resize. Peak memory: both sizes, as far as they are filled."""
        wanted = self._allocate(layout)
        for name, buffer in wanted.items():
            old = self._buffers[name]
            kept = min(buffer.shape[1], old.shape[1])
            buffer[:, :kept] = old[:, :kept]
        self._bind_cache(wanted)
        self._layout = layout

    def read_slots(self, name: str, slots: NDArray[np.int64]) -> NDArray[Any]:
        """See Backend.read_slots."""
        return np.take(self._buffers[name], slots, axis=1)

    def write_slots(self, name: str, slots: NDArray[np.int64], values: NDArray[Any]) -> None:
        """See Backend.write_slots."""
        self._buffers[name][:, slots] = values

    @cached_property
    def _with_updates(self) -> Any:
        pairs = [f"{name}.{layer}" for name in ("down", "up") for layer in range(self._layout.layers)]
        return self._open(LORA_GRAPH, pairs)

    def _open(self, name: str, more: Sequence[str] = ()) -> Any:
        """The bundle's graph of this name. more: inputs that it takes beside the usual ones."""

        def prepare(options: Any) -> None:
            # Weights are stored in their final order and stay in the mapped file: no packed second copy.
            options.add_session_config_entry("session.disable_prepacking", "1")
            # Threads wait awake for as long as the gaps between a token's operators last. By default they do so far
            # longer and starve beside a busy neighbour: 45 % of the quiet speed was left, 58 % with this, 197 against
            # 192 tokens/s when alone (SmolLM2, two cores). Without any: 81 %, but 168. Older versions ignore it.
            options.add_session_config_entry("session.intra_op.spin_duration_us", SPIN)
            register_operators(options)
            self._weights.give(options)

        session = open_graph(*self._where, prepare, name)
        caches = [cache for cache, _, _ in self._layout.buffers()]
        check_ends(
            session,
            {"ids", "positions", "rows", "control", *caches, *more},
            {"logits", *(f"{cache}.out" for cache in caches)},
            name,
        )
        return session

    def _bind_inputs(self, tokens: int, rows: int) -> None:
        """Bind buffers for runs of `tokens` and `rows`; runs alike, as decoding's are, only fill them again."""
        sizes: tuple[Any, ...] = (tokens, tokens, rows, (self._layout.layers, FIELDS))
        self._inputs = [np.empty(size, np.int64) for size in sizes]
        for name, buffer in zip(("ids", "positions", "rows", "control"), self._inputs, strict=True):
            self._binding.bind_ortvalue_input(name, self._value(buffer))
        self._bind_logits(rows)
        self._bound = (tokens, rows)

    def _bind_logits(self, rows: int) -> None:
        self._logits = np.empty((rows, self._vocabulary), np.float32)
        self._binding.bind_ortvalue_output("logits", self._value(self._logits))
        self._references = sys.getrefcount(self._logits)

    def _allocate(self, layout: CacheLayout) -> dict[str, NDArray[Any]]:
        try:
            return cache_buffers(layout)
        except (MemoryError, OSError):
            size = layout.nbytes / 2**20
            raise EdgellmError(f"no memory for a KV cache of {size:.0f} MiB", "Try --kv window:512.") from None

    def _bind_cache(self, buffers: dict[str, NDArray[Any]]) -> None:
        for name, buffer in buffers.items():
            value = self._value(buffer)
            self._binding.bind_ortvalue_input(name, value)
            self._binding.bind_ortvalue_output(f"{name}.out", value)
        self._buffers = buffers


def register_operators(options: Any) -> Path:
    """Register the operator library with SessionOptions and return its path. Raises EdgellmError."""
    import onnxruntime

    from edgellm.kernels.library import LOWEST_ORT_API, library_path

    try:
        path = library_path()
    except FileNotFoundError as error:
        raise no_library(error) from None
    try:
        options.register_custom_ops_library(str(path))
    except Exception as error:
        raise EdgellmError(
            f"onnxruntime {onnxruntime.__version__} cannot load {path}: {first_line(error)}",
            f"The library asks for ONNX Runtime API {LOWEST_ORT_API} (onnxruntime 1.{LOWEST_ORT_API} or newer): "
            "pip install -U onnxruntime",
        ) from error
    return path
