"""The student of a whole-model training: its forward pass, and the gradients of what it is told."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from edgellm.export import distill
from edgellm.export.architectures import MATRICES, Architecture
from edgellm.export.checkpoint import Source
from edgellm.export.decoder import Block, block_forward, final_norm, load_block
from edgellm.export.straight_through import Latent
from edgellm.export.vocabulary import ROWS_AT_ONCE, embed, head_logits


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


@torch.no_grad()
def divergence(student: Student, teacher: Source, ids: Tensor) -> float:
    """KL(teacher || student) in nats a token of text int64 [N, T]: whether a training helped."""
    arch, total = student.arch, 0.0
    blocks = [student.block(layer) for layer in range(arch.layers)]
    dense = [load_block(arch, teacher, layer) for layer in range(arch.layers)]
    for row in torch.split(ids, 1):
        own = final_norm(arch, student.rest, student.states(blocks, row)[-1])[0]
        wanted = final_norm(arch, teacher, Student(arch, {}, teacher).states(dense, row)[-1])[0]
        for a, b in zip(torch.split(own, ROWS_AT_ONCE), torch.split(wanted, ROWS_AT_ONCE), strict=True):
            logits, labels = head_logits(arch, student.rest, a), head_logits(arch, teacher, b)
            total += float(distill.soft_labels(logits, labels, 1.0))
    return total / ids.numel()
