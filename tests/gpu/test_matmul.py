"""NMMatMul and QuantGather for GPUs, by Triton's interpreter, against the reference, over every recipe's format."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgellm.export.pack import pack
from edgellm.kernels import reference
from edgellm.kernels.layout import Format, dequantize
from tests.gpu.launch import gather, matmul
from tests.kernels.operators import random_matrix

DENSE = [
    (4, 32, "symmetric"),
    (4, 32, "min"),
    (4, 64, "min"),
    (4, 128, "symmetric"),
    (8, 32, "symmetric"),
    (8, 64, "min"),
]
FORMATS = [Format(32, 128, *recipe) for recipe in DENSE]
FORMATS += [
    Format(32, 128, bits, group, zero, n, m, axis)
    for n, m, group, zero in [(2, 4, 64, "symmetric"), (4, 8, 32, "min")]
    for axis in ("in", "out")
    for bits in (4, 8)
]
FORMATS += [
    Format(32, 128, 4, 128, "min", 2, 4, "out"),
    Format(32, 128, 4, 64, "symmetric", 1, 4, "in"),
    Format(32, 128, 8, 64, "min", 2, 8, "in"),
    Format(32, 128, 4, 32, "symmetric", 3, 4, "in"),  # no word of three bytes: codes are fetched one by one
    Format(32, 128, 8, 64, "symmetric", 6, 8, "out"),
    Format(32, 128, 4, 64, "min", 8, 16, "in"),
    Format(32, 128, 4, 64, "symmetric", 4, 16, "out"),
]


def normal(rng: np.random.Generator, *shape: int) -> torch.Tensor:
    return torch.from_numpy(rng.normal(size=shape).astype(np.float16))


def close(got: torch.Tensor, expected: np.ndarray, step: float) -> None:
    """Within `step` of the largest: the weights' and the result's rounding, the sums being float32."""
    assert got.shape == expected.shape
    np.testing.assert_allclose(got.float().numpy(), expected, atol=step * np.abs(expected).max())


@pytest.mark.parametrize("f", FORMATS, ids=str)
def test_every_format_decodes_and_prefills(f: Format) -> None:
    rng = np.random.default_rng(f.bits + f.m)
    tiles = pack(random_matrix(rng, f))
    x = normal(rng, 3, f.k_in)
    expected = reference.nm_matmul(x.float().numpy(), tiles, f)
    close(matmul(x[:1], tiles, f), expected[:1], 4e-6)  # float32 throughout
    close(matmul(x, tiles, f, many=True), expected, 2**-10)  # weights rounded to half precision


@pytest.mark.parametrize("many", [False, True])
def test_panels_and_rows_that_are_not_full(many: bool) -> None:
    f = Format(24, 192, 4, 64)
    rng = np.random.default_rng(0)
    tiles = pack(random_matrix(rng, f))
    x, bias = normal(rng, 17 if many else 1, 192), normal(rng, 24)
    residual = normal(rng, len(x), 24)
    for given in ({"bias": bias}, {"residual": residual}, {"bias": bias, "residual": residual}):
        expected = reference.nm_matmul(x.float().numpy(), tiles, f, **{k: v.float().numpy() for k, v in given.items()})
        close(matmul(x, tiles, f, many=many, **given), expected, 2**-10 if many else 4e-6)


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
@pytest.mark.parametrize("many", [False, True])
def test_gate_and_up_are_multiplied(activation: str, many: bool) -> None:
    f = Format(64, 64, 4, 64, "symmetric", 2, 4, "out")
    rng = np.random.default_rng(1)
    tiles = pack(random_matrix(rng, f))
    x = normal(rng, 1, 64) * 3
    expected = reference.nm_matmul(x.float().numpy(), tiles, f, activation)
    close(matmul(x, tiles, f, activation, many=many), expected, 2**-9 if many else 1e-5)


@pytest.fixture
def bfloat16_dot(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton 3.9's interpreter multiplies bfloat16 matrices as the integers that hold their bits: widen them first."""
    import triton.language as tl
    from triton.runtime import interpreter

    builder = interpreter.InterpreterBuilder
    dot = builder.create_dot

    def widened(x: interpreter.TensorHandle) -> interpreter.TensorHandle:
        if x.dtype.scalar != tl.bfloat16:
            return x
        return interpreter.TensorHandle((x.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    monkeypatch.setattr(builder, "create_dot", lambda self, a, b, *rest: dot(self, widened(a), widened(b), *rest))


@pytest.mark.usefixtures("bfloat16_dot")
@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_results_in_the_type_of_the_activations(kind: torch.dtype, many: bool) -> None:
    f = Format(32, 64, 8, 32)
    rng = np.random.default_rng(2)
    tiles = pack(random_matrix(rng, f))
    x = normal(rng, 2, 64).to(kind)
    got = matmul(x, tiles, f, many=many, exact=False)
    assert got.dtype == kind
    close(got, reference.nm_matmul(x.float().numpy(), tiles, f), 2**-10 if kind == torch.float16 else 2**-7)


@pytest.mark.parametrize("f", [Format(40, 64, 4, 32, "min"), Format(40, 192, 8, 64, "symmetric", 4, 8, "in")], ids=str)
def test_gather(f: Format) -> None:
    rng = np.random.default_rng(3)
    q = random_matrix(rng, f)
    ids = np.array([0, 39, 17])
    np.testing.assert_allclose(gather(ids, pack(q), f), dequantize(q)[ids], atol=1e-6)
