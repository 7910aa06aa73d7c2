"""An adapter: what test-time adaptation changed about a model, small enough to keep one for every domain.

prefix: keys (rotated) and values of the sequence's first tokens, retuned: they lie in the KV cache where those tokens'
own would lie, and are never evicted (prefix tuning, arXiv 2101.00190). soft: the embeddings of these tokens, retuned
(prompt tuning, arXiv 2104.08691), and the prefix that the model makes of them. delta: a vector added to what the output
head reads (SLOT, arXiv 2505.12392), so that every row of logits shifts alike. lora: updates of q and v of rank RANK
(arXiv 2106.09685), which the layer's normed states go through beside the matrices.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.runtime.bundle_files import ADAPT_AGAIN, LORA_GRAPH
from edgellm.runtime.errors import AdapterError
from edgellm.runtime.schema import Manifest
from edgellm.runtime.sealed_tensors import SealedTensors, write_sealed
from edgellm.runtime.typed_json import decode

FORMAT, VERSION, SUFFIX = "edgellm adapter", "1", ".adapter"
TENSORS = {"prefix": ("key", "value"), "soft": ("soft", "key", "value"), "delta": ("delta", "shift")}
TENSORS |= {"lora": ("q.down", "q.up", "v.down", "v.up")}
"""Of every carrier, by name. key, value: float32 [layers, kv_heads, P, head_dim]; soft: [P, hidden]; delta: [hidden];
shift: [vocabulary], the logits' shift that delta makes, before they are capped; q.down, v.down: [layers, hidden, RANK];
q.up, v.up: [layers, RANK, width of q or v]."""
RANK = 8  # of LoRA's updates: SyTTA's, and that of the graphs that a bundle has for them

Tensors = dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Facts:
    """carrier: "prefix" | "soft" | "lora" | "delta". model: Manifest.weights_sha256 of the bundle it was made with.

    tokens: ids of the P first tokens whose place a prefix or a soft prompt takes. learned: how it was made, for people.
    about: the mean embedding of the questions that it was made with, float [hidden], by which one of several is chosen;
    may be empty.
    """

    carrier: str
    model: str
    tokens: list[int]
    learned: dict[str, Any] = field(default_factory=dict)
    about: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Adapter:
    """Facts, and the carrier's tensors."""

    facts: Facts
    tensors: Tensors

    def check(self, manifest: Manifest) -> None:
        """Raise AdapterError for an adapter of another model, whose tensors do not fit it, or that this bundle has no
        graph for."""
        model, facts = manifest.model, self.facts
        if facts.model != manifest.weights_sha256:
            raise AdapterError("the adapter was made with another model, or with another export of it", _AGAIN)
        length = len(facts.tokens)
        slots = (model.layers, model.kv_heads, length, model.head_dim)
        shapes = {"key": slots, "value": slots, "soft": (length, model.hidden)}
        shapes |= {"delta": (model.hidden,), "shift": (model.vocabulary,)}
        for role, heads in (("q", model.heads), ("v", model.kv_heads)):
            shapes[f"{role}.down"] = (model.layers, model.hidden, RANK)
            shapes[f"{role}.up"] = (model.layers, RANK, heads * model.head_dim)
        expected = {name: shapes[name] for name in TENSORS.get(facts.carrier, ())}
        fits = {name: tensor.shape for name, tensor in self.tensors.items()} == expected
        finite = all(np.isfinite(tensor).all() for tensor in self.tensors.values())
        inside = all(0 <= token < model.vocabulary for token in facts.tokens)
        placed = bool(length) == (facts.carrier in ("prefix", "soft"))
        if not (expected and fits and finite and inside and placed and len(facts.about) in (0, model.hidden)):
            raise AdapterError("the adapter does not fit the model: it is damaged", _AGAIN)
        if facts.carrier == "lora" and LORA_GRAPH not in manifest.files:
            raise AdapterError(f"this bundle cannot answer with LoRA: it has no {LORA_GRAPH}", ADAPT_AGAIN)


_AGAIN = "Make it again: edgellm adapt BUNDLE --questions FILE -o ADAPTER"


def save_adapter(path: str | Path, adapter: Adapter) -> None:
    """Write the file, whole or not at all. Raises EdgellmError where the folder cannot be written to."""
    write_sealed(Path(path), FORMAT, VERSION, asdict(adapter.facts), adapter.tensors)


def load_adapter(path: str | Path, manifest: Manifest) -> Adapter:
    """Read a file for use with a bundle. Raises AdapterError where it is missing, damaged, or of another bundle."""
    adapter = read_adapter(Path(path))
    try:
        adapter.check(manifest)
    except AdapterError as error:
        raise AdapterError(f"{path}: {error.what}", error.hint) from None
    return adapter


def read_adapter(path: Path) -> Adapter:
    """Read a file, of whatever bundle. Raises AdapterError."""

    def complain(what: str) -> AdapterError:
        return AdapterError(f"{path} {what}", _AGAIN)

    file = SealedTensors(path, FORMAT, VERSION, "an adapter", complain)
    try:
        facts = decode(Facts, file.facts, "")
    except ValueError as error:
        raise complain(f"is damaged: {error}") from None
    return Adapter(facts, {name: np.asarray(file.tensor(name), np.float32) for name in file.names})


def stored_adapters(folder: Path, manifest: Manifest) -> Iterator[tuple[Path, Adapter]]:
    """The adapters of a bundle among a folder's *.adapter files, by name; those of other bundles are passed over.

    Raises AdapterError for a damaged one.
    """
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        adapter = read_adapter(path)
        if adapter.facts.model == manifest.weights_sha256:
            adapter.check(manifest)
            yield path, adapter


def nearest(adapters: Mapping[Path, Adapter], about: NDArray[np.float32], least: float = 0.85) -> Path | None:
    """The one whose questions are most like `about` [hidden], by cosine; None where none reaches `least` (A5.3)."""
    found = {path: _cosine(np.array(adapter.facts.about), about) for path, adapter in adapters.items()}
    best = max(found, key=lambda path: found[path], default=None)
    return best if best is not None and found[best] >= least else None


def _cosine(one: NDArray[Any], other: NDArray[Any]) -> float:
    if one.shape != other.shape:
        return -1.0
    size = float(np.linalg.norm(one) * np.linalg.norm(other))
    return float(one @ other) / size if size else -1.0
