"""What decoding reads from memory, counted load by load in Triton's interpreter: what it needs, once, and no more."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

import numpy as np
import pytest
import torch

from edgellm.export.pack import pack
from edgellm.kernels.control import Control
from edgellm.kernels.layout import Format
from tests.gpu.launch import GpuLayer, matmul
from tests.kernels.operators import random_matrix

Count = Callable[[np.ndarray], tuple[int, int]]


@pytest.fixture
def count(monkeypatch: pytest.MonkeyPatch) -> Count:
    """Of an array: bytes that programs read, each byte once a program; and how many different ones those are."""
    from triton.runtime import interpreter

    builder = interpreter.InterpreterBuilder
    load = builder.create_masked_load
    read: dict[tuple[int, ...], set[int]] = defaultdict(set)

    def counted(self, ptrs, mask, *rest):  # type: ignore[no-untyped-def]
        result = load(self, ptrs, mask, *rest)
        first = np.broadcast_to(ptrs.data, np.broadcast_shapes(ptrs.data.shape, mask.data.shape))
        at = first[np.broadcast_to(mask.data, first.shape).astype(bool)]
        for byte in range(result.data.itemsize):
            read[self.grid_idx].update((at + np.uint64(byte)).tolist())
        return result

    monkeypatch.setattr(builder, "create_masked_load", counted)

    def of(array: np.ndarray) -> tuple[int, int]:
        start = array.ctypes.data
        inside = [{at for at in bytes_ if start <= at < start + array.nbytes} for bytes_ in read.values()]
        return sum(map(len, inside)), len(set().union(*inside))

    return of


@pytest.mark.parametrize(
    "f",
    [
        Format(32, 128, 4, 64, "min"),
        Format(32, 128, 8, 32),
        Format(32, 128, 4, 128, "symmetric", 2, 4, "in"),
        Format(32, 128, 4, 64, "symmetric", 2, 4, "out"),
        Format(32, 128, 4, 64, "symmetric", 4, 8, "in"),
        Format(32, 128, 8, 32, "min", 4, 8, "out"),
    ],
    ids=str,
)
def test_a_row_reads_every_packed_byte_once(f: Format, count: Count) -> None:
    rng = np.random.default_rng(0)
    tiles = pack(random_matrix(rng, f))
    matmul(torch.zeros((1, f.k_in), dtype=torch.float16), tiles, f)
    assert count(tiles) == (f.nbytes, f.nbytes)


def test_a_token_reads_what_is_kept_once(count: Count, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys and values of committed slots and of its own, for all query heads together, and of no other slot."""
    layer = GpuLayer(6, 2, 16, 60, np.random.default_rng(1))
    layer.split = 16
    seen: list[list[np.ndarray]] = []
    operator = layer.operator
    monkeypatch.setattr(layer, "operator", lambda i, r, cache, s: (seen.append(cache), operator(i, r, cache, s))[1])
    layer.both(layer.inputs(1, 37), Control(37, 0, 50, 50))
    for buffer in seen[0][:2]:
        assert count(buffer) == (2 * 38 * 16 * 2, 2 * 38 * 16 * 2)
