"""Refining never loses, ends where no single code can be better, and finds a grid that is there."""

from __future__ import annotations

import pytest
import torch
from tests.export.test_sparsegpt import case, loss

from edgellm.export import prune, refine, sparsegpt
from edgellm.export.refine import refine as refined
from edgellm.export.sparsegpt import feedback
from edgellm.kernels.layout import Format, dequantize


def damped(w: torch.Tensor, values: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
    """The error that is refined, float64 [out]."""
    off = (w - values).double()
    return ((off @ h.double()) * off).sum(1)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("zero", ["symmetric", "min"])
@pytest.mark.parametrize("nm", [(1, 1, "in"), (2, 4, "in"), (4, 8, "out")])
def test_it_never_loses(bits: int, zero: str, nm: tuple[int, int, str]) -> None:
    w, x = case()
    found, f, mask = feedback(x.T @ x, 64), Format(32, 192, bits, 64, zero, *nm), None
    if nm[0] < nm[1]:
        stats = {"q": x.square().sum(0).double(), "down": torch.rand(32).double()}
        mask = prune.mask("wanda" if nm[2] == "in" else "dass", "q" if nm[2] == "in" else "gate", w, stats, *nm[:2])
    swept = sparsegpt.sparsegpt(w, found, f, mask, refined=False)
    after = sparsegpt.sparsegpt(w, found, f, mask)
    before, now = (damped(w, torch.from_numpy(dequantize(q)), found.hessian) for q in (swept, after))
    assert (now <= before * (1 + 1e-5)).all()
    assert now.sum() < 0.99 * before.sum()
    assert loss(w, after, x) < loss(w, swept, x)
    if mask is not None:
        assert (dequantize(after)[~mask.numpy()] == 0).all()


@pytest.mark.parametrize("zero", ["symmetric", "min"])
def test_in_the_end_no_single_code_could_be_better(zero: str, monkeypatch: pytest.MonkeyPatch) -> None:
    w, x = case(rows=8)
    monkeypatch.setattr(refine, "ROUNDS", 40)
    found = feedback(x.T @ x, 64)
    q = sparsegpt.sparsegpt(w, found, Format(8, 192, 4, 64, zero))
    values, scale = torch.from_numpy(dequantize(q)), torch.from_numpy(q.scale).float().repeat_interleave(64, 1)
    least = damped(w, values, found.hessian)
    for j in range(192):
        for step, possible in ((1, q.code[:, j] < 15), (-1, q.code[:, j] > 0)):
            other = values.clone()
            other[:, j] += step * scale[:, j]
            assert (damped(w, other, found.hessian)[possible] >= least[possible] * (1 - 1e-5)).all()


@pytest.mark.parametrize("zero", ["symmetric", "min"])
def test_a_grid_that_is_there_is_found(zero: str) -> None:
    """Weights that are codes of some grid, given with the codes of a worse one: nothing is lost in the end."""
    _, x = case()
    h = feedback(x.T @ x, 64).hessian
    generator = torch.Generator().manual_seed(1)
    code = torch.randint(0, 16, (16, 192), generator=generator).float()
    scale = (0.05 + torch.rand(16, 3, generator=generator)).half().float()
    minimum = -8 * scale if zero == "symmetric" else torch.randn(16, 3, generator=generator).half().float()
    w = code * scale.repeat_interleave(64, 1) + minimum.repeat_interleave(64, 1)
    worse = (1.002 * scale, -8 * 1.002 * scale if zero == "symmetric" else minimum + 0.1 * scale)
    codes, grid = refined(w, h, code.to(torch.uint8), worse, 4, zero)
    assert torch.equal(codes.float(), code)
    assert torch.allclose(grid[0], scale, rtol=1e-2)
    found = codes * grid[0].repeat_interleave(64, 1) + grid[1].repeat_interleave(64, 1)
    assert damped(w, found, h).sum() < 1e-5 * damped(w, 0 * w, h).sum()
