"""`--recover distill` on weights in memory, unquantized ones too: block by block, then the whole model."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from edgellm.export.architectures import MATRICES, Architecture, role
from edgellm.export.block_recovery import Goal, train_block
from edgellm.export.calibrate import statistics
from edgellm.export.compress import Read, rounded
from edgellm.export.config import ExportConfig
from edgellm.export.decoder import Block, Record, load_block, propagate
from edgellm.export.distill import token_weights
from edgellm.export.end_to_end import Plan, pace, train
from edgellm.export.hessian import Hessians
from edgellm.export.level import GROUP
from edgellm.export.prune import SWEPT, mask
from edgellm.export.recover import set_apart
from edgellm.export.sparsegpt import updated
from edgellm.export.straight_through import Latent
from edgellm.export.student import Student, divergence
from edgellm.export.vocabulary import embed


class Weights:
    """A source of float32 weights by canonical name, in memory."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.tensors = tensors

    def matrix(self, name: str, rows: slice | None = None) -> Tensor:
        return self.tensors[name] if rows is None else self.tensors[name][rows]

    vector = matrix


class Unrounded:
    """What is trained of a matrix that is pruned but not rounded, with the face of straight_through.Latent."""

    grid: tuple[Tensor, ...] = ()

    def __init__(self, weight: Tensor, kept: Tensor | None) -> None:
        self.weight = weight.clone().requires_grad_()
        self.mask = kept

    def values(self) -> Tensor:
        return self.weight if self.mask is None else self.weight * self.mask


def heard(hessians: Hessians) -> Record:
    """hessians.add, in float32 where the model's products are bfloat16."""

    def add(role: str, entering: Tensor) -> None:
        with torch.autocast("cpu", enabled=False):
            hessians.add(role, entering.float())

    return add


def latent(config: ExportConfig, name: str, weight: Tensor, read: Read) -> Any:
    """Where the training of a matrix starts: its updated form."""
    if config.bits is not None:
        return Latent(rounded(config, name, weight, read), weight)
    if not config.prunes(name):
        return Unrounded(weight, None)
    method, n, m = config.sparsity.method, config.sparsity.n, config.sparsity.m
    kept = None if method == SWEPT else mask(method, name, weight, read.stats, n, m)
    values = updated(weight, read.hessians.feedback(role(name), GROUP), GROUP, n, m, kept)
    return Unrounded(values, values != 0 if kept is None else kept)


def recovered(
    arch: Architecture,
    tensors: dict[str, Tensor],
    made: dict[str, Tensor],
    texts: tuple[Tensor, Tensor],
    config: ExportConfig,
    steps: int,
    progress: Callable[[int, int], None],
) -> Weights:
    """The recovered model. made: `tensors` with the embedding as the recipe leaves it; texts: to calibrate blocks on,
    and for the whole model's `steps`, if any."""
    text, lessons = texts
    source, latents = Weights(dict(made)), dict[str, Any]()
    x, goal = embed(arch, source, text), Goal(embed(arch, Weights(tensors), text), token_weights(text, arch.vocabulary))
    for layer in range(arch.layers):
        block, hessians = load_block(arch, source, layer), Hessians()
        read = Read(statistics(arch, layer, block, x, heard(hessians)), hessians)
        with torch.autocast("cpu", enabled=False):
            own = {part: latent(config, f"layers.{layer}.{part}", block[part], read) for part in MATRICES}
        goal.move_on(arch, layer, block)
        fixed: Block = {part: block[part] for part in arch.vectors}
        if config.trains_blocks:
            train_block(arch, layer, own, fixed, x, goal, config.seed)
        x = propagate(arch, layer, fixed | {part: found.values().detach() for part, found in own.items()}, x)
        latents |= {f"layers.{layer}.{part}": found for part, found in own.items()}
    if steps:
        student, teacher = Student(arch, latents, source), Weights(tensors)
        told, judges = set_apart(lessons)
        apart = divergence(student, teacher, judges)
        train(student, teacher, told, Plan(steps, float("inf"), config.distill, config.seed, pace(apart)), progress)
        after = divergence(student, teacher, judges)
        print(f"divergence {apart:.3f} nats a token after blocks, {after:.3f} after {steps} steps", file=sys.stderr)
    with torch.no_grad():
        source.tensors |= {name: found.values().clone() for name, found in latents.items()}
    return source
