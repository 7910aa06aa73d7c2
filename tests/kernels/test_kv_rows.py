"""How keys and values are held at 8 bits, and what the rotation of keys is for."""

from __future__ import annotations

import numpy as np
import pytest

from edgellm.kernels.attention_reference import Cache
from edgellm.kernels.kv_rows import ROW, SCALE_BYTES, from_rows, hadamard, row_width, to_rows


def test_an_int8_row_is_within_half_a_step() -> None:
    x = np.random.default_rng(0).normal(size=(3, 5, 48)).astype(np.float32)
    x[1, 2] = 0
    rows = to_rows(x, np.int8)
    assert (rows.dtype, rows.shape) == (np.int8, (3, 5, row_width(48, 8)))
    assert np.array_equal(np.abs(rows[..., :48]).max(axis=-1), np.where(np.abs(x).max(axis=-1) > 0, 127, 0))
    step = np.abs(x).max(axis=-1, keepdims=True) / 127
    assert (np.abs(from_rows(rows) - x) <= 0.501 * step).all()


def test_a_cache_of_8_bits_is_half_but_for_the_scales() -> None:
    wide, narrow = Cache.empty(2, 10, 64), Cache.empty(2, 10, 64, bits=8)
    assert (narrow.bits, narrow.key.dtype) == (8, ROW[8])
    assert narrow.key.nbytes == wide.key.nbytes / 2 + 2 * 10 * SCALE_BYTES


@pytest.mark.parametrize("dim", [1, 6, 64, 80, 96, 128])
def test_hadamard_keeps_products_and_is_its_own_inverse(dim: int) -> None:
    q, k = np.random.default_rng(0).normal(size=(2, dim)).astype(np.float32)
    np.testing.assert_allclose(hadamard(q) @ hadamard(k), q @ k, atol=1e-4)
    np.testing.assert_allclose(hadamard(hadamard(q)), q, atol=1e-5)


def test_a_large_input_no_longer_costs_the_others_their_codes() -> None:
    x = np.random.default_rng(0).normal(size=(100, 64)).astype(np.float32)
    x[:, 3] += 100
    plain = np.abs(from_rows(to_rows(x, np.int8)) - x).mean()
    spread = np.abs(hadamard(from_rows(to_rows(hadamard(x), np.int8))) - x).mean()
    assert spread < plain / 4
