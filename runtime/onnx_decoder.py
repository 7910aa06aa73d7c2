"""ONNX Runtime as what runs a bundle's graph: the operator library, and cache buffers bound in place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.kernels.control import FIELDS
from edgellm.runtime.bundle_files import GRAPH, LORA_GRAPH
from edgellm.runtime.cache_buffers import CacheBuffers
from edgellm.runtime.errors import EdgellmError, no_library
from edgellm.runtime.onnx_graph import check_ends, failed, first_line, open_graph, the_onnxruntime
from edgellm.runtime.schema import Matrix
from edgellm.runtime.weights import Weights

SPIN = "20"  # microseconds
I64 = NDArray[np.int64]


class OnnxDecoder:
    """A graph in an onnxruntime.InferenceSession. One OrtValue is each cache buffer's input and output.

    matrices: the manifest's. graph: the file, without LoRA's updates or with them. Raises as open_graph and Weights do,
    and EdgellmError when the operator library cannot be loaded.
    """

    def __init__(
        self, folder: Path, threads: int | None = None, matrices: Sequence[Matrix] = (), graph: str = GRAPH
    ) -> None:
        self._value: Any = the_onnxruntime().OrtValue.ortvalue_from_numpy
        self._graph = graph
        self._weights = Weights(folder, matrices)
        self._session = open_graph(folder, threads, self._prepare, graph)
        self._binding = self._session.io_binding()
        self._inputs: list[NDArray[np.int64]] = []  # ids, positions, rows, control, as they are bound
        self._logits: NDArray[np.float32] | None = None  # as they are bound
        self._layers = 0
        self._updates: Mapping[str, NDArray[np.float32]] = {}  # more inputs, that the binding refers to

    def bind(self, cache: CacheBuffers) -> None:
        """See Decoder.bind. Raises BundleError where the graph has other inputs or outputs than the cache."""
        names, self._layers = list(cache.arrays), cache.layout.layers
        more = [f"{kind}.{layer}" for kind in ("down", "up") for layer in range(self._layers)]
        check_ends(
            self._session,
            {"ids", "positions", "rows", "control", *names, *(more if self._graph == LORA_GRAPH else ())},
            {"logits", *(f"{name}.out" for name in names)},
            self._graph,
        )
        for name, buffer in cache.arrays.items():
            value = self._value(buffer)
            self._binding.bind_ortvalue_input(name, value)
            self._binding.bind_ortvalue_output(f"{name}.out", value)

    def feed(self, updates: Mapping[str, NDArray[np.float32]]) -> None:
        """From the next run on LoRA's updates are these: low_rank.graph_inputs."""
        self._updates = updates
        for name, value in updates.items():
            self._binding.bind_ortvalue_input(name, self._value(value))

    def run(self, ids: I64, positions: I64, rows: I64, control: I64, logits: NDArray[np.float32]) -> None:
        """See Decoder.run."""
        try:
            if [len(ids), len(rows)] != [len(bound) for bound in self._inputs[1:3]]:
                self._bind_inputs(len(ids), len(rows))
            if self._logits is not logits:
                self._binding.bind_ortvalue_output("logits", self._value(logits))
                self._logits = logits
            for buffer, given in zip(self._inputs, (ids, positions, rows, control), strict=True):
                buffer[:] = given
            self._session.run_with_iobinding(self._binding)
        except Exception as error:  # onnxruntime's exceptions share no base class
            raise failed(error, self._graph) from error

    def _prepare(self, options: Any) -> None:
        # Weights are stored in their final order and stay in the mapped file: no packed second copy.
        options.add_session_config_entry("session.disable_prepacking", "1")
        # Threads wait awake for as long as the gaps between a token's operators last. By default they do so far
        # longer and starve beside a busy neighbour: 45 % of the quiet speed was left, 58 % with this, 197 against
        # 192 tokens/s when alone (SmolLM2, two cores). Without any: 81 %, but 168. Older versions ignore it.
        options.add_session_config_entry("session.intra_op.spin_duration_us", SPIN)
        register_operators(options)
        self._weights.give(options)

    def _bind_inputs(self, tokens: int, rows: int) -> None:
        """Bind buffers for runs of `tokens` and `rows`; runs alike, as decoding's are, only fill them again."""
        sizes: tuple[Any, ...] = (tokens, tokens, rows, (self._layers, FIELDS))
        self._inputs = [np.empty(size, np.int64) for size in sizes]
        for name, buffer in zip(("ids", "positions", "rows", "control"), self._inputs, strict=True):
            self._binding.bind_ortvalue_input(name, self._value(buffer))


def register_operators(options: Any) -> Path:
    """Register the operator library with SessionOptions and return its path. Raises EdgellmError."""
    from edgellm.kernels.library import LOWEST_ORT_API, library_path

    try:
        path = library_path()
    except FileNotFoundError as error:
        raise no_library(error) from None
    try:
        options.register_custom_ops_library(str(path))
    except Exception as error:
        raise EdgellmError(
            f"onnxruntime {the_onnxruntime().__version__} cannot load {path}: {first_line(error)}",
            f"The library asks for ONNX Runtime API {LOWEST_ORT_API} (onnxruntime 1.{LOWEST_ORT_API} or newer): "
            "pip install -U onnxruntime",
        ) from error
    return path
