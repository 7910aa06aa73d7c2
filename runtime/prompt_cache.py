"""A sequence's KV cache in a safetensors file: a long beginning is read by the model once, not after every restart.

Tensors: `tokens` int64 [n], the sequence, and each cache buffer's slots in use under its graph name, [kv_heads, slots,
…], committed ones first. The file's facts are those of Facts (sealed_tensors.py).
What a file may be used for is decided by comparing token ids; the hashes only tell damage and other models.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.runtime.cache import CacheLayout
from edgellm.runtime.errors import PromptCacheError
from edgellm.runtime.sealed_tensors import SealedTensors, write_sealed
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
    """Write the file, whole or not at all. Raises EdgellmError where the folder cannot be written to."""
    write_sealed(path, FORMAT, VERSION, asdict(facts), {TOKENS: np.array(list(tokens), np.int64), **slots})


class PromptCache:
    """An open file whose contents were verified and fit a session's cache. `slots` reads a buffer at a time.

    model, layout: the session's Manifest.weights_sha256 and buffers. Raises PromptCacheError for a file that is
    missing, no prompt cache, damaged, of another version, model or KV policy, or too long for this cache.
    """

    def __init__(self, path: Path, model: str, layout: CacheLayout) -> None:
        self._path = path
        self._again = f"Make it again: edgellm cache-prompt BUNDLE -p TEXT -o {path}"
        self._file = SealedTensors(path, FORMAT, VERSION, "a prompt cache", self._error)
        try:
            self.facts = decode(Facts, self._file.facts, "")
        except ValueError:
            raise self._error("is damaged or was edited: its checksum does not match its contents") from None
        self._check(model, layout)
        self.tokens: list[int] = self._file.tensor(TOKENS).tolist()
        if len(self.tokens) < self.held:
            raise self._error("is damaged: it has fewer tokens than slots")

    @property
    def held(self) -> int:
        """The most tokens that have slots in a layer; the others were evicted."""
        return max(self.facts.committed) + self.facts.staged

    def slots(self, name: str) -> NDArray[Any]:
        """A buffer's values [kv_heads, held, …]."""
        return self._file.tensor(name)

    def _check(self, model: str, layout: CacheLayout) -> None:
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
        names = self._file.names
        shapes = {name: self._file.shape(name) for name in names if name != TOKENS}
        if shapes != expected or TOKENS not in names or len(facts.committed) != layout.layers:
            raise self._error("is damaged: its tensors do not fit the model")
        if not full and facts.staged > layout.staging:
            raise self._error(f"holds a run of {facts.staged} tokens; this session's have {layout.staging}")

    def _error(self, what: str, hint: str = "") -> PromptCacheError:
        return PromptCacheError(f"{self._path} {what}", f"{hint} {self._again}".strip())
