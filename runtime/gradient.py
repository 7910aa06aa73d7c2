"""The losses of an example and their exact gradient with respect to a carrier's tensors: adapt.onnx, or soft.onnx or
lora.onnx for these carriers, behind a call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from edgellm.runtime.adapter import TENSORS, Tensors
from edgellm.runtime.bundle_files import ADAPT, LORA, SOFT
from edgellm.runtime.objective import Example, Losses, Weights
from edgellm.runtime.onnx_decoder import register_operators
from edgellm.runtime.onnx_graph import check_ends, failed, open_graph
from edgellm.runtime.schema import Manifest

LOSSES = ("ida", "entropy", "kl")
INPUTS = {"ids", "positions", "prompt_rows", "targets", "prompt_weights", "answer_rows", "answer_weights", "reference"}
INPUTS |= {f"w_{name}" for name in LOSSES}
GRAPHS: dict[str, tuple[str, tuple[str, ...]]]  # of a carrier: its graph, what it learns
GRAPHS = {"prefix": (ADAPT, ("key", "value")), "soft": (SOFT, ("soft",)), "lora": (LORA, TENSORS["lora"])}


class Gradient(Protocol):
    """What adapts a carrier: adapt.onnx, or the closed form of shift.py."""

    def losses(self, example: Example, tensors: Tensors) -> Losses:
        """Of one example, with the carrier's tensors as they are."""
        ...

    def step(self, example: Example, tensors: Tensors, weights: Weights) -> tuple[Losses, Tensors]:
        """The same, and the gradient of the weighted loss with respect to every tensor that is learned."""
        ...


class GraphGradient:
    """A carrier's graph in a session of its own, which maps the weights' file like the one that generates.

    Raises as open_graph does.
    """

    def __init__(self, folder: Path, manifest: Manifest, threads: int | None, carrier: str = "prefix") -> None:
        self._file, self._learned = GRAPHS[carrier]
        self._vocabulary = manifest.model.vocabulary

        def prepare(options: Any) -> None:
            import onnxruntime

            options.add_session_config_entry("session.disable_prepacking", "1")
            # Thousands of small nodes: to plan which buffers may be used again takes 20 times as long as all the rest
            # of opening (4 s against 0.2, SmolLM2), and saves no memory, as each is freed after its last use. Fusing
            # nodes changed no step's time.
            options.enable_mem_reuse = False
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
            register_operators(options)

        self._session: Any = open_graph(folder, threads, prepare, self._file)
        self._made = TENSORS["prefix"] if carrier == "soft" else ()
        self._gradients = [f"{name}.gradient" for name in self._learned]
        check_ends(self._session, {*INPUTS, *self._learned}, {*LOSSES, *self._gradients, *self._made}, self._file)

    def losses(self, example: Example, tensors: Tensors) -> Losses:
        """See Gradient.losses. It takes as long as a step: ONNX Runtime runs the whole graph whatever is fetched."""
        return self.step(example, tensors, Weights())[0]

    def step(self, example: Example, tensors: Tensors, weights: Weights) -> tuple[Losses, Tensors]:
        """See Gradient.step."""
        found = self._run([*LOSSES, *self._gradients], example, tensors, weights)
        losses = Losses(*(float(value) for value in found[:3]))
        return losses, dict(zip(self._learned, found[3:], strict=True))

    def prefix(self, tensors: Tensors) -> Tensors:
        """The keys and values that the model makes of a soft prompt."""
        nothing, rows = np.zeros(0, np.int64), np.zeros((0, self._vocabulary), np.float32)
        example = Example(np.zeros(1, np.int64), len(tensors["soft"]), nothing, nothing, nothing, rows)
        return dict(zip(self._made, self._run(self._made, example, tensors, Weights()), strict=True))

    def _run(self, wanted: Sequence[str], example: Example, tensors: Tensors, weights: Weights) -> list[Any]:
        counts = len(example.targets), len(example.answer_rows)
        rows = example.before if self._made else 0  # a soft prompt's own, before the example's
        given = {
            "ids": example.ids,
            "positions": np.arange(example.before - rows, example.before + len(example.ids), dtype=np.int64),
            "prompt_rows": rows + example.prompt_rows,
            "targets": example.targets,
            "prompt_weights": np.full(counts[0], 1 / max(1, counts[0]), np.float32),
            "answer_rows": rows + example.answer_rows,
            "answer_weights": np.ones(counts[1], np.float32),
            "reference": example.reference,
        }
        given |= {f"w_{name}": np.array(getattr(weights, name), np.float32) for name in LOSSES}
        given |= {name: tensors[name] for name in self._learned}
        try:
            found: list[Any] = self._session.run(list(wanted), given)
        except Exception as error:  # onnxruntime's exceptions share no base class
            raise failed(error, self._file) from error
        return found


def scaled(tensors: Tensors, units: Mapping[str, float]) -> Tensors:
    """What multiples of units, by name, stand for."""
    return {name: np.float32(units[name]) * tensor for name, tensor in tensors.items()}


class UnitGradient:
    """A graph's gradient for tensors in multiples of units, by name, so that rates mean what they do for a prefix:
    its values are about 1, embeddings and weights far smaller."""

    def __init__(self, graph: GraphGradient, units: Mapping[str, float]) -> None:
        self._graph, self._units = graph, units

    def losses(self, example: Example, tensors: Tensors) -> Losses:
        """See Gradient.losses."""
        return self._graph.losses(example, scaled(tensors, self._units))

    def step(self, example: Example, tensors: Tensors, weights: Weights) -> tuple[Losses, Tensors]:
        """See Gradient.step."""
        losses, slopes = self._graph.step(example, scaled(tensors, self._units), weights)
        return losses, scaled(slopes, self._units)  # the chain rule
