from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edgellm.export import prune
from edgellm.export.quantize import round_to_nearest
from edgellm.kernels.layout import dequantize
from edgellm.runtime.errors import EdgellmError

seeds = st.integers(0, 2**32)
widths = st.sampled_from([4, 8])
sizes = st.sampled_from([32, 64, 128])
zeros = st.sampled_from(["symmetric", "min"])
recipes = st.sampled_from([(1, 1, "in"), (2, 4, "in"), (2, 4, "out"), (4, 8, "in"), (4, 8, "out"), (1, 4, "out")])


def case(seed: int, recipe: tuple[int, int, str], scale: float = 1.0) -> tuple[torch.Tensor, torch.Tensor | None]:
    n, m, axis = recipe
    generator = torch.Generator().manual_seed(seed)
    weight = (torch.randn(24, 256, generator=generator) + torch.randn(24, 1, generator=generator)) * scale
    if m == 1:
        return weight, None
    kept = prune.mask("magnitude", "q", weight.T.contiguous() if axis == "out" else weight, None, n, m)
    return weight, kept.T.contiguous() if axis == "out" else kept


@given(seed=seeds, bits=widths, group=sizes, zero=zeros, recipe=recipes, exponent=st.integers(-8, 8))
def test_every_kept_weight_is_within_half_a_step(
    seed: int, bits: int, group: int, zero: str, recipe: tuple[int, int, str], exponent: int
) -> None:
    weight, mask = case(seed, recipe, 2.0**exponent)
    n, m, axis = recipe
    q = round_to_nearest(weight, bits, group, zero, n, m, axis, mask)
    kept = np.ones(weight.shape, bool) if mask is None else mask.numpy()
    cut, held = weight.numpy().reshape(24, -1, group), kept.reshape(24, -1, group)
    top, bottom = np.max(cut, -1, initial=-99999, where=held), np.min(cut, -1, initial=99999, where=held)
    top, bottom = (np.where(held.any(-1), edge, 0) for edge in (top, bottom))
    span = top - bottom if zero == "min" else np.maximum(np.abs(top), np.abs(bottom))
    step = span / (2**bits - 1 if zero == "min" else 2 ** (bits - 1) - 1)
    # fp16 keeps 11 bits of the scale (and minimum), which the largest codes multiply.
    largest = np.maximum(np.abs(top), np.abs(bottom))
    slack = np.repeat(step / 2 + 2.0**-10 * largest + 2.0**-22, group, axis=1)
    error = np.abs(dequantize(q) - weight.numpy())
    assert (error[kept] <= slack[kept]).all()
    assert (dequantize(q)[~kept] == 0).all()


@given(seed=seeds, bits=widths, recipe=recipes)
def test_scale_is_absmax_over_the_largest_code(seed: int, bits: int, recipe: tuple[int, int, str]) -> None:
    weight, mask = case(seed, recipe)
    q = round_to_nearest(weight, bits, 64, "symmetric", *recipe, mask)
    left = weight.numpy() if mask is None else np.where(mask.numpy(), weight.numpy(), 0)
    absmax = np.abs(left.reshape(24, 4, 64)).max(-1)
    np.testing.assert_array_equal(q.scale, (absmax / np.float32(2 ** (bits - 1) - 1)).astype(np.float16))
    # The codes are the nearest against the scale that is stored, not the one before rounding.
    step = np.repeat(np.where(q.scale > 0, q.scale, np.float16(1)).astype(np.float32), 64, axis=1)
    nearest = np.rint(left / step) + 2 ** (bits - 1)
    np.testing.assert_array_equal(q.code, nearest)


@given(seed=seeds, recipe=recipes, zero=zeros, bits=widths)
def test_dropped_codes_are_those_that_unpacking_returns(
    seed: int, recipe: tuple[int, int, str], zero: str, bits: int
) -> None:
    weight, mask = case(seed, recipe)
    q = round_to_nearest(weight, bits, 64, zero, *recipe, mask)
    assert (q.mask is None) == (mask is None) == (recipe[1] == 1)
    assert (q.minimum is None) == (zero == "symmetric")
    if mask is not None:
        assert q.mask is not None
        np.testing.assert_array_equal(q.mask, mask.numpy())
        assert (q.code[~q.mask] == (2 ** (bits - 1) if zero == "symmetric" else 0)).all()


@pytest.mark.parametrize("zero", ["symmetric", "min"])
@pytest.mark.parametrize("bits", [4, 8])
def test_a_group_of_zeros_stays_zero(zero: str, bits: int) -> None:
    weight = torch.randn(16, 128, generator=torch.Generator().manual_seed(0))
    weight[3, 64:] = 0
    q = round_to_nearest(weight, bits, 64, zero)
    assert q.scale[3, 1] == 0
    assert (q.code[3, 64:] == (2 ** (bits - 1) if zero == "symmetric" else 0)).all()
    assert (dequantize(q)[3, 64:] == 0).all()


def test_a_group_without_kept_weights_is_zero() -> None:
    mask = torch.zeros(4, 64, dtype=torch.bool)
    mask[:2] = True  # 2 of 4 along the outputs: rows 2 and 3 keep nothing
    for zero in ("symmetric", "min"):
        q = round_to_nearest(torch.full((4, 64), 3.0), 4, 64, zero, 2, 4, "out", mask)
        np.testing.assert_allclose(dequantize(q)[:2], 3.0, rtol=1e-3)
        assert (dequantize(q)[2:] == 0).all()
        assert np.isfinite(q.scale).all()


def test_a_minimum_serves_groups_far_from_zero_better() -> None:
    weight = torch.rand(16, 128, generator=torch.Generator().manual_seed(0)) + 5
    errors = [
        np.abs(dequantize(round_to_nearest(weight, 4, 32, zero)) - weight.numpy()).mean()
        for zero in ("symmetric", "min")
    ]
    assert errors[1] < errors[0] / 5


def test_refusals_name_the_reason() -> None:
    weight = torch.ones(16, 96)
    with pytest.raises(EdgellmError, match="96 inputs do not divide by 64"):
        round_to_nearest(weight, 4, 64)
    weight = torch.ones(16, 128)
    with pytest.raises(EdgellmError, match="bits is 3"):
        round_to_nearest(weight, 3, 64)
    with pytest.raises(EdgellmError, match="needs a mask of 16 x 128"):
        round_to_nearest(weight, 4, 64, n=2, m=4)
    with pytest.raises(EdgellmError, match="exactly 2 of every 4 along in"):
        round_to_nearest(weight, 4, 64, n=2, m=4, mask=torch.ones(16, 128, dtype=torch.bool))
    for bad in (float("nan"), float("inf"), 1e9):
        weight[5, 70] = bad
        for zero in ("symmetric", "min"):
            with pytest.raises(EdgellmError, match="NaN, infinite, or too large"):
                round_to_nearest(weight, 4, 64, zero)
