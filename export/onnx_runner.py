"""A graph of the standard dialect in ONNX Runtime on the CPU: where its numbers are compared with torch's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.runtime.onnx_graph import failed, open_graph


class OnnxRunner:
    """runtime.append_only.Runner. Raises BundleError as open_graph does."""

    def __init__(self, path: Path, threads: int | None = None) -> None:
        import onnxruntime

        self._value: Any = onnxruntime.OrtValue.ortvalue_from_numpy

        def prepare(options: Any) -> None:
            # Where a 4-bit matrix becomes MatMulNBits, products in float32: its own choice is 8-bit activations.
            options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")

        self._session: Any = open_graph(path.parent, threads, prepare, path.name)
        self._binding = self._session.io_binding()
        ends = [end for end in self._session.get_inputs() if end.name.startswith(("key.", "value."))]
        self._buffers = {end.name: np.zeros(end.shape, np.float16) for end in ends}
        for name, buffer in self._buffers.items():
            value = self._value(buffer)
            self._binding.bind_ortvalue_input(name, value)
            self._binding.bind_ortvalue_output(f"{name}.out", value)

    @property
    def kv_bytes(self) -> int:
        """Bytes of the cache buffers."""
        return sum(buffer.nbytes for buffer in self._buffers.values())

    def run(self, feed: dict[str, NDArray[Any]]) -> NDArray[np.float32]:
        """See Runner.run."""
        for name, array in feed.items():
            self._binding.bind_ortvalue_input(name, self._value(np.ascontiguousarray(array)))
        self._binding.bind_output("logits")
        try:
            self._session.run_with_iobinding(self._binding)
        except Exception as error:
            raise failed(error) from error
        logits: NDArray[np.float32] = self._binding.get_outputs()[-1].numpy()  # in the order they were bound first
        return logits

    def read(self, name: str) -> NDArray[Any]:
        """See Runner.read."""
        return self._buffers[name].copy()

    def write(self, name: str, values: NDArray[Any]) -> None:
        """See Runner.write."""
        self._buffers[name][:] = values
