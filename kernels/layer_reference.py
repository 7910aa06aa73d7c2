"""The meaning of DecoderLayer in NumPy, from those of its parts: the oracle of its tests."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from edgellm.kernels.attention_reference import Cache, pruned_kv_attention
from edgellm.kernels.layout import Format
from edgellm.kernels.reference import F32, nm_matmul, rms_norm


@dataclass
class Layer:
    """What DecoderLayer holds, by role. matrices: packed tiles and format of q (or of q, k and v stacked), o, gate_up,
    down, and of k and v where they are apart. vectors: attention_norm, mlp_norm; optionally q_bias, k_bias, v_bias,
    o_bias, q_norm, k_norm, k_shift, post_attention_norm, post_mlp_norm."""

    heads: int
    scale: float
    activation: str
    epsilon: float
    matrices: dict[str, tuple[NDArray[np.uint8], Format]]
    vectors: dict[str, F32] = field(default_factory=dict)
    window: int = 0
    softcap: float = 0.0


def decoder_layer(
    x: F32, layer: Layer, cos: F32, sin: F32, positions: NDArray[np.int64], control: NDArray[np.int64], cache: Cache,
    rows: NDArray[np.int64] | None = None,
) -> F32:  # fmt: skip
    """DecoderLayer: a whole block, x [T, hidden] -> y [T, hidden], or of the named rows only, [R, hidden].

    a = x + o(attention(qkv(norm(x)))) and y = a + down(act(gate) * up) of norm(a), what is added normed first where the
    layer has post_attention_norm and post_mlp_norm. Otherwise as nm_matmul and pruned_kv_attention, its parts.
    """
    v, eps = layer.vectors, layer.epsilon

    def product(y: F32, role: str, activation: str = "none", norm: str = "") -> F32:
        return nm_matmul(y, *layer.matrices[role], activation, v.get(f"{role}_bias"), norm=v.get(norm), epsilon=eps)

    def added(x: F32, y: F32, norm: str) -> F32:
        return x + (rms_norm(y, v[norm], eps) if norm in v else y)

    qkv = np.concatenate([product(x, r, norm="attention_norm") for r in ("q", "k", "v") if r in layer.matrices], axis=1)
    norms = v.get("q_norm"), v.get("k_norm"), eps, v.get("k_shift")
    mixed = pruned_kv_attention(
        qkv, cos, sin, positions, control, cache, layer.scale, layer.window, layer.softcap, *norms
    )
    if rows is not None:
        x, mixed = x[rows], mixed[rows]
    x = added(x, product(mixed, "o"), "post_attention_norm")
    hidden = product(x, "gate_up", layer.activation, "mlp_norm")
    return added(x, product(hidden, "down"), "post_mlp_norm")
