"""The torch reference of a decoder, float32: calibration runs it, verification trusts it.

One block's weights are in memory at a time; the hidden states of all sequences pass through it a few at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from edgellm.export.architectures import MATRICES, Architecture, Layer
from edgellm.export.checkpoint import Source
from edgellm.export.key_shift import key_shift, shifts_keys
from edgellm.export.rope import Rope
from edgellm.export.vocabulary import embed, head_logits, head_losses
from edgellm.kernels.kv_rows import ROW, from_rows, hadamard, to_rows

Block = dict[str, Tensor]  # role -> float32 tensor, of one layer
Record = Callable[[str, Tensor], None]

TOKENS_AT_ONCE = 2048  # of a forward pass through one block
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "gelu_tanh": lambda gate: functional.gelu(gate, approximate="tanh"),
}


@dataclass
class KeyValue:
    """One layer's cache while sampling: float32 [B, kv_heads, capacity, head_dim], the first `length` in use."""

    key: Tensor
    value: Tensor
    length: int = 0


def load_block(arch: Architecture, source: Source, layer: int) -> Block:
    """Read one layer's tensors, by role."""
    block = {role: source.matrix(f"layers.{layer}.{role}") for role in MATRICES}
    return block | {role: source.vector(f"layers.{layer}.{role}") for role in arch.vectors}


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def rotary(rope: Rope, positions: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin, float32 [T, dims], both halves alike (rotate-half order), for int64 positions [T]."""
    angles = positions.to(torch.float32)[:, None] * torch.from_numpy(rope.frequencies())
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos() * rope.magnitude, angles.sin() * rope.magnitude


def rotate(y: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the first dims of each head, y [..., T, head_dim]; the rest passes."""
    turned, rest = y[..., : cos.shape[-1]], y[..., cos.shape[-1] :]
    first, second = turned.chunk(2, dim=-1)
    return torch.cat([turned * cos + torch.cat([-second, first], dim=-1) * sin, rest], dim=-1)


def attend(arch: Architecture, layer: Layer, query: Tensor, key: Tensor, value: Tensor, start: int) -> Tensor:
    """Attention of query [B, heads, T, head_dim], from position start on, over key, value [B, kv_heads, S, head_dim].

    A token sees itself and those before it, the last `window` of them in a sliding layer.
    """
    at, seen = torch.arange(start, start + query.shape[2])[:, None], torch.arange(key.shape[2])[None, :]
    mask = seen <= at
    if layer.window:
        mask &= seen > at - layer.window
    if not arch.attention_softcap:
        plain = start == 0 and not layer.window
        return functional.scaled_dot_product_attention(
            query, key, value, None if plain else mask, is_causal=plain, scale=arch.attention_scale, enable_gqa=True
        )
    group = arch.heads // arch.kv_heads
    logits = query @ key.repeat_interleave(group, 1).transpose(2, 3) * arch.attention_scale
    logits = arch.attention_softcap * torch.tanh(logits / arch.attention_softcap)
    return logits.masked_fill(~mask, -torch.inf).softmax(dim=-1) @ value.repeat_interleave(group, 1)


def as_cached(key: Tensor, value: Tensor, bits: int, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Rotated keys and values [..., head_dim] as they come back from a cache of 16 or 8 bits (kernels/kv_rows.py).

    shift: taken off keys before they are rounded, and added again here.
    """

    def rounded(x: NDArray[np.float32]) -> NDArray[np.float32]:
        return from_rows(to_rows(x, ROW[bits]))

    keys, values = (key - shift).numpy(), value.numpy()
    held = rounded(keys) if bits == 16 else hadamard(rounded(hadamard(keys)))
    return torch.from_numpy(held) + shift, torch.from_numpy(rounded(values))


def block_forward(
    arch: Architecture,
    layer: int,
    weights: Block,
    x: Tensor,
    record: Record | None = None,
    cache: KeyValue | None = None,
    kv_bits: int | None = None,
) -> Tensor:
    """One decoder block with causal attention over all of x: [B, T, hidden] -> [B, T, hidden].

    record(role, input [B, T, in]) is called with the input of "q" (also k's and v's), "o", "gate" (also up's) and
    "down". With a cache, keys and values are appended to it and x attends to what it held too; positions go on from it.
    kv_bits: keys and values are rounded as in a device's cache of this width (16 or 8); None: they are not.
    """
    batch, length, _ = x.shape
    facts, start = arch.layers_as[layer], cache.length if cache is not None else 0

    def linear(role: str, y: Tensor) -> Tensor:
        return functional.linear(y, weights[role], weights.get(f"{role}_bias"))

    def heads(role: str) -> Tensor:
        y = linear(role, normed).view(batch, length, -1, arch.head_dim).transpose(1, 2)
        return rms_norm(y, weights[f"{role}_norm"], arch.norm_eps) if f"{role}_norm" in weights else y

    def noted(role: str, y: Tensor) -> Tensor:
        if record is not None:
            record(role, y)
        return y

    def added(role: str, y: Tensor) -> Tensor:
        return rms_norm(y, weights[role], arch.norm_eps) if arch.post_norms else y

    normed = noted("q", rms_norm(x, weights["attention_norm"], arch.norm_eps))
    cos, sin = rotary(facts.rope, torch.arange(start, start + length))
    query, key, value = rotate(heads("q"), cos, sin), rotate(heads("k"), cos, sin), heads("v")
    if kv_bits is not None:
        shift = torch.zeros(arch.kv_heads * arch.head_dim)
        if shifts_keys(arch, kv_bits):
            shift = key_shift(arch, layer, weights["k_bias"])
        key, value = as_cached(key, value, kv_bits, shift.view(-1, 1, arch.head_dim))
    if cache is not None:
        end = start + length
        cache.key[:, :, start:end], cache.value[:, :, start:end] = key, value
        key, value, cache.length = cache.key[:, :, :end], cache.value[:, :, :end], end
    attended = attend(arch, facts, query, key, value, start)
    attended = noted("o", attended.transpose(1, 2).reshape(batch, length, -1))
    x = x + added("post_attention_norm", linear("o", attended))
    normed = noted("gate", rms_norm(x, weights["mlp_norm"], arch.norm_eps))
    gate = _ACTIVATIONS[arch.activation](linear("gate", normed))
    inner = noted("down", gate * linear("up", normed))
    return x + added("post_mlp_norm", linear("down", inner))


def final_norm(arch: Architecture, source: Source, x: Tensor) -> Tensor:
    """What the output head reads: [..., hidden] -> [..., hidden]."""
    return rms_norm(x, source.vector("norm"), arch.norm_eps)


@torch.no_grad()
def propagate(
    arch: Architecture,
    layer: int,
    weights: Block,
    x: Tensor,
    record: Record | None = None,
    kv_bits: int | None = None,
) -> Tensor:
    """Push all sequences x [N, T, hidden] through one block, a few at a time, **in place**; returns x."""
    step = max(1, TOKENS_AT_ONCE // max(1, x.shape[1]))
    for start in range(0, x.shape[0], step):
        x[start : start + step] = block_forward(arch, layer, weights, x[start : start + step], record, kv_bits=kv_bits)
    return x


@torch.no_grad()
def hidden_states(arch: Architecture, source: Source, ids: list[Tensor], kv_bits: int | None = None) -> list[Tensor]:
    """The last block's output for several batches int64 [N, T] (T may differ): float32 [N, T, hidden] each.

    Every block is loaded once. Memory: one block and the hidden states. kv_bits: see block_forward.
    """
    states = [embed(arch, source, batch) for batch in ids]
    for layer in range(arch.layers):
        block = load_block(arch, source, layer)
        for state in states:
            propagate(arch, layer, block, state, kv_bits=kv_bits)
        del block  # before the next one is read
    return states


@torch.no_grad()
def forward(arch: Architecture, source: Source, ids: Tensor) -> Tensor:
    """Logits of int64 ids [B, T]: float32 [B, T, vocabulary], block by block."""
    state = hidden_states(arch, source, [ids])[0]
    return head_logits(arch, source, final_norm(arch, source, state))


@torch.no_grad()
def window_losses(arch: Architecture, source: Source, ids: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """Negative log-likelihoods by window of int64 ids [L]: (sums in nats float64 [W], scored tokens int64 [W]).

    A window's first token is not scored. The last, shorter window counts if it has at least 2 tokens.
    """
    whole = ids.numel() // window
    batches = [ids[: whole * window].view(whole, window)] if whole else []
    if ids.numel() - whole * window >= 2:
        batches.append(ids[whole * window :].view(1, -1))
    states = [state for batch in hidden_states(arch, source, batches) for state in batch]
    return state_losses(arch, source, states, [row for batch in batches for row in batch])


@torch.no_grad()
def state_losses(
    arch: Architecture, source: Source, states: Iterable[Tensor], rows: Iterable[Tensor]
) -> tuple[Tensor, Tensor]:
    """The same for windows int64 [T] each, from the last block's outputs [T, hidden] for them."""
    following = [row[1:] for row in rows]
    normed = [final_norm(arch, source, state[:-1]) for state in states]
    losses = head_losses(arch, source, normed, following)
    sums = torch.tensor([float(loss.sum()) for loss in losses], dtype=torch.float64)
    return sums, torch.tensor([len(ids) for ids in following])


def mean_perplexity(sums: Tensor, counts: Tensor) -> float:
    """exp of the mean of summed nats over scored tokens; NaN when nothing is scored."""
    scored = int(counts.sum())
    return math.exp(min(float(sums.sum()) / scored, 700.0)) if scored else math.nan


def perplexity(arch: Architecture, source: Source, ids: Tensor, window: int) -> float:
    """exp of the mean negative log-likelihood a token of int64 ids [L] in windows, each block loaded once.

    Scored: positions 1 ... window-1 of every window (see window_losses). NaN when nothing is scored.
    """
    return mean_perplexity(*window_losses(arch, source, ids, window))
