from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellm.export.quantize import round_searched, round_to_nearest
from edgellm.export.scales import codes, search
from edgellm.kernels.layout import Format, dequantize

zeros = st.sampled_from(["symmetric", "min"])


def groups(seed: int, rows: int = 40, size: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights with a few outliers, and how much each counts (a quarter: nothing)."""
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(rows, size, generator=generator) * (1 + 3 * (torch.rand(rows, size, generator=generator) > 0.97))
    counts = torch.rand(rows, size, generator=generator) ** 3
    return w, counts * (torch.rand(rows, size, generator=generator) > 0.25)


def lost(w: torch.Tensor, counts: torch.Tensor, scale: torch.Tensor, minimum: torch.Tensor, bits: int) -> torch.Tensor:
    back = codes(w, (scale, minimum), bits) * scale[..., None] + minimum[..., None]
    return (counts * (back - w).square()).sum(-1)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), bits=st.sampled_from([4, 8]), zero=zeros)
def test_no_group_loses_more_than_by_its_whole_range(seed: int, bits: int, zero: str) -> None:
    w, counts = groups(seed)
    kept = torch.where(counts > 0, w, 0)
    if zero == "symmetric":
        scale = (kept.abs().amax(-1) / (2 ** (bits - 1) - 1)).half().float()
        whole = scale, -(2 ** (bits - 1)) * scale
    else:
        low = torch.where(counts > 0, w, torch.inf).amin(-1).half().float()
        high = torch.where(counts > 0, w, -torch.inf).amax(-1)
        whole = ((high - low).clamp_min(0) / (2**bits - 1)).half().float(), low
    found = search(w, counts, bits, zero)
    assert all(torch.equal(part, part.half().float()) for part in found)
    assert (lost(w, counts, *found, bits) <= lost(w, counts, *whole, bits) * 1.0001).all()


def test_a_search_over_every_scale_finds_little_more() -> None:
    w, counts = groups(0)
    least = torch.full((len(w),), torch.inf)
    for steps in torch.linspace(5, 16, 600):
        for sign in (1, -1):
            scale = sign * w.abs().amax(-1) / steps
            least = torch.minimum(least, lost(w, counts, scale, -8 * scale, 4))
    found = lost(w, counts, *search(w, counts, 4, "symmetric"), 4)
    assert found.sum() < 1.05 * least.sum()


@pytest.mark.parametrize("sign", [1, -1])
def test_weights_that_lie_on_a_grid_are_kept(sign: int) -> None:
    generator = torch.Generator().manual_seed(1)
    code = torch.randint(0, 16, (20, 64), generator=generator)
    code[:, 3] = 0  # the end that has no counterpart
    w = sign * 0.25 * (code - 8.0)
    scale, minimum = search(w, torch.ones(64), 4, "symmetric")
    assert (scale == sign * 0.25).all()
    assert torch.equal(codes(w, (scale, minimum), 4), code.float())


@pytest.mark.parametrize("zero", ["symmetric", "min"])
def test_what_counts_more_loses_less(zero: str) -> None:
    w, _ = groups(2, rows=64, size=128)
    loud = torch.ones(128)
    loud[::4] = 100
    f = Format(64, 128, 4, 64, zero)
    errors = [
        (torch.from_numpy(dequantize(round_searched(w, f, counts))) - w).square()[:, ::4].sum()
        for counts in (None, loud)
    ]
    assert errors[1] < 0.8 * errors[0]


@pytest.mark.parametrize("nm", [(1, 1), (2, 4)])
@pytest.mark.parametrize("zero", ["symmetric", "min"])
def test_a_searched_matrix_is_nearer_than_one_rounded_to_its_range(zero: str, nm: tuple[int, int]) -> None:
    w, _ = groups(3, rows=64, size=128)
    mask = torch.tensor([True, False, True, False]).repeat(64, 32) if nm != (1, 1) else None
    left = w if mask is None else w * mask
    f = Format(64, 128, 4, 64, zero, *nm)
    searched, nearest = round_searched(w, f, None, mask), round_to_nearest(w, 4, 64, zero, *nm, "in", mask)
    errors = [(torch.from_numpy(dequantize(q)) - left).square().sum() for q in (searched, nearest)]
    assert errors[0] < 0.9 * errors[1]
    if mask is not None:
        assert (searched.code[~mask.numpy()] == (8 if zero == "symmetric" else 0)).all()


def test_groups_of_zeros_stay_zero() -> None:
    w = torch.zeros(16, 128)
    w[:, :64] = 1
    for zero in ("symmetric", "min"):
        q = round_searched(w, Format(16, 128, 4, 64, zero))
        assert (dequantize(q)[:, 64:] == 0).all()
        assert (q.code[:, 64:] == (8 if zero == "symmetric" else 0)).all()
        assert abs(dequantize(q)[:, :64] - 1).max() < 1e-3
