"""The loss of adapt.onnx in torch, over the dequantized weights of a bundle: what its gradient must equal."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from edgellm.export.adapt_carriers import LORA_SCALE
from edgellm.export.architectures import Architecture
from edgellm.export.checkpoint import Source
from edgellm.export.decoder import KeyValue, block_forward, final_norm, load_block
from edgellm.export.vocabulary import embed, head_logits


class Double:
    """A source whose tensors come in float64."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def matrix(self, *which: Any) -> Tensor:
        return self._source.matrix(*which).double()

    def vector(self, name: str) -> Tensor:
        return self._source.vector(name).double()


def double_losses(arch: Architecture, source: Source, given: dict[str, Any]) -> tuple[list[float], dict[str, Tensor]]:
    """torch_losses in float64, of the same float32 weights and inputs."""
    wide = {name: value.astype(np.float64) if value.dtype == np.float32 else value for name, value in given.items()}
    torch.set_default_dtype(torch.float64)
    try:
        return torch_losses(arch, cast(Source, Double(source)), wide)
    finally:
        torch.set_default_dtype(torch.float32)


def torch_losses(arch: Architecture, source: Source, given: dict[str, Any]) -> tuple[list[float], dict[str, Tensor]]:
    """(ida, entropy, kl) and the gradient of every tensor of the carrier, for the graph's own inputs by name."""
    names = [name for name in given if name in ("key", "value", "soft") or name.endswith((".down", ".up"))]
    leaves = {name: torch.from_numpy(given[name]).requires_grad_() for name in names}
    x = embed(arch, source, torch.from_numpy(given["ids"]))[None]
    if "soft" in leaves:
        x = torch.cat([leaves["soft"][None] * arch.embedding_scale, x], dim=1)
    for layer in range(arch.layers):
        weights = load_block(arch, source, layer)
        for role in ("q", "v"):
            if f"{role}.down" in leaves:
                update = leaves[f"{role}.down"][layer] @ leaves[f"{role}.up"][layer]
                weights[role] = weights[role] + LORA_SCALE * update.T
        cache = None
        if "key" in leaves:
            room = torch.zeros(1, arch.kv_heads, x.shape[1], arch.head_dim)
            held = [torch.cat([leaves[name][layer][None], room], dim=2) for name in ("key", "value")]
            cache = KeyValue(held[0], held[1], leaves["key"].shape[2])
        x = block_forward(arch, layer, weights, x, cache=cache)
    logits = head_logits(arch, source, final_norm(arch, source, x[0]))
    rows, targets, weight = (torch.from_numpy(given[n]) for n in ("prompt_rows", "targets", "prompt_weights"))
    ida = (functional.cross_entropy(logits[rows], targets, reduction="none") * weight).sum()
    log_p = logits[torch.from_numpy(given["answer_rows"])].log_softmax(-1)
    weight = torch.from_numpy(given["answer_weights"])
    entropy = (-(log_p.exp() * log_p).sum(-1) * weight).sum()
    base = torch.from_numpy(given["reference"]).log_softmax(-1)
    kl = ((log_p.exp() * (log_p - base)).sum(-1) * weight).sum()
    loss = float(given["w_ida"]) * ida + float(given["w_entropy"]) * entropy + float(given["w_kl"]) * kl
    loss.backward()
    return [ida.item(), entropy.item(), kl.item()], {name: leaf.grad for name, leaf in leaves.items()}
