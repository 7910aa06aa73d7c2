"""A model in memory whose matrices a function compresses, each calibrated on what the layers before it left."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from edgellm.export.architectures import MATRICES, Architecture
from edgellm.export.calibrate import statistics
from edgellm.export.compress import Read
from edgellm.export.decoder import load_block, propagate
from edgellm.export.hessian import Hessians
from edgellm.export.vocabulary import embed
from tests.benchmarks.recovered import Weights, heard


def layerwise(
    arch: Architecture, tensors: dict[str, Tensor], text: Tensor, one: Callable[[str, Tensor, Read], Tensor],
    whole: bool = True,
) -> Weights:  # fmt: skip
    """tensors: dense, but for the embedding, which is as the recipe leaves it. text: int64 [N, T]. one: a matrix's
    canonical name, its weights and what it read of the text -> its weights as the recipe leaves them. whole: as
    Hessians take it."""
    source = Weights(dict(tensors))
    x = embed(arch, source, text)
    for layer in range(arch.layers):
        block, hessians = load_block(arch, source, layer), Hessians(whole)
        read = Read(statistics(arch, layer, block, x, heard(hessians)), hessians)
        for part in MATRICES:
            name = f"layers.{layer}.{part}"
            with torch.autocast("cpu", enabled=False):
                block[part] = source.tensors[name] = one(name, block[part], read)
        x = propagate(arch, layer, block, x)
    return source
