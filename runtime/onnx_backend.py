"""ONNX Runtime behind the Backend protocol: the operator library, and cache buffers bound in place."""

from __future__ import annotations

import contextlib
import mmap
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from edgellm.kernels.control import FIELDS
from edgellm.runtime.cache import CacheLayout
from edgellm.runtime.errors import EdgellmError, no_library
from edgellm.runtime.onnx_graph import check_ends, failed, first_line, open_graph

ALIGNMENT = 64  # bytes: a cache line, and the widest vector
SPIN = "20"  # microseconds
MAPPED = 1 << 20  # bytes from which a buffer gets pages of its own


class OnnxBackend:
    """A graph in an onnxruntime.InferenceSession. One OrtValue is each cache buffer's input and output.

    Raises as open_graph does, and EdgellmError when the operator library cannot be loaded.
    """

    def __init__(self, folder: Path, layout: CacheLayout, vocabulary: int, threads: int | None = None) -> None:
        import onnxruntime

        self._value: Any = onnxruntime.OrtValue.ortvalue_from_numpy
        self._vocabulary = vocabulary
        self._layout = layout
        self._session: Any = self._open(folder, threads)
        self._binding = self._session.io_binding()
        self._inputs: list[NDArray[np.int64]] = []  # ids, positions, rows, control, of the sizes in self._bound
        self._bound = (0, 0)
        self._buffers: dict[str, NDArray[Any]] = {}
        for name, buffer in self._allocate(layout).items():
            self._bind(name, buffer)

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
        """See Backend.step; the returned array [R, vocabulary] is the caller's."""
        logits = np.empty((len(rows), self._vocabulary), np.float32)
        try:
            if (len(ids), len(rows)) != self._bound:
                self._bind_inputs(len(ids), len(rows))
            for buffer, given in zip(self._inputs, (ids, positions, rows, control), strict=True):
                buffer[:] = given
            self._binding.bind_ortvalue_output("logits", self._value(logits))
            self._session.run_with_iobinding(self._binding)
        except Exception as error:  # onnxruntime's exceptions share no base class
            raise failed(error) from error
        return logits

    def resize(self, layout: CacheLayout) -> None:
        """See Backend.resize. Peak memory: both sizes of one buffer, beside all the others."""
        wanted = self._allocate(layout)
        for name in list(wanted):
            new, old = wanted.pop(name), self._buffers[name]
            kept = min(new.shape[1], old.shape[1])
            new[:, :kept] = old[:, :kept]
            self._bind(name, new)
        self._layout = layout

    def read_slots(self, name: str, slots: NDArray[np.int64]) -> NDArray[Any]:
        """See Backend.read_slots."""
        return np.take(self._buffers[name], slots, axis=1)

    def write_slots(self, name: str, slots: NDArray[np.int64], values: NDArray[Any]) -> None:
        """See Backend.write_slots."""
        self._buffers[name][:, slots] = values

    def _open(self, folder: Path, threads: int | None) -> Any:
        def prepare(options: Any) -> None:
            # Weights are stored in their final order and stay in the mapped file: no packed second copy.
            options.add_session_config_entry("session.disable_prepacking", "1")
            # Threads wait awake for as long as the gaps between a token's operators last. By default they do so far
            # longer and starve beside a busy neighbour: 45 % of the quiet speed was left, 58 % with this, 197 against
            # 192 tokens/s when alone (SmolLM2, two cores). Without any: 81 %, but 168. Older versions ignore it.
            options.add_session_config_entry("session.intra_op.spin_duration_us", SPIN)
            register_operators(options)

        session = open_graph(folder, threads, prepare)
        caches = [name for name, _, _ in self._layout.buffers()]
        check_ends(
            session,
            {"ids", "positions", "rows", "control", *caches},
            {"logits", *(f"{name}.out" for name in caches)},
        )
        return session

    def _bind_inputs(self, tokens: int, rows: int) -> None:
        """Bind buffers for runs of `tokens` and `rows`; runs alike, as decoding's are, only fill them again."""
        sizes: tuple[Any, ...] = (tokens, tokens, rows, (self._layout.layers, FIELDS))
        self._inputs = [np.empty(size, np.int64) for size in sizes]
        for name, buffer in zip(("ids", "positions", "rows", "control"), self._inputs, strict=True):
            self._binding.bind_ortvalue_input(name, self._value(buffer))
        self._bound = (tokens, rows)

    def _allocate(self, layout: CacheLayout) -> dict[str, NDArray[Any]]:
        found = {}
        for name, shape, dtype in layout.buffers():
            try:
                found[name] = aligned_zeros(shape, dtype)
            except (MemoryError, OSError):
                size = layout.nbytes / 2**20
                raise EdgellmError(f"no memory for a KV cache of {size:.0f} MiB", "Try --kv window:512.") from None
            if name.startswith("position."):
                found[name].fill(-1)
        return found

    def _bind(self, name: str, buffer: NDArray[Any]) -> None:
        value = self._value(buffer)
        self._binding.bind_ortvalue_input(name, value)
        self._binding.bind_ortvalue_output(f"{name}.out", value)
        self._buffers[name] = buffer


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


def aligned_zeros(shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """Zeros from a 64-byte boundary. Pages stay unbacked until written, so an unused budget costs no memory: large
    buffers ask for small pages, since one token in every head would otherwise back all of them."""
    size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    if size >= MAPPED and hasattr(mmap, "MADV_NOHUGEPAGE"):  # Linux
        pages = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with contextlib.suppress(OSError):  # a kernel without huge pages
            pages.madvise(mmap.MADV_NOHUGEPAGE)
        return np.frombuffer(pages, dtype).reshape(shape)
    raw = np.zeros(size + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size].view(dtype).reshape(shape)
