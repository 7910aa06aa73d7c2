"""Training through the quantizer: what is trained is what the bundle holds, with straight-through gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from edgellm.export import prune
from edgellm.export.pack import pack
from edgellm.export.quantize import round_searched
from edgellm.export.straight_through import Latent
from edgellm.kernels.layout import Format, Quantized, dequantize, unpack

FORMATS = [
    Format(32, 128, 4, 64, "min"),
    Format(32, 128, 4, 64, "symmetric", 2, 4, "in"),
    Format(32, 128, 4, 64, "symmetric", 4, 8, "out"),
    Format(32, 128, 8, 64),
]


def rounded(f: Format, seed: int = 0) -> tuple[torch.Tensor, Quantized]:
    weight = torch.randn(f.n_out, f.k_in, generator=torch.Generator().manual_seed(seed))
    method, name = ("dass", "gate") if f.axis == "out" else ("magnitude", "q")
    stats = {"down": torch.ones(f.n_out).double()}
    mask = prune.mask(method, name, weight, stats, f.n, f.m) if f.sparse else None
    return weight, round_searched(weight, f, None, mask)


def trained(f: Format, steps: int = 20) -> tuple[Latent, Quantized, list[float]]:
    """A latent moved towards other weights, with the distance at every step."""
    weight, q = rounded(f)
    wanted, latent, losses = rounded(f, 1)[0], Latent(q, weight), []
    optimizer = torch.optim.Adam([latent.weight, *latent.grid], lr=0.02)
    for _ in range(steps):
        loss = (latent.values() - wanted * (1 if latent.mask is None else latent.mask)).square().mean()
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        losses.append(float(loss.detach()))
    return latent, q, losses


@pytest.mark.parametrize("f", FORMATS, ids=str)
def test_what_was_trained_is_what_the_bundle_holds(f: Format) -> None:
    latent, before, losses = trained(f)
    assert losses[-1] < 0.7 * losses[0]
    after = latent.quantized()
    assert torch.equal(torch.from_numpy(dequantize(unpack(pack(after), f))), latent.values().detach())
    assert (after.code != before.code).any()
    assert (after.scale != before.scale).any()
    if before.mask is not None:
        assert (after.mask == before.mask).all()
        assert (latent.values().detach()[~latent.mask] == 0).all()


@pytest.mark.parametrize("f", FORMATS, ids=str)
def test_untouched_it_is_the_matrix_it_came_from(f: Format) -> None:
    weight, q = rounded(f)
    for near in (weight, torch.randn_like(weight), torch.zeros_like(weight)):
        latent = Latent(q, near)
        assert torch.equal(latent.values().detach(), torch.from_numpy(dequantize(q)))
        assert pack(latent.quantized()).tobytes() == pack(q).tobytes()
    kept = torch.ones_like(weight, dtype=torch.bool) if q.mask is None else torch.from_numpy(q.mask)
    own = Latent(q, weight)
    off = (own.values() - weight).abs()[kept].mean()
    assert (own.weight - weight).abs()[kept].mean() < 0.2 * off  # rounding to nearest: the weights themselves


@pytest.mark.parametrize("zero", ["min", "symmetric"])
def test_gradients_are_those_of_rounding_left_out(zero: str) -> None:
    """Beside autograd through x + (round(x) - x).detach(), the straight-through estimator as it is written down."""
    f = Format(16, 64, 4, 64, zero)
    weight, q = rounded(f)
    latent = Latent(q, weight)
    with torch.no_grad():
        latent.weight += 0.3 * torch.randn(16, 64, generator=torch.Generator().manual_seed(2))  # some beyond the grid
    factor = torch.randn(16, 64, generator=torch.Generator().manual_seed(3))
    own = torch.autograd.grad((latent.values() * factor).sum(), [latent.weight, *latent.grid])

    def plain(w: torch.Tensor, stretch: torch.Tensor, shift: Any = None) -> torch.Tensor:
        first = torch.from_numpy(q.scale).float()
        scale = first * (1 + stretch)
        low = -8 * scale if shift is None else torch.from_numpy(q.minimum).float() + first * shift
        u = (w - low) / scale
        u = u + (u.round() - u).detach()
        return u.clamp(0, 15) * scale + low

    inputs = [tensor.detach().clone().requires_grad_() for tensor in (latent.weight, *latent.grid)]
    expected = torch.autograd.grad((plain(*inputs) * factor).sum(), inputs)
    for found, wanted in zip(own, expected, strict=True):
        assert torch.allclose(found, wanted, rtol=1e-3, atol=1e-4 * float(wanted.abs().max()))
