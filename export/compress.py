"""One matrix from the checkpoint to its Quantized form: kept as stored, or pruned, rounded and corrected."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from edgellm.export import prune
from edgellm.export.architectures import MATRICES, Architecture, role
from edgellm.export.block_recovery import Goal, recover_block
from edgellm.export.calibrate import statistics
from edgellm.export.checkpoint import Checkpoint, Source
from edgellm.export.config import ExportConfig
from edgellm.export.decoder import Block, final_norm, load_block, propagate
from edgellm.export.hessian import Hessians
from edgellm.export.quantize import round_searched, round_to_nearest
from edgellm.export.sparsegpt import sparsegpt
from edgellm.export.vocabulary import embed
from edgellm.kernels.layout import Quantized, dequantize


@dataclass(frozen=True)
class Read:
    """What matrices read of the calibration text: statistics (calibrate.py), for masks, and Hessians, for rounding."""

    stats: Mapping[str, Tensor]
    hessians: Hessians


Heard = Callable[[int, Checkpoint, Read], None]


def compress(
    config: ExportConfig, checkpoint: Checkpoint, name: str, read: Read | None = None, rows: slice | None = None
) -> Quantized:
    """The matrix of this canonical name, or these rows of it, quantized: the file's own blocks bit for bit unless it is
    pruned or another width is asked for. read: by the matrices of its layer, where a calibration text was run."""
    if not config.prunes(name) and config.width(name) is None:
        stored = checkpoint.stored(name, rows)
        if stored is not None:
            return stored
    return rounded(config, name, checkpoint.matrix(name, rows), read)


def rounded(config: ExportConfig, name: str, weight: Tensor, read: Read | None = None) -> Quantized:
    """Prune (where the recipe says so) and round a weight [out, in] that no tile can hold as it is."""
    f = config.format(name, (weight.shape[0], weight.shape[1]))
    method, part = config.level(name).sparsity.method, role(name)
    swept = f.sparse and method == prune.SWEPT
    stats = None if read is None else read.stats
    mask = prune.mask(method, name, weight, stats, f.n, f.m) if f.sparse and not swept else None
    if config.corrects(name) and read is not None:
        return sparsegpt(weight, read.hessians.feedback(part, f.group), f, mask)
    if f.bits == 8:  # as good as it gets
        return round_to_nearest(weight, f.bits, f.group, f.zero, f.n, f.m, f.axis, mask)
    return round_searched(weight, f, None if read is None else read.hessians.importance(part), mask)


def compress_layer(
    config: ExportConfig, checkpoint: Checkpoint, layer: int, x: Tensor | None, also: Heard | None = None,
    goal: Goal | None = None,
) -> tuple[dict[str, Quantized], Tensor | None]:  # fmt: skip
    """All matrices of one layer, by role. x [N, T, hidden], the calibration text's states entering the layer, or None:
    inputs are taken with the layer's dense weights, and x moves on through its compressed ones (methods.md A2.1).
    also: told what the matrices read of x. goal: where the dense model is, which the layer is then trained to come to
    (block_recovery.py); it moves on too.
    """
    arch = checkpoint.architecture
    read = None
    if x is not None:
        hessians = Hessians(config.recover != "none" or also is not None)
        read = Read(statistics(arch, layer, load_block(arch, checkpoint, layer), x, hessians.add), hessians)
        if also is not None:
            also(layer, checkpoint, read)
    found = {role: compress(config, checkpoint, f"layers.{layer}.{role}", read) for role in MATRICES}
    if found["gate"].format != found["up"].format:  # a file that stores the two apart: the fused kernel wants one
        for part in ("gate", "up"):
            name = f"layers.{layer}.{part}"
            found[part] = rounded(config, name, checkpoint.matrix(name), read)
    if x is not None and goal is not None:
        found = recover_block(config, checkpoint, layer, found, x, goal)
    if x is not None:
        block: Block = {role: torch.from_numpy(dequantize(q)) for role, q in found.items()}
        block |= {role: checkpoint.vector(f"layers.{layer}.{role}") for role in arch.vectors}
        x = propagate(arch, layer, block, x)
    return found, x


def read_by_head(arch: Architecture, source: Source, ids: Tensor, name: str) -> Read:
    """What the output head reads in the dense model, for text int64 [N, T], as that of a matrix of this name.

    Taken before any layer is compressed: the embedding, which is the head too where they are tied, has to be there
    first, so that the layers can correct what its rounding loses.
    """
    hessians = Hessians()
    x = embed(arch, source, ids)
    for layer in range(arch.layers):
        x = propagate(arch, layer, load_block(arch, source, layer), x)
    for states in x:
        hessians.add(name, final_norm(arch, source, states))
    return Read({}, hessians)
