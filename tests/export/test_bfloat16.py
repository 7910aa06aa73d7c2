"""Products of a training in bfloat16: nearly the same gradients, everything that is kept in float32."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from edgellm.export import bfloat16
from edgellm.export.architectures import MATRICES
from edgellm.export.block_recovery import Goal, train_block, trained
from edgellm.export.calibrate import statistics
from edgellm.export.checkpoint import open_checkpoint
from edgellm.export.compress import Read, rounded
from edgellm.export.config import ExportConfig
from edgellm.export.decoder import load_block
from edgellm.export.end_to_end import Plan, train
from edgellm.export.hessian import Hessians
from edgellm.export.level import Sparsity
from edgellm.export.recovery_cost import planned_steps
from edgellm.export.self_written import Held
from edgellm.export.straight_through import Latent
from edgellm.export.student import Student, divergence


class Pruned:
    """The tiny model with DaSS 2:4 and 8 bits, on some text: what a training starts from, new at every `latents`."""

    def __init__(self, model: Path) -> None:
        checkpoint = open_checkpoint(model)
        self.arch, self.teacher = checkpoint.architecture, Held(checkpoint.architecture, checkpoint, torch.float32)
        draws = torch.rand(64, 64, generator=torch.Generator().manual_seed(0))
        self.ids = (320 * draws.square()).long()
        self.config = ExportConfig(model, model, Sparsity.parse("dass:2:4"), bits=8, recover="none")
        self.goal = Goal.of(self.arch, checkpoint, self.ids)
        self.entering = self.goal.states.clone()
        self.blocks = [load_block(self.arch, checkpoint, layer) for layer in range(self.arch.layers)]
        self.goal.move_on(self.arch, 0, self.blocks[0])
        hessians = Hessians()
        self.read = Read(statistics(self.arch, 0, self.blocks[0], self.entering.clone(), hessians.add), hessians)

    def latents(self) -> dict[str, Latent]:
        """Of the first block, by role."""
        block = self.blocks[0]
        return {
            role: Latent(rounded(self.config, f"layers.0.{role}", block[role], self.read), block[role])
            for role in MATRICES
        }


@pytest.fixture(scope="module")
def pruned(tiny_model: Path) -> Pruned:
    return Pruned(tiny_model)


@pytest.fixture
def switched_on(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """As on a processor with such instructions; others compute the same, slowly."""
    monkeypatch.setattr(bfloat16, "faster", lambda: True)
    return monkeypatch


def moved(before: list[Tensor], latents: dict[str, Latent]) -> Tensor:
    return torch.cat([(new.detach() - old).flatten() for old, new in zip(before, trained(latents), strict=True)])


def test_a_block_learns_the_same(pruned: Pruned, switched_on: pytest.MonkeyPatch) -> None:
    steps, left = {}, {}
    for fast in (True, False):
        switched_on.setattr(bfloat16, "faster", lambda fast=fast: fast)
        latents = pruned.latents()
        start = [tensor.detach().clone() for tensor in trained(latents)]
        fixed = {role: pruned.blocks[0][role] for role in pruned.arch.vectors}
        before, left[fast] = train_block(pruned.arch, 0, latents, fixed, pruned.entering, pruned.goal, seed=0)
        assert left[fast] < before
        assert {tensor.dtype for tensor in trained(latents)} == {torch.float32}
        steps[fast] = moved(start, latents)
    assert not torch.equal(steps[True], steps[False])  # else it was not switched on
    assert float(functional.cosine_similarity(steps[True], steps[False], dim=0)) > 0.9
    assert left[True] == pytest.approx(left[False], rel=0.05)


def test_the_whole_comes_nearer(pruned: Pruned, switched_on: pytest.MonkeyPatch) -> None:
    seen: list[torch.dtype] = []
    linear = functional.linear
    switched_on.setattr(functional, "linear", lambda *args: seen.append((out := linear(*args)).dtype) or out)
    latents = {f"layers.0.{role}": latent for role, latent in pruned.latents().items()}
    student = Student(pruned.arch, latents, pruned.teacher)
    before = divergence(student, pruned.teacher, pruned.ids[:8])
    assert torch.bfloat16 not in seen  # what judges is exact
    train(student, pruned.teacher, pruned.ids, Plan(8, float("inf"), ("coarse", "fine"), 0, 1.0))
    assert torch.bfloat16 in seen
    assert divergence(student, pruned.teacher, pruned.ids[:8]) < before


def test_minutes_are_more_steps(pruned: Pruned, switched_on: pytest.MonkeyPatch) -> None:
    config = ExportConfig(Path(), Path(), recover="distill", bits=4, recover_minutes=1, calibration=Path("text"))
    switched_on.setattr("edgellm.export.recovery_cost.MOST_EPOCHS", 10**9)
    fast = planned_steps(pruned.arch, config, 64, 64, 2)
    switched_on.setattr(bfloat16, "faster", lambda: False)
    assert fast > planned_steps(pruned.arch, config, 64, 64, 2)


def test_a_torch_that_cannot_tell_means_no(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert not bfloat16.faster()
    with bfloat16.products():
        assert not torch.is_autocast_enabled("cpu")
