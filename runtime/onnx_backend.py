"""ONNX Runtime behind the Backend protocol: the operator library, and cache buffers bound in place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from edgellm.devices.cores import usable_cores
from edgellm.runtime.bundle_files import AGAIN, GRAPH
from edgellm.runtime.cache import CacheLayout
from edgellm.runtime.errors import BundleError, EdgellmError, UsageError

OLDEST = (1, 23)  # onnxruntime that reads opset 23
ALIGNMENT = 64  # bytes: a cache line, and the widest vector


class OnnxBackend:
    """A graph in an onnxruntime.InferenceSession. One OrtValue is each cache buffer's input and output.

    Raises BundleError when model.onnx or its data cannot be loaded, EdgellmError when the operator library cannot,
    UsageError for a number of threads below 1. threads = None takes the physical cores this process may use.
    """

    def __init__(self, folder: Path, layout: CacheLayout, vocabulary: int, threads: int | None = None) -> None:
        if threads is not None and not 1 <= threads <= 1024:
            raise UsageError(f"{threads} threads; expected 1 to 1024")
        import onnxruntime

        self._ort: Any = onnxruntime
        self._vocabulary = vocabulary
        self._layout = layout
        self._session: Any = self._open(folder, threads or usable_cores())
        self._binding = self._session.io_binding()
        self._buffers: dict[str, NDArray[Any]] = {}
        self._bind_cache()

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
        value, binding = self._ort.OrtValue.ortvalue_from_numpy, self._binding
        logits = np.empty((len(rows), self._vocabulary), np.float32)
        try:
            for name, array in (("ids", ids), ("positions", positions), ("rows", rows), ("control", control)):
                binding.bind_ortvalue_input(name, value(np.ascontiguousarray(array, np.int64)))
            binding.bind_ortvalue_output("logits", value(logits))
            self._session.run_with_iobinding(binding)
        except Exception as error:  # onnxruntime's exceptions share no base class
            raise BundleError(f"{GRAPH} failed to run: {_first_line(error)}", f"See edgellm doctor. {AGAIN}") from error
        return logits

    def read_slots(self, slots: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """See Backend.read_slots."""
        return {name: np.take(buffer, slots, axis=1) for name, buffer in self._buffers.items()}

    def write_slots(self, name: str, slots: NDArray[np.int64], values: NDArray[Any]) -> None:
        """See Backend.write_slots."""
        self._buffers[name][:, slots] = values

    def _open(self, folder: Path, threads: int) -> Any:
        options = self._ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4  # failures come back as exceptions, told once
        # Weights are stored in their final order and stay in the mapped file: no packed second copy.
        options.add_session_config_entry("session.disable_prepacking", "1")
        # The arena grows by powers of two and keeps the longest prefill's peak; plans pile up one a prompt length.
        options.enable_cpu_mem_arena = False
        options.enable_mem_pattern = False
        register_operators(options)
        try:
            path = str(folder / GRAPH)
            session = self._ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise BundleError(f"{GRAPH} cannot be loaded: {_first_line(error)}", self._remedy()) from error
        inputs, outputs = ({v.name for v in side} for side in (session.get_inputs(), session.get_outputs()))
        caches = [name for name, _, _ in self._layout.buffers()]
        wanted = {"ids", "positions", "rows", "control", *caches}
        missing = sorted(wanted - inputs) + sorted({"logits", *(f"{name}.out" for name in caches)} - outputs)
        if missing or inputs - wanted:
            odd = f"lacks {missing[0]}" if missing else f"asks for an unknown input {min(inputs - wanted)}"
            raise BundleError(f"{GRAPH} does not fit the manifest: it {odd}", AGAIN)
        return session

    def _remedy(self) -> str:
        version = self._ort.__version__
        if tuple(int(part) for part in version.split(".")[:2]) < OLDEST:
            return f"onnxruntime {version} reads no opset 23; 1.23 and later do: pip install -U onnxruntime"
        return AGAIN

    def _bind_cache(self) -> None:
        for name, shape, dtype in self._layout.buffers():
            try:
                buffer = aligned_zeros(shape, dtype)
            except MemoryError:
                size = self._layout.nbytes / 2**20
                raise EdgellmError(f"no memory for a KV cache of {size:.0f} MiB", "Try --kv window:512.") from None
            if name.startswith("position."):
                buffer.fill(-1)
            value = self._ort.OrtValue.ortvalue_from_numpy(buffer)
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
        hint = "Install a wheel that has it: pip install --force-reinstall edgellm"
        raise EdgellmError(f"the operator library is missing: {error}", hint) from None
    try:
        options.register_custom_ops_library(str(path))
    except Exception as error:
        raise EdgellmError(
            f"onnxruntime {onnxruntime.__version__} cannot load {path}: {_first_line(error)}",
            f"The library asks for ONNX Runtime API {LOWEST_ORT_API} (onnxruntime 1.{LOWEST_ORT_API} or newer): "
            "pip install -U onnxruntime",
        ) from error
    return path


def aligned_zeros(shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """Zeros from a 64-byte boundary. Pages stay unbacked until written, so an unused budget costs no memory."""
    size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    raw = np.zeros(size + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size].view(dtype).reshape(shape)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
