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

    carrier: "prefix", or another whose graph lies in the folder as `name`. Raises UsageError for a bundle without it,
    and as open_graph does.
    """

    def __init__(
        self, folder: Path, manifest: Manifest, threads: int | None, carrier: str = "prefix", name: str = ADAPT
    ) -> None:
        if name not in manifest.files and name == ADAPT:
            raise unprepared()

        def prepare(options: Any) -> None:
            options.add_session_config_entry("session.disable_prepacking", "1")
            register_operators(options)

        self._name, self._carrier = name, carrier
        self._session: Any = open_graph(folder, threads, prepare, name)
        self._learned = [entry.name for entry in self._session.get_inputs() if entry.name not in INPUTS]
        self._gradients = [f"{name}.gradient" for name in self._learned]
        known = {"prefix": TENSORS["prefix"], "soft": ("soft",)}.get(carrier, self._learned)
        check_ends(self._session, {*INPUTS, *known}, {*LOSSES, *self._gradients}, name)

    def losses(self, example: Example, tensors: Tensors) -> Losses:
        """See Gradient.losses: forwards only."""
        return Losses(*(float(value) for value in self._run(list(LOSSES), example, tensors, Weights())))

    def step(self, example: Example, tensors: Tensors, weights: Weights) -> tuple[Losses, Tensors]:
        """See Gradient.step."""
        found = self._run([*LOSSES, *self._gradients], example, tensors, weights)
        losses = Losses(*(float(value) for value in found[:3]))
        return losses, dict(zip(self._learned, found[3:], strict=True))

    def compiled(self, tensors: Tensors) -> Tensors:
        """The keys and values that the model makes of a soft prompt's rows."""
        nothing = np.zeros(0, np.int64)
        width = next(entry.shape[1] for entry in self._session.get_inputs() if entry.name == "reference")
        example = Example(nothing, len(tensors["soft"]), nothing, nothing, nothing, np.zeros((0, width), np.float32))
        return dict(zip(("key", "value"), self._run(["key", "value"], example, tensors, Weights()), strict=True))

    def _run(self, wanted: list[str], example: Example, tensors: Tensors, weights: Weights) -> list[Any]:
        import onnxruntime

        counts = len(example.targets), len(example.answer_rows)
        first, shift = (0, example.before) if self._carrier == "soft" else (example.before, 0)
        given = {
            "ids": example.ids,
            "positions": np.arange(first, example.before + len(example.ids), dtype=np.int64),
            "prompt_rows": example.prompt_rows + shift,
            "targets": example.targets,
            "prompt_weights": np.full(counts[0], 1 / max(1, counts[0]), np.float32),
            "answer_rows": example.answer_rows + shift,
            "answer_weights": np.ones(counts[1], np.float32),
            "reference": example.reference,
        }
        given |= {f"w_{name}": np.array(getattr(weights, name), np.float32) for name in LOSSES}
        given |= {name: tensors[name] for name in self._learned}
        options = onnxruntime.RunOptions()
        options.only_execute_path_to_fetches = True
        try:
            found: list[Any] = self._session.run(wanted, given, options)
        except Exception as error:  # onnxruntime's exceptions share no base class
            raise failed(error, self._name) from error
        return found
