"""Products of a training in bfloat16: nearly the same gradients, everything that is kept in float32."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.bundles import make_bundle
from tests.export.test_distill import student, text
from torch import Tensor
from torch.nn import functional

from edgellm.export import bfloat16
from edgellm.export.block_recovery import Goal, train_block, trained
from edgellm.export.checkpoint import open_checkpoint
from edgellm.export.config import ExportConfig
from edgellm.export.decoder import load_block
from edgellm.export.end_to_end import Plan, train
from edgellm.export.recovery_cost import planned_steps
from edgellm.export.straight_through import Latent
from edgellm.export.student import divergence


@pytest.fixture(scope="module")
def bundle(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model pruned and rounded: where a training starts."""
    out = tmp_path_factory.mktemp("pruned") / "bundle"
    make_bundle(tiny_model, out, "dass:2:4", bits=8, recover="none")
    return out


@pytest.fixture
def switched_on(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """As on a processor with such instructions; others compute the same, slowly."""
    monkeypatch.setattr(bfloat16, "faster", lambda: True)
    return monkeypatch


def moved(before: list[Tensor], latents: dict[str, Latent]) -> Tensor:
    return torch.cat([(new.detach() - old).flatten() for old, new in zip(before, trained(latents), strict=True)])


def test_a_block_learns_the_same(tiny_model: Path, bundle: Path, switched_on: pytest.MonkeyPatch) -> None:
    steps, left, ids = {}, {}, text(64)
    for fast in (True, False):
        switched_on.setattr(bfloat16, "faster", lambda fast=fast: fast)
        own, teacher = student(tiny_model, bundle)
        arch = own.arch
        goal = Goal.of(arch, open_checkpoint(tiny_model), ids)
        entering = goal.states.clone()
        goal.move_on(arch, 0, load_block(arch, teacher, 0))
        latents = {name.rpartition(".")[2]: found for name, found in own.latents.items() if ".0." in name}
        start = [tensor.detach().clone() for tensor in trained(latents)]
        fixed = {role: own.rest.vector(f"layers.0.{role}") for role in arch.vectors}
        before, left[fast] = train_block(arch, 0, latents, fixed, entering, goal, seed=0)
        assert left[fast] < before
        assert {tensor.dtype for tensor in trained(latents)} == {torch.float32}
        steps[fast] = moved(start, latents)
    assert not torch.equal(steps[True], steps[False])  # else it was not switched on
    assert float(functional.cosine_similarity(steps[True], steps[False], dim=0)) > 0.9
    assert left[True] == pytest.approx(left[False], rel=0.05)


def test_the_whole_comes_nearer(tiny_model: Path, bundle: Path, switched_on: pytest.MonkeyPatch) -> None:
    seen: list[torch.dtype] = []
    linear = functional.linear
    switched_on.setattr(functional, "linear", lambda *args: seen.append((out := linear(*args)).dtype) or out)
    own, teacher = student(tiny_model, bundle)
    before = divergence(own, teacher, text(8, seed=1))
    assert torch.bfloat16 not in seen  # what judges is exact
    train(own, teacher, text(64), Plan(8, float("inf"), ("coarse", "fine"), 0, 1.0))
    assert torch.bfloat16 in seen
    assert divergence(own, teacher, text(8, seed=1)) < before


def test_minutes_are_more_steps(tiny_model: Path, switched_on: pytest.MonkeyPatch) -> None:
    arch = open_checkpoint(tiny_model).architecture
    config = ExportConfig(Path(), Path(), recover="distill", bits=4, recover_minutes=1, calibration=Path("text"))
    switched_on.setattr("edgellm.export.recovery_cost.MOST_EPOCHS", 10**9)
    fast = planned_steps(arch, config, 64, 64, 2)
    switched_on.setattr(bfloat16, "faster", lambda: False)
    assert fast > planned_steps(arch, config, 64, 64, 2)


def test_a_torch_that_cannot_tell_means_no(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert not bfloat16.faster()
    with bfloat16.products():
        assert not torch.is_autocast_enabled("cpu")
