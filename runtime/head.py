"""The output head's product in both directions, and embeddings: head.onnx, a graph of three nodes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.runtime.bundle_files import ADAPT_AGAIN, HEAD
from edgellm.runtime.errors import UsageError
from edgellm.runtime.onnx_decoder import register_operators
from edgellm.runtime.onnx_graph import check_ends, failed, open_graph
from edgellm.runtime.schema import Manifest

F32 = NDArray[np.float32]


class Head:
    """Over the same weights' file. Raises UsageError for a bundle without it, and as open_graph does."""

    def __init__(self, folder: Path, manifest: Manifest, threads: int | None) -> None:
        if HEAD not in manifest.files:
            raise unprepared()
        model = manifest.model
        self._none: dict[str, NDArray[Any]] = {
            "delta": np.zeros((1, model.hidden), np.float32),
            "slope": np.zeros((1, model.vocabulary), np.float32),
            "ids": np.zeros(1, np.int64),
        }
        self._session: Any = open_graph(folder, threads, register_operators, HEAD)
        check_ends(self._session, set(self._none), {"shift", "gradient", "embedded"}, HEAD)

    def shift(self, delta: F32) -> F32:
        """W delta, before any cap: [hidden] -> [vocabulary]."""
        found: F32 = self._run("shift", delta=delta[None])[0]
        return found

    def gradient(self, slope: F32) -> F32:
        """W^T slope: [vocabulary] -> [hidden]."""
        found: F32 = self._run("gradient", slope=slope[None])[0]
        return found

    def embedded(self, ids: list[int]) -> F32:
        """Rows of the embedding, unscaled: T tokens -> [T, hidden]."""
        found: F32 = self._run("embedded", ids=np.array(ids, np.int64))
        return found

    def about(self, ids: list[int]) -> F32:
        """The mean embedding [hidden] of some tokens: what a text is about, roughly."""
        found: F32 = self.embedded(ids).mean(axis=0)
        return found

    def _run(self, wanted: str, **given: NDArray[Any]) -> Any:
        import onnxruntime

        options = onnxruntime.RunOptions()
        options.only_execute_path_to_fetches = True
        try:
            return self._session.run([wanted], self._none | given, options)[0]
        except Exception as error:  # onnxruntime's exceptions share no base class
            raise failed(error, HEAD) from error


def unprepared(lacking: str = "gradient graph") -> UsageError:
    """The error to raise where a bundle cannot adapt. lacking: what it would need."""
    return UsageError(f"this bundle cannot adapt: it has no {lacking}", ADAPT_AGAIN)
