"""The KV cache's buffers: their names, shapes and bytes (design.md, "The KV cache")."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import DTypeLike

from edgellm.kernels.kv_rows import ROW, row_width
from edgellm.runtime.kv_policy import KVPolicy
from edgellm.runtime.schema import Manifest


@dataclass(frozen=True)
class CacheLayout:
    """The cache's buffers; `staging` is the most tokens of one run. budgets: one a layer, by default the policy's.
    bits: of keys and values, 16 or 8 (edgellm.kernels.kv_rows)."""

    policy: KVPolicy
    staging: int
    layers: int
    kv_heads: int
    head_dim: int
    budgets: tuple[int, ...] = ()
    bits: int = 16

    def __post_init__(self) -> None:
        if not self.budgets:
            object.__setattr__(self, "budgets", self.policy.layer_budgets(self.layers))

    def of(self, budgets: Sequence[int]) -> CacheLayout:
        """The same buffers with other budgets."""
        return replace(self, budgets=tuple(budgets))

    def capacity(self, layer: int) -> int:
        """Slots a head: committed tokens and the staging area behind them."""
        return self.budgets[layer] + self.staging

    def buffers(self) -> list[tuple[str, tuple[int, ...], DTypeLike]]:
        """(graph input, shape, dtype) of every buffer; the matching output is "<input>.out".

        Per layer L: key.L and value.L [kv_heads, capacity, elements a row], position.L [kv_heads, capacity] and score.L
        [kv_heads, capacity, planes], empty where the policy scores nothing.
        """
        found: list[tuple[str, tuple[int, ...], DTypeLike]] = []
        for layer in range(self.layers):
            narrow = (self.kv_heads, self.capacity(layer))
            found += [
                (f"key.{layer}", (*narrow, row_width(self.head_dim, self.bits)), ROW[self.bits]),
                (f"value.{layer}", (*narrow, row_width(self.head_dim, self.bits)), ROW[self.bits]),
                (f"position.{layer}", narrow, np.int32),
                (f"score.{layer}", (*narrow, self.policy.planes), np.float32),
            ]
        return found

    def filled(self) -> list[tuple[int, str, tuple[int, ...]]]:
        """(layer, graph input, shape) of the buffers that hold anything: what a prompt cache file stores."""
        return [(layer_of(name), name, shape) for name, shape, _ in self.buffers() if 0 not in shape]

    @property
    def token_bytes(self) -> int:
        """Bytes of one token's slots in one layer."""
        row = row_width(self.head_dim, self.bits) * np.dtype(ROW[self.bits]).itemsize
        return self.kv_heads * (2 * row + 4 + 4 * self.policy.planes)

    @property
    def slot_bytes(self) -> int:
        """Bytes of one token's slots in all layers."""
        return self.layers * self.token_bytes

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers."""
        return self.token_bytes * sum(self.capacity(layer) for layer in range(self.layers))


def cache_layout(manifest: Manifest, policy: KVPolicy, staging: int) -> CacheLayout:
    """The buffers of a bundle's model at the width its graph has them."""
    model = manifest.model
    return CacheLayout(policy, staging, model.layers, model.kv_heads, model.head_dim, bits=manifest.kv.bits)


def layer_of(name: str) -> int:
    """ "key.3" -> 3."""
    return int(name.rpartition(".")[2])
