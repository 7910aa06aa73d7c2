"""A packed matrix as DequantizeLinear takes it: signed integers with a scale a block, and what minima add.

A weight is scale*(code - zero) + minimum. DequantizeLinear of INT4 and INT8 knows scales only, so

    y[n] = sum_k x[k] * scale[g,n] * (code[k,n] - zero)  +  sum_g minimum'[g,n] * (sum of x over group g)

and the second term is one small product of group sums with the minima: exact, 1/group of the weights' work. For "min"
formats zero is taken as 8 (128 at 8 bits) too, so that minimum' = minimum + zero*scale is small; at half precision that
rounds a weight by up to 2**-11 of minimum'.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgellm.export.nodes import Placed
from edgellm.kernels.layout import PANEL, unpack
from edgellm.runtime.errors import EdgellmError

_WEIGHTS_AT_ONCE = 1 << 22


@dataclass(frozen=True)
class IntegerWeights:
    """codes: for 4 bits uint8 [k_in * n_out / 2], two signed nibbles a byte, the first low, of [k_in, n_out] in order;
    for 8 int8 [k_in, n_out]. scale fp16 [k_in/group, n_out]; minimum' the same, or None."""

    codes: NDArray[np.uint8] | NDArray[np.int8]
    scale: NDArray[np.float16]
    minimum: NDArray[np.float16] | None


def integer_weights(data: Path, at: Placed, interleaved: bool = False) -> IntegerWeights:
    """Read a packed matrix from the data file. interleaved: its outputs are 16 gate, 16 up, …; all gates come first
    then. Dropped weights of an N:M matrix become zeros that are stored.

    Memory: one byte a weight, and a slab. Raises EdgellmError for an odd number of outputs, and for N:M weights with
    minima, which no recipe makes.
    """
    f = at.format
    assert f is not None
    if f.sparse and f.zero == "min":
        raise EdgellmError("N:M weights with minima have no form in standard operators", "Export without --engine.")
    if f.n_out % 2:
        raise EdgellmError(f"a matrix of {f.n_out} outputs; INT4 in standard operators needs an even number")
    groups = (f.k_in // f.group, f.n_out)
    codes, scale = np.empty((f.k_in, f.n_out), np.int8), np.empty(groups, np.float16)
    minimum = np.empty(groups, np.float16) if f.zero == "min" else None
    order = np.arange(f.n_out)
    if interleaved:
        order = order.reshape(2, -1, PANEL).transpose(1, 0, 2).reshape(-1)
    step = max(1, _WEIGHTS_AT_ONCE // f.k_in // PANEL) * PANEL
    for start in range(0, f.n_out, step):
        slab = replace(f, n_out=min(step, f.n_out - start))
        raw = np.fromfile(data, np.uint8, slab.nbytes, offset=at.offset + start // PANEL * f.panel_bytes)
        q, to = unpack(raw, slab), order[start : start + step]
        centred = q.code.astype(np.int16) - f.zero_point
        codes[:, to] = (centred if q.mask is None else np.where(q.mask, centred, 0)).T
        scale[:, to] = q.scale.T
        if minimum is not None and q.minimum is not None:
            minimum[:, to] = (q.minimum.astype(np.float32) + f.zero_point * q.scale.astype(np.float32)).T
    if f.bits == 8:
        return IntegerWeights(codes, scale, minimum)
    low, high = codes.reshape(-1, 2).T.view(np.uint8)
    return IntegerWeights((low & 15) | (high << np.uint8(4)), scale, minimum)
