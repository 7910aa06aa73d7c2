"""What is taken off a layer's keys before an int8 cache rounds them: the part of their bias that rotation hardly turns.

Qwen2's key biases reach 200 beside activations of a few units, mostly where rotary embedding turns slowest. A vector
that all keys share changes all logits of a query alike, and softmax drops it: taking it off costs nothing and leaves
int8 the keys' own part. Ours; KVQuant (arXiv 2401.18079) rounds keys before their rotation for the same reason.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from edgellm.export.architectures import Architecture

POSITIONS = 4096
"""The rotated bias is averaged over so many first positions: fast dimensions leave nothing, slow ones almost all."""


def shifts_keys(arch: Architecture, kv_bits: int) -> bool:
    """Whether keys of this model have a bias to take off: not one that is normed, nor where a soft cap follows."""
    return kv_bits == 8 and "k" in arch.biases and not arch.qk_norm and not arch.attention_softcap


def key_shift(arch: Architecture, layer: int, bias: Tensor) -> Tensor:
    """The mean over POSITIONS of the rotated bias [kv_heads * head_dim], float32 of the same size."""
    rope = arch.layers_as[layer].rope
    half = rope.dims // 2
    heads = bias.numpy().reshape(arch.kv_heads, arch.head_dim).astype(np.float64)
    turned = heads[:, :half] + 1j * heads[:, half : 2 * half]
    angles = np.arange(POSITIONS)[:, None] * rope.frequencies().astype(np.float64)
    turned = turned * np.exp(1j * angles).mean(axis=0) * rope.magnitude
    mean = np.concatenate([turned.real, turned.imag, heads[:, 2 * half :]], axis=1)
    return torch.from_numpy(mean.reshape(-1).astype(np.float32))
