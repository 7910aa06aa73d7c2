"""How a token's key or value of one KV head lies in the cache: half precision, or int8 with one scale.

An int8 row is head_dim codes and then the four bytes of a float32 scale = max|x| / 127, x = scale * code: a slot is one
piece that eviction copies, and half of a float16 row but for the scale.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

F32 = NDArray[np.float32]
SCALE_BYTES = 4
TOP = 127
ROW: dict[int, type[np.generic]] = {16: np.float16, 8: np.int8}
"""Element type of key and value buffers by their bits."""


def row_width(head_dim: int, bits: int) -> int:
    """Elements of ROW[bits] that a row has."""
    return head_dim if bits == 16 else head_dim + SCALE_BYTES


def to_rows(x: F32, kind: DTypeLike) -> NDArray[Any]:
    """Vectors [..., head_dim] as rows: rounded to nearest; 0 where all of a vector is 0."""
    if kind == np.float16:
        return x.astype(np.float16)
    scale = np.abs(x).max(axis=-1, keepdims=True).astype(np.float32) / np.float32(TOP)
    code = np.rint(x / np.where(scale > 0, scale, 1)).astype(np.int8)
    return np.concatenate([code, np.ascontiguousarray(scale).view(np.int8)], axis=-1)


def from_rows(rows: NDArray[Any]) -> F32:
    """What rows stand for, float32 [..., head_dim]."""
    if rows.dtype == np.float16:
        return rows.astype(np.float32)
    scale = np.ascontiguousarray(rows[..., -SCALE_BYTES:]).view(np.float32)
    return rows[..., :-SCALE_BYTES].astype(np.float32) * scale


def hadamard(x: F32) -> F32:
    """The Walsh-Hadamard rotation of vectors [..., n * runs], run by run, n the largest power of two that divides them.

    H_1 = [1], H_2n = [[H_n, H_n], [H_n, -H_n]], over sqrt(n): orthogonal and its own inverse (QuaRot, arXiv
    2404.00456). One scale reaches a vector's largest entry; where a bias makes a few entries of every key a hundred
    times larger than the others, as in Qwen2.5, these keep no precision unless it is spread over all.
    """
    n = x.shape[-1] & -x.shape[-1]
    h = np.ones((1, 1), np.float32)
    while len(h) < n:
        h = np.block([[h, h], [h, -h]])
    turned: F32 = (x.reshape(*x.shape[:-1], -1, n) @ (h / np.float32(np.sqrt(n)))).reshape(x.shape)
    return turned.astype(np.float32)
