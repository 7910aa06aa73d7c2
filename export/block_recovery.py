"""Block by block: a compressed block is trained to give what the dense model has there (the fine granularity, locally).

The student's states enter, as the blocks before it left them, and the dense model's own states are the target: a block
makes good what those before it lost too (QDrop, arXiv 2203.05740, and BRECQ, arXiv 2102.05426, train so). Memory is
that of one block, its gradients and Adam's moments, beside the states of the text in both models.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edgellm.export import bfloat16
from edgellm.export.architectures import Architecture
from edgellm.export.checkpoint import Checkpoint
from edgellm.export.config import ExportConfig
from edgellm.export.decoder import TOKENS_AT_ONCE, Block, block_forward, load_block, propagate
from edgellm.export.distill import hidden, token_weights
from edgellm.export.latents import save
from edgellm.export.straight_through import Latent
from edgellm.export.vocabulary import embed
from edgellm.kernels.layout import Quantized

EPOCHS = 1  # over the text
BATCHES_JUDGED = 4  # of TOKENS_AT_ONCE: whether a block has come nearer shows on a part of the text
TOKENS_A_STEP = 512
# Of Adam at the start, falling to none: of weights by their matrix's root mean square, and of scales by their own size.
RATE, GRID_RATE = 3e-3, 1e-3
BETAS = (0.9, 0.95)


@dataclass
class Goal:
    """Where the dense model is: its states of the text before a layer, float32 [N, T, hidden], and the positions'
    weights [N, T] (distill.token_weights). keep: a folder for the trained latents (latents.py), where the whole is
    trained afterwards."""

    states: Tensor
    weights: Tensor
    keep: Path | None = None

    @staticmethod
    def of(arch: Architecture, checkpoint: Checkpoint, ids: Tensor, keep: Path | None = None) -> Goal:
        """Before the first layer, for text int64 [N, T]."""
        return Goal(embed(arch, checkpoint, ids), token_weights(ids, arch.vocabulary), keep)

    def move_on(self, arch: Architecture, layer: int, dense: Block) -> None:
        """To behind this layer."""
        self.states = propagate(arch, layer, dense, self.states)


def recover_block(
    config: ExportConfig, checkpoint: Checkpoint, layer: int, found: dict[str, Quantized], x: Tensor, goal: Goal
) -> dict[str, Quantized]:
    """A layer's matrices by role, those that are not the file's own blocks trained; the goal moves on.

    x: float32 [N, T, hidden], the student's states entering the layer.
    """
    arch = checkpoint.architecture
    dense = load_block(arch, checkpoint, layer)
    goal.move_on(arch, layer, dense)
    fixed = {role: dense[role] for role in arch.vectors}
    latents: dict[str, Latent] = {}
    for role, q in found.items():
        if is_trained(config, checkpoint, f"layers.{layer}.{role}", q):
            latents[role] = Latent(q, dense[role])
        else:
            fixed[role] = dense[role]
    train_block(arch, layer, latents, fixed, x, goal, config.seed)
    if goal.keep is not None:
        save(goal.keep, layer, latents)
    return found | {role: latent.quantized() for role, latent in latents.items()}


def is_trained(config: ExportConfig, checkpoint: Checkpoint, name: str, q: Quantized) -> bool:
    """Whether a matrix was rounded here; one kept as the file stores it stays so."""
    kept = not config.prunes(name) and config.width(name) is None
    return not (kept and checkpoint.stored_format(name) == q.format)


def train_block(
    arch: Architecture, layer: int, latents: Mapping[str, Latent], fixed: Block, x: Tensor, goal: Goal, seed: int
) -> tuple[float, float]:
    """Train `latents`, by role, in place; returns the loss (distill.hidden) before and after.

    fixed: the block's other tensors. x: what enters; goal: what should leave. Where training did not help, the latents
    are as they were.
    """
    optimizer = adam(latents)
    before = _loss(arch, layer, latents, fixed, x, goal)
    start = [(tensor, tensor.detach().clone()) for tensor in trained(latents)]
    size = max(1, TOKENS_A_STEP // x.shape[1])
    generator = torch.Generator().manual_seed(seed * 1000 + layer)
    steps = EPOCHS * -(-len(x) // size)
    done = 0
    for _ in range(EPOCHS):
        for rows in torch.split(torch.randperm(len(x), generator=generator), size):
            set_rate(optimizer, 1 - done / steps)
            with bfloat16.products():
                out = block_forward(arch, layer, {**fixed, **_values(latents)}, x[rows])
            optimizer.zero_grad()
            torch.autograd.backward(hidden(out, goal.states[rows], goal.weights[rows]))
            optimizer.step()
            done += 1
    after = _loss(arch, layer, latents, fixed, x, goal)
    if not after < before:
        with torch.no_grad():
            for tensor, was in start:
                tensor.copy_(was)
        return before, before
    return before, after


def trained(latents: Mapping[str, Latent]) -> list[Tensor]:
    """Every tensor that is trained, in the order of the names given."""
    return [tensor for latent in latents.values() for tensor in (latent.weight, *latent.grid)]


def adam(latents: Mapping[str, Latent]) -> torch.optim.Adam:
    """With a rate for each matrix."""
    groups: list[dict[str, Any]] = []
    for latent in latents.values():
        size = float(latent.weight.detach().square().mean().sqrt())
        groups.append({"params": [latent.weight], "full": RATE * size})
        groups += [{"params": [tensor], "full": GRID_RATE} for tensor in latent.grid]
    return torch.optim.Adam(groups, betas=BETAS, fused=True)


def set_rate(optimizer: torch.optim.Adam, share: float) -> None:
    """This share of the rates that `adam` has at the start."""
    for group in optimizer.param_groups:
        group["lr"] = share * group["full"]


def _values(latents: Mapping[str, Latent]) -> Block:
    return {role: latent.values() for role, latent in latents.items()}


@torch.no_grad()
def _loss(arch: Architecture, layer: int, latents: Mapping[str, Latent], fixed: Block, x: Tensor, goal: Goal) -> float:
    block, total = {**fixed, **_values(latents)}, 0.0
    step = max(1, TOKENS_AT_ONCE // x.shape[1])
    count = min(len(x), step * BATCHES_JUDGED)
    for start in range(0, count, step):
        part = slice(start, min(start + step, count))
        out = block_forward(arch, layer, block, x[part])
        total += float(hidden(out, goal.states[part], goal.weights[part])) * len(out)
    return total / count
