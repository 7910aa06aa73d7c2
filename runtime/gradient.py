"""The losses of an example and their exact gradient with respect to a carrier's tensors: adapt.onnx behind a call."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np

from edgellm.runtime.adapter import TENSORS, Tensors
from edgellm.runtime.bundle_files import ADAPT
from edgellm.runtime.head import unprepared
from edgellm.runtime.objective import Example, Losses, Weights
from edgellm.runtime.onnx_backend import register_operators
from edgellm.runtime.onnx_graph import check_ends, failed, open_graph
from edgellm.runtime.schema import Manifest

LOSSES = ("ida", "entropy", "kl")
INPUTS = {"ids", "positions", "prompt_rows", "targets", "prompt_weights", "answer_rows", "answer_weights", "reference"}
INPUTS |= {f"w_{name}" for name in LOSSES}


class Gradient(Protocol):
    """What adapts a carrier: adapt.onnx, or the closed form of shift.py."""

    def losses(self, example: Example, tensors: Tensors) -> Losses:
        """Of one example, with the carrier's tensors as they are."""
        ...

    def step(self, example: Example, tensors: Tensors, weights: Weights) -> tuple[Losses, Tensors]:
        """The same, and the gradient of the weighted loss with respect to every tensor that is learned."""
        ...


class GraphGradient:
    """adapt.onnx in a session of its own, which maps the weights' file like the one that generates.

    Raises UsageError for a bundle without it, and as open_graph does.
    """

    def __init__(self, folder: Path, manifest: Manifest, threads: int | None) -> None:
        if ADAPT not in manifest.files:
            raise unprepared()

        def prepare(options: Any) -> None:
            import onnxruntime

            options.add_session_config_entry("session.disable_prepacking", "1")
            # Thousands of small nodes: to plan which buffers may be used again takes 20 times as long as all the rest
            # of opening (4 s against 0.2, SmolLM2), and saves no memory, as each is freed after its last use. Fusing
            # nodes changed no step's time.
            options.enable_mem_reuse = False
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
            register_operators(options)

        self._session: Any = open_graph(folder, threads, prepare, ADAPT)
        self._learned = TENSORS["prefix"]
        self._gradients = [f"{name}.gradient" for name in self._learned]
        check_ends(self._session, {*INPUTS, *self._learned}, {*LOSSES, *self._gradients}, ADAPT)

    def losses(self, example: Example, tensors: Tensors) -> Losses:
        """See Gradient.losses. It takes as long as a step: ONNX Runtime runs the whole graph whatever is fetched."""
        return self.step(example, tensors, Weights())[0]

    def step(self, example: Example, tensors: Tensors, weights: Weights) -> tuple[Losses, Tensors]:
        """See Gradient.step."""
        counts = len(example.targets), len(example.answer_rows)
        given = {
            "ids": example.ids,
            "positions": np.arange(example.before, example.before + len(example.ids), dtype=np.int64),
            "prompt_rows": example.prompt_rows,
            "targets": example.targets,
            "prompt_weights": np.full(counts[0], 1 / max(1, counts[0]), np.float32),
            "answer_rows": example.answer_rows,
            "answer_weights": np.ones(counts[1], np.float32),
            "reference": example.reference,
        }
        given |= {f"w_{name}": np.array(getattr(weights, name), np.float32) for name in LOSSES}
        given |= {name: tensors[name] for name in self._learned}
        try:
            found: list[Any] = self._session.run([*LOSSES, *self._gradients], given)
        except Exception as error:  # onnxruntime's exceptions share no base class
            raise failed(error, ADAPT) from error
        losses = Losses(*(float(value) for value in found[:3]))
        return losses, dict(zip(self._learned, found[3:], strict=True))
