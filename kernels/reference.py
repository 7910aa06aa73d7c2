"""The meaning of every operator in NumPy: slow, obvious, the oracle of all tests. Every implementation equals these.

PrunedKVAttention is in attention_reference.py, DecoderLayer in layer_reference.py.

Operators of domain "edgellm", version 4. x and y are float32; weights are packed tiles (layout.py).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgellm.kernels.layout import PANEL, Format, dequantize, unpack

F32 = NDArray[np.float32]


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
    text differs). With the attribute exact = 1.0 they do not: x stays float32, and only a bias may be added.
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


def nm_matmul_t(dy: F32, tiles: NDArray[np.uint8], f: Format) -> F32:
    """NMMatMulT: dx = dy W for dy [T, n_out] -> dx [T, k_in], the gradient of NMMatMul's product in its input.

    All in float32: nothing is quantized on the way back.
    """
    dx: F32 = dy @ dequantize(unpack(tiles, f))
    return dx


def quant_gather(ids: NDArray[np.int64], tiles: NDArray[np.uint8], f: Format) -> F32:
    """QuantGather: rows of the packed matrix, ids [T] -> [T, k_in]."""
    return dequantize(unpack(tiles, f))[ids]
