"""The carriers that a bundle can adapt with: where they begin, and what makes their gradient. Graphs open when used."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from edgellm.runtime.adapter import Tensors
from edgellm.runtime.bundle_files import ADAPT, HEAD, LORA, LORA_GRAPH, SOFT
from edgellm.runtime.errors import UsageError
from edgellm.runtime.gradient import Gradient, GraphGradient, UnitGradient, scaled
from edgellm.runtime.head import Head, unprepared
from edgellm.runtime.low_rank import first_updates, units
from edgellm.runtime.objective import Example
from edgellm.runtime.schema import Manifest
from edgellm.runtime.session import Session
from edgellm.runtime.shift import ShiftGradient


class Start(NamedTuple):
    """Where a carrier begins: the tokens whose place it takes, and its tensors, with which the model is unchanged."""

    tokens: list[int]
    tensors: Tensors


class Carrier(Protocol):
    """One way to change a model without its weights."""

    name: str

    def begin(self, session: Session, first: Sequence[int], most: int) -> Start:
        """The unchanged model. first: what the session's sequence begins with; at most `most` of it is replaced."""
        ...

    def gradient(self, example: Example, prompt: NDArray[np.float32]) -> Gradient:
        """What differentiates the losses of one example. prompt: the base model's logits [M, vocabulary] there."""
        ...

    def complete(self, tensors: Tensors) -> Tensors:
        """All tensors of an adapter, from the learned ones."""
        ...


class _Learned:
    """What carriers with a gradient graph of their own share. Raises UsageError for a bundle without their files."""

    name: str
    files: tuple[str, ...]

    def __init__(self, folder: Path, manifest: Manifest, threads: int | None = None) -> None:
        lacking = next((file for file in self.files if file not in manifest.files), None)
        if lacking is not None:
            raise unprepared(lacking)
        self._where = folder, manifest, threads

    @cached_property
    def graph(self) -> GraphGradient:
        """adapt.onnx, soft.onnx or lora.onnx, opened when first asked for."""
        return GraphGradient(*self._where, self.name)


class Prefix(_Learned):
    """Keys and values of the first tokens: they begin as what the model makes of these tokens."""

    name, files = "prefix", (ADAPT,)

    def begin(self, session: Session, first: Sequence[int], most: int) -> Start:
        """See Carrier.begin. Raises UsageError where the cache no longer holds these tokens."""
        tokens = list(first[:most])
        keys, values = session.first(len(tokens))
        return Start(tokens, {"key": keys, "value": values})

    def gradient(self, example: Example, prompt: NDArray[np.float32]) -> Gradient:
        """See Carrier.gradient."""
        return self.graph

    def complete(self, tensors: Tensors) -> Tensors:
        """See Carrier.complete."""
        return tensors


class Soft(_Learned):
    """Embeddings of the first tokens: they begin as these tokens' own. The model makes a prefix of them."""

    name, files = "soft", (SOFT, HEAD)
    _unit = 1.0  # of the rows: what they begin as has a root mean square of 1

    @cached_property
    def head(self) -> Head:
        """head.onnx, which has the embedding, opened when first asked for."""
        return Head(*self._where)

    def begin(self, session: Session, first: Sequence[int], most: int) -> Start:
        """See Carrier.begin."""
        tokens = list(first[:most])
        rows = self.head.embedded(tokens)
        self._unit = float(np.sqrt(np.mean(rows * rows))) or 1.0
        return Start(tokens, {"soft": rows / np.float32(self._unit)})

    def gradient(self, example: Example, prompt: NDArray[np.float32]) -> UnitGradient:
        """See Carrier.gradient."""
        return UnitGradient(self.graph, {"soft": self._unit})

    def complete(self, tensors: Tensors) -> Tensors:
        """See Carrier.complete: the rows themselves, and the prefix that they amount to."""
        rows = scaled(tensors, {"soft": self._unit})
        return rows | self.graph.prefix(rows)


class Lora(_Learned):
    """Low-rank updates of q and v, which add nothing at first (low_rank.py)."""

    name, files = "lora", (LORA, LORA_GRAPH)

    def begin(self, session: Session, first: Sequence[int], most: int) -> Start:
        """See Carrier.begin."""
        return Start([], first_updates(session.manifest.model))

    def gradient(self, example: Example, prompt: NDArray[np.float32]) -> UnitGradient:
        """See Carrier.gradient."""
        return UnitGradient(self.graph, units(self._where[1].model))

    def complete(self, tensors: Tensors) -> Tensors:
        """See Carrier.complete."""
        return scaled(tensors, units(self._where[1].model))


class Delta:
    """A shift of what the head reads, zero at first."""

    name = "delta"

    def __init__(self, folder: Path, manifest: Manifest, threads: int | None = None) -> None:
        self._where = folder, manifest, threads
        self._softcap = manifest.adapt.softcap if manifest.adapt else 0.0

    @cached_property
    def head(self) -> Head:
        """head.onnx, opened when first asked for."""
        return Head(*self._where)

    def begin(self, session: Session, first: Sequence[int], most: int) -> Start:
        """See Carrier.begin."""
        return Start([], {"delta": np.zeros(session.manifest.model.hidden, np.float32)})

    def gradient(self, example: Example, prompt: NDArray[np.float32]) -> Gradient:
        """See Carrier.gradient."""
        gradient = ShiftGradient(self.head, self._softcap)
        gradient.observe(example, prompt)
        return gradient

    def complete(self, tensors: Tensors) -> Tensors:
        """See Carrier.complete."""
        return {**tensors, "shift": self.head.shift(tensors["delta"])}


CARRIERS: dict[str, Callable[[Path, Manifest, int | None], Carrier]]
CARRIERS = {kind.name: kind for kind in (Prefix, Soft, Lora, Delta)}


def carrier_of(name: str, folder: Path, manifest: Manifest, threads: int | None = None) -> Carrier:
    """A carrier by name. Raises UsageError for an unknown one."""
    if name not in CARRIERS:
        raise UsageError(f'carrier "{name}" is unknown', f"Use {' or '.join(CARRIERS)}.")
    return CARRIERS[name](folder, manifest, threads)
