"""A graph of standard operators behind the Backend protocol: what Optimum exports for models outside our table.

Inputs: input_ids, attention_mask and (some) position_ids int64 [1, T]; per layer past_key_values.L.key and .value
float32 [1, kv_heads, P, head_dim]. Outputs: logits float32 [1, T, vocabulary] and present.L.key, .value, P + T long.
The cache grows with the sequence instead of lying in place, and nothing is evicted: `full` is the only policy.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.runtime.bundle_files import AGAIN, GRAPH
from edgellm.runtime.cache import CacheLayout
from edgellm.runtime.errors import BundleError, UsageError
from edgellm.runtime.onnx_graph import check_ends, failed, open_graph, the_onnxruntime


class StandardBackend:
    """A standard graph in an onnxruntime.InferenceSession; the cache is the last run's outputs.

    Raises UsageError for a policy other than full, and as open_graph does; BundleError for a graph of other inputs.
    """

    def __init__(self, folder: Path, layout: CacheLayout, vocabulary: int, threads: int | None = None) -> None:
        if layout.policy.name != "full":
            raise UsageError(
                f"KV policy {layout.policy}: this bundle's graph is Optimum's, which evicts nothing",
                "Use --kv full or full:BUDGET.",
            )
        self._value: Any = the_onnxruntime().OrtValue.ortvalue_from_numpy
        self._layout = layout
        self._vocabulary = vocabulary
        self._session = open_graph(folder, threads)
        self._takes_positions = "position_ids" in {entry.name for entry in self._session.get_inputs()}
        self._names = [(layer, kind) for layer in range(layout.layers) for kind in ("key", "value")]
        past = [f"past_key_values.{layer}.{kind}" for layer, kind in self._names]
        self._outputs = ["logits", *(f"present.{layer}.{kind}" for layer, kind in self._names)]
        fed = {"input_ids", "attention_mask", *past} | ({"position_ids"} if self._takes_positions else set())
        check_ends(self._session, fed, set(self._outputs))
        self._check_shapes(past)
        self._past = {name: self._empty(0) for name in past}
        self._held = 0  # tokens in self._past
        self._committed = 0  # of them, those that lie before the staging area in the session's eyes

    @property
    def kv_bytes(self) -> int:
        """Bytes of the cache now; while a token is added, as much again."""
        layout = self._layout
        return self._held * layout.layers * layout.kv_heads * layout.head_dim * 2 * 4

    def step(
        self,
        ids: NDArray[np.int64],
        positions: NDArray[np.int64],
        rows: NDArray[np.int64],
        control: NDArray[np.int64],
    ) -> NDArray[np.float32]:
        """See Backend.step; committed and accepted say how much of the cache's beginning stays."""
        self._cut(int(control[0, 0] + control[0, 1]))  # layers are alike
        feed = {
            "input_ids": self._value(np.ascontiguousarray(ids[None])),
            "attention_mask": self._value(np.ones((1, self._held + len(ids)), np.int64)),
            **self._past,
        }
        if self._takes_positions:
            feed["position_ids"] = self._value(np.ascontiguousarray(positions[None]))
        try:
            logits, *present = self._session.run_with_ort_values(self._outputs, feed)
        except Exception as error:
            raise failed(error) from error
        self._committed = self._held
        self._past = dict(zip(self._past, present, strict=True))
        self._held += len(ids)
        chosen: NDArray[np.float32] = logits.numpy()[0, rows]
        return chosen

    def resize(self, layout: CacheLayout) -> None:
        """See Backend.resize: this cache has no other size than its tokens'."""

    def read_slots(self, name: str, slots: NDArray[np.int64]) -> NDArray[Any]:
        """See Backend.read_slots; keys and values are float32, as the graph has them."""
        budget = self._layout.policy.budget
        at = np.where(slots < budget, slots, slots - budget + self._committed)
        kind, _, layer = name.partition(".")
        if kind == "position":
            return np.tile(at.astype(np.int32), (self._layout.kv_heads, 1))
        return np.take(self._array(f"past_key_values.{layer}.{kind}")[0], at, axis=1)  # contiguous: files take it so

    def write_slots(self, name: str, slots: NDArray[np.int64], values: NDArray[Any]) -> None:
        """See Backend.write_slots. Slots are 0 to S-1: a full cache is restored as a whole, in the sequence's order."""
        kind, _, layer = name.partition(".")
        if kind == "position":  # slots of a full cache are the positions
            return
        array = np.ascontiguousarray(values[None], np.float32)
        self._past[f"past_key_values.{layer}.{kind}"] = self._value(array)
        self._held = len(slots)

    def _cut(self, keep: int) -> None:
        """Forget all but the first `keep` tokens."""
        if keep == 0:
            self._past = dict.fromkeys(self._past, self._empty(0))
        elif keep < self._held:
            cut = {name: np.ascontiguousarray(self._array(name)[:, :, :keep]) for name in self._past}
            self._past = {name: self._value(array) for name, array in cut.items()}
        self._held = keep

    def _array(self, name: str) -> NDArray[np.float32]:
        array: NDArray[np.float32] = self._past[name].numpy()
        return array

    def _empty(self, tokens: int) -> Any:
        return self._value(np.zeros((1, self._layout.kv_heads, tokens, self._layout.head_dim), np.float32))

    def _check_shapes(self, past: list[str]) -> None:
        """The sizes the manifest says, so that a wrong one is told now and not by the first run."""
        layout = self._layout
        ends = {end.name: end for end in (*self._session.get_inputs(), *self._session.get_outputs())}
        shapes: dict[str, list[Any]] = {name: ends[name].shape[1::2] for name in past}  # [1, kv_heads, P, head_dim]
        shapes["logits"] = ends["logits"].shape[-1:]
        for name, shape in shapes.items():
            wanted = [self._vocabulary] if name == "logits" else [layout.kv_heads, layout.head_dim]
            fixed = [
                want if has is None or isinstance(has, str) else has for has, want in zip(shape, wanted, strict=False)
            ]
            if fixed != wanted or ends[name].type != "tensor(float)":
                odd = f"{name} is {ends[name].type} {ends[name].shape}; expected float32 with {wanted}"
                raise BundleError(f"{GRAPH} does not fit the manifest: {odd}", AGAIN)
