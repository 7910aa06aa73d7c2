"""One matrix from the checkpoint to its Quantized form: kept as stored, or pruned and rounded."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from edgellm.export import prune
from edgellm.export.architectures import MATRICES
from edgellm.export.calibrate import statistics
from edgellm.export.checkpoint import Checkpoint
from edgellm.export.config import ExportConfig
from edgellm.export.decoder import Block, load_block, propagate
from edgellm.export.quantize import round_to_nearest
from edgellm.kernels.layout import Quantized, dequantize

_Stats = Mapping[str, Tensor] | None


def compress(
    config: ExportConfig, checkpoint: Checkpoint, name: str, stats: _Stats = None, rows: slice | None = None
) -> Quantized:
    """The matrix of this canonical name, or these rows of it, quantized: the file's own blocks bit for bit unless it is
    pruned or another width is asked for. stats: calibrate.statistics of its layer, for methods that need them."""
    if not config.prunes(name) and config.width(name) is None:
        stored = checkpoint.stored(name, rows)
        if stored is not None:
            return stored
    return rounded(config, name, checkpoint.matrix(name, rows), stats)


def rounded(config: ExportConfig, name: str, weight: Tensor, stats: _Stats = None) -> Quantized:
    """Prune (where the recipe says so) and round a weight [out, in] that no tile can hold as it is."""
    f = config.format(name, (weight.shape[0], weight.shape[1]))
    mask = prune.mask(config.sparsity.method, name, weight, stats, f.n, f.m) if f.sparse else None
    return round_to_nearest(weight, f.bits, f.group, f.zero, f.n, f.m, f.axis, mask)


def compress_layer(
    config: ExportConfig, checkpoint: Checkpoint, layer: int, x: Tensor | None
) -> tuple[dict[str, Quantized], Tensor | None]:
    """All matrices of one layer, by role. x [N, T, hidden], the calibration text's states entering the layer, or None:
    statistics are taken with the layer's dense weights, and x moves on through its compressed ones (methods.md A2.1).
    """
    arch = checkpoint.architecture
    stats = None
    if x is not None:
        stats = statistics(arch, layer, load_block(arch, checkpoint, layer), x)
    found = {role: compress(config, checkpoint, f"layers.{layer}.{role}", stats) for role in MATRICES}
    if found["gate"].format != found["up"].format:  # a file that stores the two apart: the fused kernel wants one
        for role in ("gate", "up"):
            name = f"layers.{layer}.{role}"
            found[role] = rounded(config, name, checkpoint.matrix(name), stats)
    if x is not None:
        block: Block = {role: torch.from_numpy(dequantize(q)) for role, q in found.items()}
        block |= {role: checkpoint.vector(f"layers.{layer}.{role}") for role in arch.vectors}
        x = propagate(arch, layer, block, x)
    return found, x
