"""Packing: the bytes are the size the format says and read back to the same weights."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellm.export.pack import interleave, pack
from edgellm.kernels.layout import Format, Quantized, dequantize, unpack
from tests.kernels.operators import random_matrix

SPARSITIES = [(1, 1), (2, 4), (4, 8), (1, 4), (3, 4), (2, 8), (5, 16)]


@st.composite
def formats(draw: st.DrawFn) -> Format:
    n, m = draw(st.sampled_from(SPARSITIES))
    axis = draw(st.sampled_from(["in", "out"]))
    group = draw(st.sampled_from([32, 64, 128]))
    step = m if axis == "out" else 1
    n_out = step * draw(st.integers(1, 80 // step))
    k_in = max(group, 64) * draw(st.integers(1, 5))
    bits = draw(st.sampled_from([4, 8]))
    zero = draw(st.sampled_from(["symmetric", "min"]))
    return Format(n_out, k_in, bits, group, zero, n, m, axis)


@settings(max_examples=200, deadline=None)
@given(f=formats(), seed=st.integers(0, 2**32 - 1))
def test_round_trip(f: Format, seed: int) -> None:
    q = random_matrix(np.random.default_rng(seed), f)
    tiles = pack(q)
    assert tiles.dtype == np.uint8
    assert tiles.shape == (f.nbytes,)
    back = unpack(tiles, f)
    np.testing.assert_array_equal(dequantize(back), dequantize(q))
    if q.mask is not None:
        np.testing.assert_array_equal(back.mask, q.mask)
        along = back.mask if f.axis == "in" else back.mask.T
        assert (along.reshape(-1, f.m).sum(axis=1) == f.n).all()
        np.testing.assert_array_equal(back.code[q.mask], q.code[q.mask])


def test_sizes_are_those_of_the_design() -> None:
    # "With groups of 64, 2:4 at 4 bits costs 3.25 bits a weight, dense 4 bits 4.25."
    assert Format(64, 512, 4, 64, "symmetric", 2, 4).nbytes * 8 == 3.25 * 64 * 512
    assert Format(64, 512, 4, 64).nbytes * 8 == 4.25 * 64 * 512
    assert Format(64, 512, 4, 32, "min").nbytes * 8 == 5 * 64 * 512  # Q4_1


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (dict(n_out=16, k_in=60, bits=4, group=64), "60 inputs do not divide by 64"),
        (dict(n_out=16, k_in=576, bits=4, group=128), "576 inputs do not divide by 128"),
        (dict(n_out=18, k_in=64, bits=4, group=64, n=2, m=4, axis="out"), "18 outputs do not divide into groups of 4"),
        (dict(n_out=16, k_in=64, bits=3, group=64), "bits is 3"),
        (dict(n_out=16, k_in=64, bits=4, group=48), "group is 48"),
        (dict(n_out=16, k_in=64, bits=4, group=64, n=4, m=4), "4:4 sparsity"),
        (dict(n_out=16, k_in=64, bits=4, group=64, n=1, m=5), "1:5 sparsity"),
        (dict(n_out=0, k_in=64, bits=4, group=64), "empty"),
        (dict(n_out=16, k_in=64, bits=4, group=64, zero="max"), 'zero is "max"'),
    ],
)
def test_sizes_that_do_not_fit_are_refused_with_the_reason(arguments: dict[str, int], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Format(**arguments)


def test_a_mask_that_keeps_another_count_is_refused() -> None:
    f = Format(16, 64, 4, 64, "symmetric", 2, 4)
    q = random_matrix(np.random.default_rng(0), f)
    mask = q.mask.copy()
    mask[3, 4:8] = [True, True, True, False]
    with pytest.raises(ValueError, match="keeps 2 to 3 of 4; expected exactly 2"):
        pack(Quantized(f, q.code, q.scale, None, mask))
    with pytest.raises(ValueError, match="without a mask"):
        pack(Quantized(f, q.code, q.scale))


def test_truncated_tiles_are_refused() -> None:
    f = Format(16, 64, 4, 64)
    with pytest.raises(ValueError, match="the format needs"):
        unpack(np.zeros(f.nbytes - 1, np.uint8), f)


def test_interleave_alternates_sixteen_gates_and_sixteen_ups() -> None:
    rng = np.random.default_rng(1)
    f = Format(32, 64, 8, 64, "symmetric", 2, 4, "out")
    gate, up = random_matrix(rng, f), random_matrix(rng, f)
    both = dequantize(interleave(gate, up))
    np.testing.assert_array_equal(both[:16], dequantize(gate)[:16])
    np.testing.assert_array_equal(both[16:32], dequantize(up)[:16])
    np.testing.assert_array_equal(both[32:48], dequantize(gate)[16:])
