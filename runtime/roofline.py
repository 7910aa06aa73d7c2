"""What decoding must read from memory for one token: with the read bandwidth, the bound on its speed."""

from __future__ import annotations

from collections.abc import Mapping

from edgellm.runtime.cache import cache_layout
from edgellm.runtime.kv_policy import KVPolicy
from edgellm.runtime.schema import Manifest


def weight_bytes(sizes: Mapping[str, int]) -> int:
    """Bytes of weights that a token reads, from the bytes of each tensor by name.

    All of them, but of an embedding that is not the head too only one row, which is left out as too small to count.
    """
    return sum(sizes.values()) - (sizes.get("embedding", 0) if "head" in sizes else 0)


def manifest_weight_bytes(manifest: Manifest) -> int:
    """The same for a bundle's matrices. Norms and biases are not in the manifest, and under a thousandth."""
    return weight_bytes({matrix.name: matrix.bytes for matrix in manifest.matrices})


def kv_read_bytes(manifest: Manifest, policy: KVPolicy, tokens: int) -> int:
    """Bytes of keys, values, positions and scores that a token reads after `tokens` others.

    Layers with a window of their own (Gemma) count in full, though they read less of a long context.
    """
    layout = cache_layout(manifest, policy, 0)
    return sum(min(tokens + 1, budget) for budget in layout.budgets) * layout.token_bytes
