"""How far a compressed model's states are from the dense model's, layer by layer, on a text."""

from __future__ import annotations

import torch
from torch import Tensor

from edgellm.export.architectures import Architecture
from edgellm.export.checkpoint import Source
from edgellm.export.decoder import load_block, mean_perplexity, propagate, state_losses
from edgellm.export.vocabulary import embed


@torch.no_grad()
def drift(arch: Architecture, dense: Source, packed: Source, text: Tensor) -> tuple[float, list[float]]:
    """(the dense model's perplexity, ||states - dense states|| / ||dense states|| as they leave each layer).

    text: int64 [N, T], rows on their own; median over tokens, as the few that are hundreds of times larger than others
    would be the whole of a sum. Memory: one block and both models' states.
    """
    ours, theirs = embed(arch, packed, text), embed(arch, dense, text)
    errors = []
    for layer in range(arch.layers):
        propagate(arch, layer, load_block(arch, packed, layer), ours)
        propagate(arch, layer, load_block(arch, dense, layer), theirs)
        errors.append(float(((ours - theirs).norm(dim=-1) / theirs.norm(dim=-1).clamp_min(1e-30)).median()))
    return mean_perplexity(*state_losses(arch, dense, theirs, text)), errors
