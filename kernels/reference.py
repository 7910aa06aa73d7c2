"""The meaning of every operator in NumPy: slow, obvious, the oracle of all tests. Every implementation equals these.

Operators of domain "edgellm", version 3. x and y are float32; weights are packed tiles (layout.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from edgellm.kernels.layout import PANEL, Format, dequantize, unpack

F32 = NDArray[np.float32]

FULL, WINDOW = 0, 1  # policies, as numbers in `control`


def silu(x: F32) -> F32:
    """x * sigmoid(x)."""
    y: F32 = x / (1 + np.exp(-x))
    return y


def gelu_tanh(x: F32) -> F32:
    """GELU in its tanh approximation (Hendrycks and Gimpel, arXiv 1606.08415)."""
    y: F32 = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    return y


def rms_norm(x: F32, weight: F32, epsilon: float) -> F32:
    """x / sqrt(mean(x^2) + epsilon) * weight over the last dimension (arXiv 1910.07467)."""
    y: F32 = x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + epsilon) * weight
    return y


ACTIVATIONS = {"silu": silu, "gelu_tanh": gelu_tanh}


def nm_matmul(
    x: F32,
    tiles: NDArray[np.uint8],
    f: Format,
    activation: str = "none",
    bias: F32 | None = None,
    residual: F32 | None = None,
    norm: F32 | None = None,
    epsilon: float = 0.0,
) -> F32:
    """NMMatMul: y = x W^T + bias + residual for x [T, k_in] -> y [T, n_out]; bias [n_out] and residual [T, n_out] are
    optional, and so is norm [k_in]: then rms_norm(x, norm, epsilon) is multiplied.

    With an activation, W's outputs are 16 gate, 16 up, 16 gate, … and y = act(gate) * up, [T, n_out/2]; nothing is
    added then.
    Implementations quantize x to 16 bits per row and 64 inputs, and what that leaves over once more where one input
    dwarfs the others, so that a 30-layer model's logits stay within 1e-3 of these (8 bits were tried: 5e-2, and greedy
    text differs).
    """
    if norm is not None:
        x = rms_norm(x, norm, epsilon)
    y = x @ dequantize(unpack(tiles, f)).T
    if activation == "none":
        y = y if bias is None else y + bias
        return y if residual is None else y + residual
    pairs = y.reshape(len(x), -1, 2, PANEL)
    gate, up = pairs[:, :, 0], pairs[:, :, 1]
    return (ACTIVATIONS[activation](gate) * up).reshape(len(x), -1)


def quant_gather(ids: NDArray[np.int64], tiles: NDArray[np.uint8], f: Format) -> F32:
    """QuantGather: rows of the packed matrix, ids [T] -> [T, k_in]."""
    return dequantize(unpack(tiles, f))[ids]


@dataclass
class Cache:
    """One layer's buffers: key, value fp16 [kv_heads, capacity, head_dim] (keys rotated), position int32 [kv_heads,
    capacity]. Slots [0, budget) are committed tokens, slots [budget, capacity) hold the last run's own."""

    key: NDArray[np.float16]
    value: NDArray[np.float16]
    position: NDArray[np.int32]


def rotate(x: F32, cos: F32, sin: F32) -> F32:
    """Rotary embedding, rotate-half order: x [T, heads, head_dim], cos and sin [T, rotary/2]; the rest passes."""
    half = cos.shape[1]
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    c, s = cos[:, None], sin[:, None]
    return np.concatenate([a * c - b * s, b * c + a * s, rest], axis=-1)


def commit(cache: Cache, control: NDArray[np.int64]) -> int:
    """Move the last run's accepted tokens into the budget; returns how many tokens are committed then.

    control: (committed, accepted, budget, sinks, policy). Where the budget is full, policy WINDOW overwrites the
    committed token of the lowest position that is no sink (position < sinks; StreamingLLM, arXiv 2309.17453), each
    KV head by itself; FULL raises ValueError.
    """
    committed, accepted, budget, sinks, policy = (int(c) for c in control)
    for staged in range(budget, budget + accepted):
        if committed == budget and policy == FULL:
            raise ValueError(f"the cache of {budget} tokens is full")
        for head in range(len(cache.key)):
            slot = committed
            if committed == budget:
                old = cache.position[head, :budget]
                slot = int(np.argmin(np.where(old < sinks, np.iinfo(np.int32).max, old)))
            for buffer in (cache.key, cache.value, cache.position):
                buffer[head, slot] = buffer[head, staged]
        committed = min(committed + 1, budget)
    return committed


def pruned_kv_attention(
    qkv: F32, cos: F32, sin: F32, positions: NDArray[np.int64], control: NDArray[np.int64], cache: Cache,
    scale: float, window: int = 0, softcap: float = 0.0,
    q_norm: F32 | None = None, k_norm: F32 | None = None, epsilon: float = 0.0,
) -> F32:  # fmt: skip
    """PrunedKVAttention: commit the last run's accepted tokens, stage these T, attend; the cache changes in place.

    qkv [T, (heads + 2*kv_heads) * head_dim], a token's query heads, then its keys, then its values; cos and sin
    [T, rotary/2], positions [T] -> y [T, heads*head_dim]. q_norm and k_norm [head_dim], where the model has them, norm
    each head of q and k before rotation. Token t sees all committed tokens and the staged ones up to itself:
    y = softmax(scale * q k^T) v, a group of heads/kv_heads query heads sharing a KV head. Keys and values are read back
    from the cache, so at fp16.
    window: a token sees only positions above its own less `window` (0: all). softcap: logits become
    softcap * tanh(logits / softcap) before softmax (0: they stay).
    """
    committed = commit(cache, control)
    budget, steps = int(control[2]), len(qkv)
    kv_heads, _, head_dim = cache.key.shape
    all_heads = qkv.reshape(steps, -1, head_dim)
    q, k, v = np.split(all_heads, [all_heads.shape[1] - 2 * kv_heads, all_heads.shape[1] - kv_heads], axis=1)
    q, k = (x if norm is None else rms_norm(x, norm, epsilon) for x, norm in ((q, q_norm), (k, k_norm)))
    q = rotate(q, cos, sin)
    staged = slice(budget, budget + steps)
    cache.key[:, staged] = rotate(k, cos, sin).transpose(1, 0, 2)
    cache.value[:, staged] = v.transpose(1, 0, 2)
    cache.position[:, staged] = positions
    y = np.empty_like(q)
    group = q.shape[1] // kv_heads
    for t in range(steps):
        seen = np.r_[0:committed, budget : budget + t + 1]
        for head in range(q.shape[1]):
            at = cache.position[head // group, seen]
            near = seen[at > positions[t] - window] if window else seen
            logits = scale * (cache.key[head // group, near].astype(np.float32) @ q[t, head])
            if softcap:
                logits = softcap * np.tanh(logits / softcap)
            weights = np.exp(logits - logits.max())
            y[t, head] = (weights / weights.sum()) @ cache.value[head // group, near].astype(np.float32)
    return y.reshape(steps, -1)


@dataclass
class Layer:
    """What DecoderLayer holds, by role. matrices: packed tiles and format of q (or of q, k and v stacked), o, gate_up,
    down, and of k and v where they are apart. vectors: attention_norm, mlp_norm; optionally q_bias, k_bias, v_bias,
    o_bias, q_norm, k_norm, post_attention_norm, post_mlp_norm."""

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
    norms = v.get("q_norm"), v.get("k_norm"), eps
    mixed = pruned_kv_attention(
        qkv, cos, sin, positions, control, cache, layer.scale, layer.window, layer.softcap, *norms
    )
    if rows is not None:
        x, mixed = x[rows], mixed[rows]
    x = added(x, product(mixed, "o"), "post_attention_norm")
    hidden = product(x, "gate_up", layer.activation, "mlp_norm")
    return added(x, product(hidden, "down"), "post_mlp_norm")
