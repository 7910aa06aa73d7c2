"""A sequence's KV cache in a safetensors file: a long beginning is read by the model once, not after every restart.

Tensors: `tokens` int64 [n], the sequence, and each cache buffer's slots in use under its graph name, [kv_heads, slots,
…], committed ones first. Metadata: format, version, `facts` (JSON of Facts) and `sha256` over facts and tensors.
What a file may be used for is decided by comparing token ids; the hashes only tell damage and other models.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from edgellm.runtime.cache import CacheLayout
from edgellm.runtime.errors import EdgellmError, PromptCacheError
from edgellm.runtime.typed_json import decode

FORMAT, VERSION = "edgellm prompt cache", "2"
TOKENS = "tokens"


@dataclass(frozen=True)
class Facts:
    """Whose cache it is: Manifest.weights_sha256, the KV policy with all its settings (as in --kv) and its budgets, one
    a layer; the cursor (committed tokens, a layer each; the others as in Cursor); and the bits of keys and values."""

    model: str
    policy: str
    budgets: list[int]
    committed: list[int]
    staged: int
    votes: list[float]
    anchor: int
    bits: int = 16

    def __post_init__(self) -> None:
        if len(self.votes) != 2 or min(self.committed, default=-1) < 0 or self.staged < 0:
            raise ValueError("facts out of range")


def write_prompt_cache(path: Path, facts: Facts, tokens: Iterable[int], slots: Mapping[str, NDArray[Any]]) -> None:
    """Write the file under another name, flush it to the disk, rename: a kill leaves the old one or the new one.

    Raises EdgellmError where the folder cannot be written to.
    """
    tensors = {TOKENS: np.array(list(tokens), np.int64), **slots}
    described = json.dumps(asdict(facts), sort_keys=True)
    digest = _digest(described, ((name, tensors[name]) for name in sorted(tensors)))
    metadata = {"format": FORMAT, "version": VERSION, "facts": described, "sha256": digest}
    partial = path.parent / f".{path.name}.{os.getpid()}.partial"
    try:
        save_file(tensors, partial, metadata)
        with open(partial, "rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    except (OSError, SafetensorError) as error:
        hint = "Check that its folder exists, may be written to, and has room."
        raise EdgellmError(f"{path} cannot be written: {getattr(error, 'strerror', None) or error}", hint) from None
    finally:
        with suppress(OSError):
            partial.unlink()


class PromptCache:
    """An open file whose contents were verified and fit a session's cache. `slots` reads a buffer at a time.

    model, layout: the session's Manifest.weights_sha256 and buffers. Raises PromptCacheError for a file that is
    missing, no prompt cache, damaged, of another version, model or KV policy, or too long for this cache.
    """

    def __init__(self, path: Path, model: str, layout: CacheLayout) -> None:
        self._path = path
        self._again = f"Make it again: edgellm cache-prompt BUNDLE -p TEXT -o {path}"
        try:
            self._file = _open(path)
            metadata: dict[str, str] = self._file.metadata() or {}
            names: list[str] = sorted(self._file.keys())
        except (OSError, SafetensorError) as error:
            told = "there is no such file" if isinstance(error, FileNotFoundError) else error
            raise self._error(f"cannot be read as a prompt cache: {told}") from None
        if metadata.get("format") != FORMAT:
            raise self._error("is no prompt cache")
        if (version := metadata.get("version")) != VERSION:
            raise self._error(f"has format version {version}; this edgellm reads version {VERSION}")
        self.facts = self._verified(metadata, names)
        self._check(model, layout, names)
        self.tokens: list[int] = self._file.get_tensor(TOKENS).tolist()
        if len(self.tokens) < self.held:
            raise self._error("is damaged: it has fewer tokens than slots")

    @property
    def held(self) -> int:
        """The most tokens that have slots in a layer; the others were evicted."""
        return max(self.facts.committed) + self.facts.staged

    def slots(self, name: str) -> NDArray[Any]:
        """A buffer's values [kv_heads, held, …]."""
        values: NDArray[Any] = self._file.get_tensor(name)
        return values

    def _verified(self, metadata: Mapping[str, str], names: list[str]) -> Facts:
        try:
            described = metadata["facts"]
            digest = _digest(described, ((name, self._file.get_tensor(name)) for name in names))
            if metadata["sha256"] == digest:
                return decode(Facts, json.loads(described), "")
        except (OSError, SafetensorError, KeyError, ValueError):
            pass
        raise self._error("is damaged or was edited: its checksum does not match its contents")

    def _check(self, model: str, layout: CacheLayout, names: list[str]) -> None:
        facts, policy = self.facts, layout.policy
        if facts.bits != layout.bits:
            raise self._error(f"holds keys and values of {facts.bits} bits; this bundle's cache has {layout.bits}")
        if facts.model != model:
            raise self._error("was made by another model, or by another export of it")
        full = policy.name == "full" and facts.policy.startswith("full:")
        # A full cache holds the same whatever its budget; what others hold depends on every setting.
        if not full and facts.policy != str(policy):
            told = f"holds a cache of policy {facts.policy}; this session's is {policy}"
            raise self._error(told, f"Use --kv {facts.policy}.")
        if not full and facts.budgets != list(layout.budgets):
            raise self._error("holds a cache of other budgets a layer")
        if full and self.held > policy.budget:
            what = f"holds {self.held} tokens; this session's cache ({policy}) {policy.budget}"
            raise self._error(what, f"Use --kv {facts.policy}.")
        expected = {
            name: (shape[0], facts.committed[layer] + facts.staged, *shape[2:])
            for layer, name, shape in layout.filled()
            if layer < len(facts.committed)
        }
        shapes = {name: tuple(self._file.get_slice(name).get_shape()) for name in names if name != TOKENS}
        if shapes != expected or TOKENS not in names or len(facts.committed) != layout.layers:
            raise self._error("is damaged: its tensors do not fit the model")
        if not full and facts.staged > layout.staging:
            raise self._error(f"holds a run of {facts.staged} tokens; this session's have {layout.staging}")

    def _error(self, what: str, hint: str = "") -> PromptCacheError:
        return PromptCacheError(f"{self._path} {what}", f"{hint} {self._again}".strip())


def _open(path: Path) -> Any:
    return safe_open(str(path), framework="np")


def _digest(described: str, tensors: Iterable[tuple[str, NDArray[Any]]]) -> str:
    digest = hashlib.sha256(described.encode())
    for name, tensor in tensors:
        digest.update(f"\n{name} {tensor.dtype} {tensor.shape}\n".encode())
        digest.update(np.ascontiguousarray(tensor).data)
    return digest.hexdigest()
