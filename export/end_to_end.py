"""End to end: the whole compressed model is trained to say what the dense one says, within a budget of time.

Both models are in memory in float32, what is trained of the student five times (latents, values, gradients, Adam's two
moments). Steps are planned from the budget and this machine's cores, so that a seed gives the same bytes again; where
the machine is slower than planned the clock ends the training, the rate having fallen by then as it would have.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from edgellm.export import bfloat16, distill
from edgellm.export.block_recovery import TOKENS_A_STEP, adam, set_rate
from edgellm.export.checkpoint import Source
from edgellm.export.decoder import Block
from edgellm.export.student import Student, backward
from edgellm.export.training_state import restore, save

WARM_UP = 0.05  # share of the budget in which the rate rises
DECAY, LEARNT = 0.99, 0.2  # of the student's average, and the share of the budget after which it teaches
PACE = 2.0  # what a nat of divergence is of the rates that blocks are trained with; all of them at most
SAVE_EVERY = 120.0  # seconds


@dataclass(frozen=True)
class Plan:
    """steps: what is trained at most; seconds: when the clock ends it. granularities: of distill.GRANULARITIES. pace:
    of the rates that blocks are trained with."""

    steps: int
    seconds: float
    granularities: tuple[str, ...]
    seed: int
    pace: float


def train(
    student: Student,
    teacher: Source,
    ids: Tensor,
    plan: Plan,
    progress: Callable[[int, int], None] = lambda done, total: None,
    state: Path | None = None,
) -> int:
    """Train the student's latents in place on text int64 [N, T]; returns the steps taken.

    teacher: the dense model, read at every step: it should be in memory. progress: called with steps (done, planned).
    state: a file to keep what was learned in, every two minutes; a killed training goes on from it, to the same bytes.
    """
    arch, latents = student.arch, student.latents
    optimizer = adam(latents)
    weights = distill.token_weights(ids, arch.vocabulary)
    average: list[Block] = []
    done, before = (0, 0.0) if state is None else restore(state, latents, optimizer, average)
    started = saved = time.monotonic()
    while done < plan.steps:
        spent = before + time.monotonic() - started
        share = max(done / plan.steps, spent / plan.seconds)
        if share >= 1:
            break
        progress(done, plan.steps)
        set_rate(optimizer, plan.pace * min(1.0, (share + 1 / plan.steps) / WARM_UP) * (1 - share))
        rows = batch(ids, done, plan.seed)
        blocks = [student.block(layer) for layer in range(arch.layers)]
        own = average if share >= LEARNT else []
        optimizer.zero_grad()
        with bfloat16.products():
            backward(student, blocks, teacher, ids[rows], weights[rows], plan.granularities, own)
        optimizer.step()
        if "self" in plan.granularities:
            _follow(average, blocks, done)
        done += 1
        if state is not None and time.monotonic() - saved > SAVE_EVERY:
            save(state, latents, optimizer, average, done, before + time.monotonic() - started)
            saved = time.monotonic()
    progress(plan.steps, plan.steps)
    return done


def pace(apart: float) -> float:
    """The pace for a student that is `apart` (divergence, nats a token) from its teacher: the nearer, the smaller.

    Adam's steps are as large whether there is much to learn or little, and where it is little they only undo what
    blocks were fitted to: SmolLM2 at 4 bits (0.07 nats of log-perplexity behind) got worse at a pace of 1, better at
    0.1; with half of its weights pruned (0.85) it got much better at 1, and Qwen2.5-Coder-0.5B (0.36) at 0.72. That
    divergence tells these apart is a guess, and so is the line through them.
    """
    return min(1.0, PACE * apart)


def batch(ids: Tensor, step: int, seed: int) -> Tensor:
    """Which sequences of int64 [N, T] a step reads: every epoch in an order of its own."""
    size = max(1, TOKENS_A_STEP // ids.shape[1])
    epoch, part = divmod(step, -(-len(ids) // size))
    order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(seed * 1000 + epoch))
    return order[part * size : (part + 1) * size]


def _follow(average: list[Block], blocks: list[Block], step: int) -> None:
    """Move the average towards the blocks that this step computed with, the faster the younger it is."""
    if not average:
        average += [{role: tensor.detach().clone() for role, tensor in block.items()} for block in blocks]
    keep = min(DECAY, (1 + step) / (10 + step))
    for old, new in zip(average, blocks, strict=True):
        for role, tensor in new.items():
            old[role].lerp_(tensor.detach(), 1 - keep)
