"""Launches the kernels as kernels/gpu/README.md says, by Triton's interpreter, on NumPy arrays (torch carries them)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed: pip install 'edgellm[gpu-kernels]'")

from edgellm.kernels.control import Control
from edgellm.kernels.gpu.attend_few import attend_few, combine_few
from edgellm.kernels.gpu.attend_many import attend_many, score_many
from edgellm.kernels.gpu.commit import commit
from edgellm.kernels.gpu.gather import quant_gather
from edgellm.kernels.gpu.matmul import nm_decode, nm_rows
from edgellm.kernels.gpu.stage import stage
from edgellm.kernels.layout import Format
from tests.kernels.test_attention import Layer

SPLIT = 256


def consts(f: Format) -> dict[str, Any]:
    return dict(BITS=f.bits, GROUP=f.group, MINIMA=f.zero == "min", N=f.n, M=f.m, OUT=f.axis == "out")


def power(n: int) -> int:
    return 1 << (n - 1).bit_length()


def matmul(
    x: torch.Tensor, tiles: np.ndarray, f: Format, activation: str = "none", bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None, many: bool = False, exact: bool = True,
) -> torch.Tensor:  # fmt: skip
    """NMMatMul; exact: y is float32. many: through the tensor cores' kernel."""
    rows, panels = len(x), f.panels if activation == "none" else f.panels // 2
    y = torch.full(
        (rows, f.n_out if activation == "none" else f.n_out // 2), 7.0, dtype=torch.float32 if exact else x.dtype
    )
    given = [bias if bias is not None else x, residual if residual is not None else x]
    ends = [f.n_out, f.k_in, int(bias is not None), int(residual is not None)]
    packed = torch.from_numpy(tiles)
    if many:
        grid = (-(-panels // 2), -(-rows // 16))
        nm_rows[grid](x, packed, *given, y, rows, *ends, **consts(f), ACTIVATION=activation, TILES=2, ROWS=16, PANELS=2)
    else:
        nm_decode[(panels, rows)](x, packed, *given, y, *ends, **consts(f), ACTIVATION=activation, TILES=2)
    return y


def gather(ids: np.ndarray, tiles: np.ndarray, f: Format) -> np.ndarray:
    y = torch.zeros((len(ids), f.k_in))
    quant_gather[(len(ids),)](torch.from_numpy(ids), torch.from_numpy(tiles), y, f.k_in, **consts(f), TILES=2)
    return y.numpy()


class GpuLayer(Layer):
    """The same, by the GPU's kernels. Activations are rounded to half precision first, as they are there."""

    most = 64  # rows (tokens times heads of a group) that the kernels for few take
    split = SPLIT

    def inputs(self, steps: int, start: int) -> list[np.ndarray]:
        qkv, *rest = super().inputs(steps, start)
        return [qkv.astype(np.float16).astype(np.float32), *rest]

    def operator(
        self, inputs: list[np.ndarray], rows: np.ndarray, cache: list[np.ndarray], scale: float
    ) -> list[np.ndarray]:
        qkv, cos, sin, positions = (torch.from_numpy(x) for x in inputs)
        key, value, position, score = (torch.from_numpy(x) for x in cache)
        qkv, steps, control = qkv.half(), len(inputs[0]), torch.from_numpy(rows[1].copy())
        assert Control(*rows[1].tolist()).budget + steps <= self.capacity, "the interpreter would write past the end"
        norms = [torch.from_numpy(x) if x is not None else qkv for x in self.norms]
        planes, capacity, half = self.planes, self.capacity, self.rotary // 2
        dims = dict(HEAD_DIM=self.head_dim, WIDE=max(16, power(self.head_dim)))
        scratch = torch.zeros((self.kv_heads, 2, capacity), dtype=torch.int32)
        commit[(self.kv_heads,)](
            control, key, value, position, score, scratch, capacity, planes, **dims, BLOCK=64, ROWS=16
        )
        many = steps * self.heads // self.kv_heads
        query = torch.full((self.kv_heads, many, self.head_dim), torch.nan, dtype=torch.float16)
        stage[(self.kv_heads, -(-steps // 16))](
            qkv, cos, sin, positions, control, *norms, key, value, position, score, query,
            steps, self.heads, capacity, half, planes, int(self.normed), 1e-5, **dims, TOKENS=16,
        )  # fmt: skip
        group = power(self.heads // self.kv_heads)
        y = torch.zeros((steps, self.heads * self.head_dim), dtype=torch.float16)
        ends = [scale, self.window, self.softcap]
        given = [query, positions, control, key]
        if many <= self.most:
            splits = -(-capacity // self.split)
            extent = torch.full((self.kv_heads, splits, many, 2), torch.nan)
            sums = torch.full((self.kv_heads, splits, many, self.head_dim), torch.nan)
            logits = torch.full((self.kv_heads, many, self.split * splits), torch.nan)
            attend_few[(self.kv_heads, splits)](
                *given, value, position, extent, sums, logits, steps, self.heads, capacity, *ends, **dims,
                ROWS=max(16, power(many)), SLOTS=min(64, self.split), SPLIT=self.split,
            )  # fmt: skip
            combine_few[(self.kv_heads, splits)](
                positions, control, extent, sums, logits, score, y, steps, self.heads, capacity, planes,
                **dims, GROUP=group, TOKENS=max(1, 16 // group), SPLIT=self.split,
            )  # fmt: skip
        else:
            extent = torch.full((self.kv_heads, many, 2), torch.nan)
            block, slots = 32, 32
            attend_many[(self.kv_heads, -(-many // block))](
                *given,
                value,
                position,
                extent,
                y,
                steps,
                self.heads,
                capacity,
                *ends,
                **dims,
                ROWS=block,
                SLOTS=slots,
            )
            score_many[(self.kv_heads, -(-capacity // slots))](
                *given, position, extent, score, steps, self.heads, capacity, planes, *ends, **dims,
                GROUP=group, TOKENS=max(1, 32 // group), SLOTS=slots,
            )  # fmt: skip
        return [y.float().numpy(), *cache]
