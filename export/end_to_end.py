"""End to end: the whole compressed model is trained to say what the dense one says, within a budget of time.

Both models are in memory in float32, what is trained of the student five times (latents, values, gradients, Adam's two
moments). Steps are planned from the budget and this machine's cores, so that a seed gives the same bytes again; where
the machine is slower than planned the clock ends the training, the rate having fallen by then as it would have.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from edgellm.export import distill
from edgellm.export.architectures import MATRICES, Architecture
from edgellm.export.block_recovery import TOKENS_A_STEP, adam, set_rate
from edgellm.export.checkpoint import Source
from edgellm.export.decoder import Block, block_forward, final_norm, load_block
from edgellm.export.straight_through import Latent
from edgellm.export.training_state import restore, save
from edgellm.export.vocabulary import ROWS_AT_ONCE, embed, head_logits

WARM_UP = 0.05  # share of the budget in which the rate rises
DECAY, LEARNT = 0.99, 0.2  # of the student's average, and the share of the budget after which it teaches
SAVE_EVERY = 120.0  # seconds


@dataclass(frozen=True)
class Plan:
    """steps: what is trained at most; seconds: when the clock ends it. granularities: of distill.GRANULARITIES."""

    steps: int
    seconds: float
    granularities: tuple[str, ...]
    seed: int


class Student:
    """A model whose blocks carry gradients: latents by canonical name, everything else as `rest` has it."""

    def __init__(self, arch: Architecture, latents: Mapping[str, Latent], rest: Source) -> None:
        self.arch = arch
        self.latents = latents
        self.rest = rest

    def block(self, layer: int) -> Block:
        """One layer's tensors by role, the trained ones as the bundle would hold them."""
        found: Block = {}
        for role in (*MATRICES, *self.arch.vectors):
            name = f"layers.{layer}.{role}"
            if name in self.latents:
                found[role] = self.latents[name].values()
            else:
                found[role] = self.rest.matrix(name) if role in MATRICES else self.rest.vector(name)
        return found

    def states(self, blocks: list[Block], ids: Tensor) -> list[Tensor]:
        """What enters the first block and leaves each: float32 [N, T, hidden]."""
        states = [embed(self.arch, self.rest, ids)]
        for layer, block in enumerate(blocks):
            states.append(block_forward(self.arch, layer, block, states[-1]))
        return states


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
        set_rate(optimizer, min(1.0, (share + 1 / plan.steps) / WARM_UP) * (1 - share))
        rows = batch(ids, done, plan.seed)
        blocks = [student.block(layer) for layer in range(arch.layers)]
        own = average if share >= LEARNT else []
        optimizer.zero_grad()
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


def batch(ids: Tensor, step: int, seed: int) -> Tensor:
    """Which sequences of int64 [N, T] a step reads: every epoch in an order of its own."""
    size = max(1, TOKENS_A_STEP // ids.shape[1])
    epoch, part = divmod(step, -(-len(ids) // size))
    order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(seed * 1000 + epoch))
    return order[part * size : (part + 1) * size]


def backward(
    student: Student, blocks: list[Block], teacher: Source, ids: Tensor, weights: Tensor,
    granularities: tuple[str, ...], average: list[Block],
) -> dict[str, float]:  # fmt: skip
    """Gradients of the losses of these granularities for text int64 [B, T]; returns the losses by name.

    average: the blocks of the student's own average, or [] while it does not teach yet.
    """
    arch, rest = student.arch, student.rest
    with torch.no_grad():
        wanted = Student(arch, {}, teacher).states([load_block(arch, teacher, i) for i in range(arch.layers)], ids)
        normed_wanted = final_norm(arch, teacher, wanted[-1])
        normed_own = final_norm(arch, rest, student.states(average, ids)[-1]) if average else None
    states = student.states(blocks, ids)
    normed = final_norm(arch, rest, states[-1])
    losses: dict[str, Tensor] = {}
    if "fine" in granularities:
        pairs = zip(states[1:], wanted[1:], strict=True)
        losses["fine"] = distill.HIDDEN * torch.stack([distill.hidden(s, t, weights) for s, t in pairs]).mean()
    if "coarse" in granularities:
        losses["representation"] = distill.REPRESENTATION * distill.representation(normed, normed_wanted)
    found = {name: float(loss.detach()) for name, loss in losses.items()}
    # Logits a few rows at a time: their gradients go into that of the normed states, and no more is kept of them.
    leaf = normed.detach().requires_grad_()
    flat, count = leaf.view(-1, arch.hidden), ids.numel()
    for start in range(0, count, ROWS_AT_ONCE):
        part = slice(start, start + ROWS_AT_ONCE)
        logits = head_logits(arch, rest, flat[part]) if "coarse" in granularities or average else None
        told = {"soft labels": (teacher, normed_wanted, 1.0)} if "coarse" in granularities else {}
        if normed_own is not None:
            told["self"] = (rest, normed_own, distill.SELF)
        for name, (source, by, weight) in told.items():
            with torch.no_grad():
                labels = head_logits(arch, source, by.view(-1, arch.hidden)[part])
            assert logits is not None
            loss = weight * distill.soft_labels(logits, labels) / count
            torch.autograd.backward(loss, retain_graph=name != list(told)[-1])
            found[name] = found.get(name, 0.0) + float(loss.detach())
    ends = [*losses.values()] + ([normed] if leaf.grad is not None else [])
    torch.autograd.backward(ends, [None] * len(losses) + ([leaf.grad] if leaf.grad is not None else []))
    return found


def _follow(average: list[Block], blocks: list[Block], step: int) -> None:
    """Move the average towards the blocks that this step computed with, the faster the younger it is."""
    if not average:
        average += [{role: tensor.detach().clone() for role, tensor in block.items()} for block in blocks]
    keep = min(DECAY, (1 + step) / (10 + step))
    for old, new in zip(average, blocks, strict=True):
        for role, tensor in new.items():
            old[role].lerp_(tensor.detach(), 1 - keep)
