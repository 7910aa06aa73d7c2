"""What the native library makes of a row of logits: the next token, and how sure it is. The row is read in place."""

from __future__ import annotations

import ctypes
from array import array
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgellm.kernels.library import library

NOBODY = array("q")


def sample(
    logits: NDArray[np.float32],
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    penalty: float = 1.0,
    seen: array[int] = NOBODY,
    uniform: float = 0.0,
) -> int:
    """The next token's id from logits float32 [V]: the likeliest at temperature 0, of equals the lowest; else drawn.

    Settings mean what they do in edgellm.runtime.sampling.Sampling, and are not checked again. seen: ids the repetition
    penalty applies to, int64 ("q"), ascending, each once. uniform: from [0, 1), what a draw turns into a token.
    Probabilities and their sums are float64. Equals sample_reference.sample, but where a sum meets top_p or `uniform`
    within its last bits: sums are taken in another order. Raises FloatingPointError when a logit, after the penalty, is
    NaN or +inf, or all are -inf; ValueError when logits are not a row.
    """
    row = _row(logits)
    ids, count = seen.buffer_info()
    token: int = library().edgellm_sample(
        row.ctypes.data, len(row), temperature, top_k, top_p, min_p, penalty, ids, count, uniform
    )
    if token < 0:
        raise FloatingPointError("the logits are not numbers")
    return token


class Uncertainty(NamedTuple):
    """Of p = softmax(logits): -sum p ln p in nats, ln sum exp(logits), and the largest p. Within 1e-5 of the exact."""

    entropy: float
    log_sum_exp: float
    top_probability: float


def uncertainty(logits: NDArray[np.float32]) -> Uncertainty:
    """How sure logits float32 [V] are; all NaN if a logit is NaN or +inf, or all are -inf. ValueError as in sample."""
    row, found = _row(logits), (ctypes.c_double * 3)()
    library().edgellm_uncertainty(row.ctypes.data, len(row), found)
    return Uncertainty(*found)


def _row(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    row = np.ascontiguousarray(logits, np.float32)
    if row.ndim != 1 or not len(row):
        raise ValueError(f"logits have the shape {logits.shape}; expected [V]")
    return row
