"""An engine in TensorRT behind the Runner protocol: buffers bound once, the cache written where it is read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.runtime.cuda_memory import Cuda
from edgellm.runtime.errors import BundleError
from edgellm.runtime.schema import EngineFacts

CACHES = ("key.", "value.", "position.", "score.")
LATEST = "This is as TensorRT's log says it; see docs/tensorrt.md, or run the bundle without --backend tensorrt."


class TensorRtRunner:
    """runtime.append_only.Runner on GPU 0. constants: what inputs hold for good, by name: tiles of weights.
    The file's header and the manifest's stamp were compared before
    (tensorrt_backend.py).

    Not run by any test: no machine of the project has a GPU. Raises BundleError where TensorRT refuses the file or a
    run, EdgellmError for CUDA's failures.
    """

    def __init__(
        self, path: Path, trt: Any, facts: EngineFacts, vocabulary: int, constants: Mapping[str, NDArray[Any]]
    ) -> None:
        self._cuda, self._vocabulary = Cuda(), vocabulary
        self._runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
        self._engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if self._engine is None:
            raise BundleError(f"TensorRT refuses {path.name}", "Build it again: edgellm build-engine BUNDLE")
        self._context = self._engine.create_execution_context()
        self._host: dict[str, tuple[tuple[int, ...], Any]] = {}
        self._address: dict[str, int] = {}
        self._held: list[NDArray[Any]] = []  # what is being copied must outlive the copy
        most = {"rows": facts.rows}
        for i in range(self._engine.num_io_tensors):
            name = self._engine.get_tensor_name(i)
            shape = tuple(self._engine.get_tensor_shape(name))
            dtype = np.dtype(trt.nptype(self._engine.get_tensor_dtype(name)))
            if name.endswith(".out"):
                continue
            largest = tuple(
                facts.rows if name == "logits" and size == -1 else most.get(name, facts.tokens) if size == -1 else size
                for size in shape
            )
            self._host[name] = largest, dtype
            self._address[name] = self._cuda.allocate(int(np.prod(largest)) * dtype.itemsize)
            for end in (name, f"{name}.out") if name.startswith(CACHES) else (name,):
                self._context.set_tensor_address(end, self._address[name])
            if name in constants:
                self._cuda.upload(constants[name], self._address[name])

    @property
    def kv_bytes(self) -> int:
        """See Runner.kv_bytes."""
        caches = [self._host[name] for name in self._host if name.startswith(CACHES)]
        return sum(int(np.prod(shape)) * dtype.itemsize for shape, dtype in caches)

    def run(self, feed: dict[str, NDArray[Any]]) -> NDArray[np.float32]:
        """See Runner.run."""
        self._held = [np.ascontiguousarray(array) for array in feed.values()]
        for name, array in zip(feed, self._held, strict=True):
            self._context.set_input_shape(name, array.shape)
            self._cuda.upload(array, self._address[name])
        if not self._context.execute_async_v3(self._cuda.stream):
            raise BundleError("the engine failed to run", LATEST)
        return self._cuda.download(self._address["logits"], (len(feed["rows"]), self._vocabulary), np.float32)

    def read(self, name: str) -> NDArray[Any]:
        """See Runner.read."""
        return self._cuda.download(self._address[name], *self._host[name])

    def write(self, name: str, values: NDArray[Any]) -> None:
        """See Runner.write."""
        self._held = [np.ascontiguousarray(values)]
        self._cuda.upload(self._held[0], self._address[name])
