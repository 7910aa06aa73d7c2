"""The sweep against the papers' own updates, written as slowly as they can be, and against rounding alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgellm.export import hessian, prune
from edgellm.export.config import ExportConfig, Sparsity
from edgellm.export.hessian import Hessians
from edgellm.export.quantize import round_searched
from edgellm.export.sparsegpt import DAMPING, feedback, simulated, sparsegpt, updated
from edgellm.kernels.layout import Format, Quantized, dequantize
from edgellm.runtime.errors import EdgellmError, UsageError


def case(rows: int = 32, inputs: int = 192) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight, and correlated inputs of different sizes."""
    generator = torch.Generator().manual_seed(0)
    mixing = 2 * torch.randn(inputs, inputs, generator=generator) / inputs**0.5 + torch.eye(inputs)
    x = torch.randn(1000, inputs, generator=generator) @ mixing * (0.5 + torch.rand(inputs, generator=generator))
    return torch.randn(rows, inputs, generator=generator), x


def surgeon(w: torch.Tensor, h: torch.Tensor, order: torch.Tensor, q: Quantized) -> np.ndarray:
    """Optimal brain surgery: fix one input, spread its error over those left by the inverse of what is left of H."""
    f = q.format
    scale = torch.from_numpy(q.scale).double().repeat_interleave(f.group, 1)
    lowest = torch.from_numpy(q.minimum).double().repeat_interleave(f.group, 1) if q.minimum is not None else -8 * scale
    w, h = w.double().clone(), h.double().clone()
    h.diagonal().add_(DAMPING * h.diagonal().mean())
    left = order.tolist()
    while left:
        at = left[0]
        inverse = torch.linalg.inv(h[left][:, left])
        fixed = ((w[:, at] - lowest[:, at]) / scale[:, at]).round().clamp(0, 15) * scale[:, at] + lowest[:, at]
        if q.mask is not None:
            fixed = torch.where(torch.from_numpy(q.mask)[:, at], fixed, 0)
        error = (w[:, at] - fixed) / inverse[0, 0]
        w[:, at] = fixed
        w[:, left[1:]] -= error[:, None] * inverse[0, 1:]
        left = left[1:]
    return w.numpy()


def loss(w: torch.Tensor, q: Quantized | torch.Tensor, x: torch.Tensor) -> float:
    values = torch.from_numpy(dequantize(q)) if isinstance(q, Quantized) else q
    return float((x @ (w - values).T).square().sum())


@pytest.mark.parametrize("zero", ["symmetric", "min"])
@pytest.mark.parametrize("nm", [(1, 1, "in"), (2, 4, "in"), (2, 4, "out")])
def test_the_sweep_is_optimal_brain_surgery(zero: str, nm: tuple[int, int, str]) -> None:
    w, x = case()
    h = x.T @ x
    mask = None
    if nm[0] < nm[1]:
        stats = {"q": h.diagonal().double(), "down": torch.rand(32).double()}
        name, method = ("q", "wanda") if nm[2] == "in" else ("gate", "dass")
        mask = prune.mask(method, name, w, stats, 2, 4)
    found = feedback(h, 64)
    q = sparsegpt(w, found, Format(32, 192, 4, 64, zero, *nm), mask, refined=False)
    expected = surgeon(w, h, found.order, q)
    # A weight in the middle between two codes may fall to either side, and those after it follow.
    assert np.isclose(dequantize(q), expected, atol=1e-3).mean() > 0.995
    if mask is not None:
        assert (dequantize(q)[~mask.numpy()] == 0).all()


@pytest.mark.parametrize(("bits", "group"), [(4, 32), (4, 64), (8, 64)])
@pytest.mark.parametrize("zero", ["symmetric", "min"])
def test_correcting_loses_less_than_rounding_alone(bits: int, group: int, zero: str) -> None:
    w, x = case()
    h, f = x.T @ x, Format(32, 192, bits, group, zero)
    assert loss(w, sparsegpt(w, feedback(h, group), f), x) < 0.7 * loss(w, round_searched(w, f, h.diagonal()), x)


@pytest.mark.parametrize(("n", "m"), [(2, 4), (4, 8), (1, 4)])
def test_its_own_mask_keeps_n_of_m_and_loses_less_than_wandas(n: int, m: int) -> None:
    w, x = case()
    h, f = x.T @ x, Format(32, 192, 4, 64, "symmetric", n, m)
    found = feedback(h, 64)
    own = sparsegpt(w, found, f)
    assert own.mask is not None
    assert (own.mask.reshape(32, -1, m).sum(-1) == n).all()
    wanda = prune.mask("wanda", "q", w, {"q": h.diagonal().double()}, n, m)
    corrected, alone = sparsegpt(w, found, f, wanda), round_searched(w, f, h.diagonal(), wanda)
    assert loss(w, own, x) < loss(w, corrected, x) < 0.95 * loss(w, alone, x)


def test_without_rounding_only_what_was_dropped_is_made_good() -> None:
    w, x = case()
    found = feedback(x.T @ x, 64)
    assert torch.allclose(updated(w, found, 64, 1, 1), w)
    mask = prune.mask("magnitude", "q", w, None, 2, 4)
    values = updated(w, found, 64, 2, 4, mask)
    assert (values[~mask] == 0).all()
    assert loss(w, values, x) < 0.85 * loss(w, w * mask, x)


def test_inputs_that_never_speak_harm_nothing() -> None:
    w, x = case()
    x[:, 64:100] = 0
    for inputs in (x, torch.zeros_like(x)):
        q = sparsegpt(w, feedback(inputs.T @ inputs, 64), Format(32, 192, 4, 64, "min"))
        assert np.abs(dequantize(q) - w.numpy()).max() < 2


def test_a_weight_that_is_not_finite_is_refused() -> None:
    w, x = case()
    for bad in (float("nan"), float("inf"), 1e9):
        w[5, 70] = bad
        with pytest.raises(EdgellmError, match="NaN, infinite, or too large"):
            sparsegpt(w, feedback(x.T @ x, 64), Format(32, 192, 4, 64))


def test_hessians_are_sums_over_tokens_and_shared() -> None:
    _, x = case()
    seen = Hessians()
    seen.add("q", x[:600].view(2, 300, -1))
    seen.add("q", x[600:].view(1, 400, -1))
    expected = x.double().T @ x.double()
    assert torch.allclose(seen.importance("v").double(), expected.diagonal(), rtol=1e-4)
    assert seen.feedback("k", 64) is seen.feedback("q", 64)
    assert seen.feedback("q", 32).order.tolist() != seen.feedback("q", 64).order.tolist()


def test_hessians_of_many_inputs_are_whole_though_half_is_multiplied(monkeypatch) -> None:
    monkeypatch.setattr(hessian, "PANEL", 80)
    _, x = case()
    seen = Hessians()
    seen.add("down", x[:600])
    seen.add("down", x[600:])
    expected = (x.double().T @ x.double()).float()
    damping = hessian.feedback(expected, 64).hessian - expected
    torch.testing.assert_close(seen.feedback("down", 64).hessian - damping, expected, rtol=1e-4, atol=1e-2)


def test_diagonals_alone_are_those_of_the_hessians() -> None:
    _, x = case()
    seen, alone = Hessians(), Hessians(whole=False)
    for part in (x[:600], x[600:]):
        seen.add("gate", part)
        alone.add("gate", part)
    torch.testing.assert_close(alone.importance("up"), seen.importance("up"))


def test_one_loud_token_is_not_all_that_counts() -> None:
    _, x = case()
    quiet, loud = Hessians(), Hessians()
    quiet.add("down", x)
    x[17] *= 1000
    loud.add("down", x)
    assert loud.importance("down").sum() < (1 + 2 * hessian.LOUD / len(x)) * quiet.importance("down").sum()


def test_a_mask_chosen_by_the_sweep_needs_the_sweep(tmp_path) -> None:
    own = Sparsity.parse("sparsegpt:2:4")
    assert ExportConfig(tmp_path, tmp_path, own).calibrates
    with pytest.raises(UsageError, match="updates none"):
        ExportConfig(tmp_path, tmp_path, own, recover="none")


def test_a_width_that_no_tile_holds_is_simulated_by_the_same_sweep() -> None:
    w, x = case()
    found = feedback(x.T @ x, 64)
    packed = torch.from_numpy(dequantize(sparsegpt(w, found, Format(32, 192, 4, 64, "min"))))
    assert torch.allclose(simulated(w, found, 64, 4, "min"), packed, atol=1e-6)
    for bits, zero in ((3, "min"), (3, "symmetric"), (2, "min")):
        values = simulated(w, found, 64, bits, zero)
        assert max(len(group.unique()) for group in values.view(-1, 64)) == 2**bits
        assert loss(w, packed, x) < loss(w, values, x)
