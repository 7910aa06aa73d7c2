"""Every instruction set against kernels/reference.py, through ONNX Runtime."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from edgellm.export.pack import pack
from edgellm.kernels import reference
from edgellm.kernels.layout import Format, dequantize, unpack
from tests.kernels.operators import random_matrix, run
from tests.kernels.test_pack import formats


def bound(x: np.ndarray, f: Format, tiles: np.ndarray) -> np.ndarray:
    """The error that 16-bit activations may cause: half a step an input, times |w|, and float32's own rounding."""
    weight = np.abs(dequantize(unpack(tiles, f)))
    step = np.repeat(np.abs(x.reshape(len(x), -1, 64)).max(axis=-1) / 32639, 64, axis=1)
    extent = np.abs(weight).max() if f.zero == "min" else 0  # scale*code and minimum cancel
    return 0.51 * step @ (weight + extent).T + 4e-6 * np.abs(x) @ (weight + extent).T + 1e-30


@settings(max_examples=80, deadline=None)
@given(f=formats(), rows=st.sampled_from([1, 2, 3, 5, 17, 64, 65, 130]), seed=st.integers(0, 2**32 - 1))
def test_matmul(isa: str, f: Format, rows: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    tiles = pack(random_matrix(rng, f))
    x = (rng.normal(size=(rows, f.k_in)) * np.exp(rng.normal(size=(rows, 1)))).astype(np.float32)
    x[:, rng.integers(f.k_in)] *= 100  # an outlier channel, as real models have
    (got,) = run("NMMatMul", [x, tiles], ["float32"], **f.attributes(), activation="none")
    expected = reference.nm_matmul(x, tiles, f)
    assert got.shape == expected.shape
    assert (np.abs(got - expected) <= bound(x, f, tiles)).all()


@settings(max_examples=40, deadline=None)
@given(f=formats(), seed=st.integers(0, 2**32 - 1))
def test_a_row_does_not_depend_on_its_company(isa: str, f: Format, seed: int) -> None:
    """Decoding, verifying a draft and prefilling take other paths through the kernels and end in the same bits."""
    assume(f.zero == "symmetric" or (f.bits == 4 and not f.sparse))  # others round minima another way when unpacked
    rng = np.random.default_rng(seed)
    tiles = pack(random_matrix(rng, f))
    x = rng.normal(size=(9, f.k_in)).astype(np.float32)
    many, few, one = (
        run("NMMatMul", [part, tiles], ["float32"], **f.attributes(), activation="none")[0]
        for part in (x, x[:3], x[:1])
    )
    np.testing.assert_array_equal(many[:3], few)
    np.testing.assert_array_equal(few[:1], one)


@settings(max_examples=30, deadline=None)
@given(f=formats(), rows=st.sampled_from([1, 2, 67]), seed=st.integers(0, 2**32 - 1))
def test_massive_activations_leave_the_others_exact(isa: str, f: Format, rows: int, seed: int) -> None:
    """One input of 1e5 beside ones of size 1, whose weights are 0: the others' product must not be rounded away."""
    assume(f.zero == "symmetric" or f.bits == 4)  # 8 bits with a minimum: +128 and -128 times 1e5 cancel in float32
    rng = np.random.default_rng(seed)
    q = random_matrix(rng, f)
    zero = f.zero_point if q.minimum is None else 0
    channel = int(rng.integers(f.k_in))
    q.code[:, channel] = zero
    if q.minimum is not None:
        q.minimum[:, channel // f.group] = 0
    tiles = pack(q)
    x = rng.normal(size=(rows, f.k_in)).astype(np.float32)
    x[rows // 2, channel] = 1e5
    (got,) = run("NMMatMul", [x, tiles], ["float32"], **f.attributes(), activation="none")
    expected = reference.nm_matmul(x, tiles, f)
    size = np.abs(x[rows // 2].clip(-10, 10)) @ np.abs(dequantize(q)).T
    assert (np.abs(got[rows // 2] - expected[rows // 2]) <= 1e-4 * size + 1e-6).all()


@pytest.mark.parametrize("rows", [1, 6])
@pytest.mark.parametrize("given", [("bias",), ("residual",), ("bias", "residual")])
def test_bias_and_residual_are_added(isa: str, given: tuple[str, ...], rows: int) -> None:
    rng = np.random.default_rng(0)
    f = Format(40, 64, 4, 64)
    tiles = pack(random_matrix(rng, f))
    x = rng.normal(size=(rows, 64)).astype(np.float32)
    shapes = {"bias": (40,), "residual": (rows, 40)}
    added = {name: rng.normal(size=shapes[name]).astype(np.float32) for name in given}
    inputs = [x, tiles, *(added.get(name) for name in ("bias", "residual"))]
    (got,) = run("NMMatMul", inputs, ["float32"], **f.attributes(), activation="none")
    expected = reference.nm_matmul(x, tiles, f, "none", **added)
    np.testing.assert_allclose(got, expected, atol=2e-4)
    wrong = {**added, given[-1]: added[given[-1]][..., :-1]}
    inputs = [x, tiles, *(wrong.get(name) for name in ("bias", "residual"))]
    with pytest.raises(Exception, match=f"NMMatMul: {given[-1]} is not"):
        run("NMMatMul", inputs, ["float32"], **f.attributes(), activation="none")


@pytest.mark.parametrize("rows", [1, 6])
@pytest.mark.parametrize("activation", ["none", "silu"])
def test_rows_are_normed_first(isa: str, activation: str, rows: int) -> None:
    rng = np.random.default_rng(0)
    f = Format(32, 192, 4, 64)
    tiles = pack(random_matrix(rng, f))
    x = (100 * rng.normal(size=(rows, 192))).astype(np.float32)
    norm = rng.normal(1, 0.5, 192).astype(np.float32)
    settings = f.attributes() | {"activation": activation}
    (got,) = run("NMMatMul", [x, tiles, None, None, norm], ["float32"], **settings, epsilon=1e-3)
    expected = reference.nm_matmul(x, tiles, f, activation, norm=norm, epsilon=1e-3)
    np.testing.assert_allclose(got, expected, atol=5e-4 * np.abs(expected).max())
    with pytest.raises(Exception, match="NMMatMul: norm is not"):
        run("NMMatMul", [x, tiles, None, None, norm[1:]], ["float32"], **settings)


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
@pytest.mark.parametrize("n_out", [32, 96])
def test_matmul_with_an_activation(isa: str, activation: str, n_out: int) -> None:
    rng = np.random.default_rng(n_out)
    f = Format(n_out, 128, 4, 64, "symmetric", 2, 4, "out")
    tiles = pack(random_matrix(rng, f))
    x = rng.normal(size=(7, 128)).astype(np.float32)
    (got,) = run("NMMatMul", [x, tiles], ["float32"], **f.attributes(), activation=activation)
    assert got.shape == (7, n_out // 2)
    expected = reference.nm_matmul(x, tiles, f, activation)
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


@settings(max_examples=60, deadline=None)
@given(f=formats(), rows=st.sampled_from([1, 2, 5, 64, 67, 130]), seed=st.integers(0, 2**32 - 1))
def test_exact_matmul(isa: str, f: Format, rows: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    tiles = pack(random_matrix(rng, f))
    x = (rng.normal(size=(rows, f.k_in)) * np.exp(3 * rng.normal(size=(rows, 1)))).astype(np.float32)
    bias = rng.normal(size=f.n_out).astype(np.float32)
    settings = f.attributes() | {"activation": "none", "exact": 1.0}
    (got,) = run("NMMatMul", [x, tiles, bias], ["float32"], **settings)
    error = np.abs(got - reference.nm_matmul(x, tiles, f, bias=bias))
    weight = np.abs(dequantize(unpack(tiles, f))) + (1 if f.zero == "min" else 0)
    assert (error <= 4e-6 * (np.abs(x) @ weight.T + np.abs(bias))).all()


@settings(max_examples=60, deadline=None)
@given(f=formats(), rows=st.sampled_from([1, 2, 5, 64, 67, 130]), seed=st.integers(0, 2**32 - 1))
def test_transposed_matmul(isa: str, f: Format, rows: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    tiles = pack(random_matrix(rng, f))
    dy = (rng.normal(size=(rows, f.n_out)) * np.exp(3 * rng.normal(size=(rows, 1)))).astype(np.float32)
    (got,) = run("NMMatMulT", [dy, tiles], ["float32"], **f.attributes())
    assert got.shape == (rows, f.k_in)
    # A minimum and the codes above it cancel, so that it counts beside the weight itself.
    weight = np.abs(dequantize(unpack(tiles, f))) + (1 if f.zero == "min" else 0)
    error = np.abs(got - reference.nm_matmul_t(dy, tiles, f))
    assert (error <= 4e-6 * np.abs(dy) @ weight + 1e-30).all()


def test_long_sums_lose_no_digits(isa: str) -> None:
    """16384 terms of one sign, added one after another, were off by 4e-6."""
    rng, f = np.random.default_rng(0), Format(16384, 64, 8, 64, "min")
    q = random_matrix(rng, f)
    tiles = pack(replace(q, scale=np.abs(q.scale), minimum=np.abs(q.minimum)))
    dy = rng.random((2, f.n_out)).astype(np.float32)
    (got,) = run("NMMatMulT", [dy, tiles], ["float32"], **f.attributes())
    expected = dy.astype(np.float64) @ dequantize(unpack(tiles, f)).astype(np.float64)
    np.testing.assert_allclose(got, expected, rtol=8e-7)


@pytest.mark.parametrize("x", [np.zeros((3, 64)), np.full((2, 64), 1e-40), np.full((2, 64), 1e30)])
def test_matmul_of_extreme_activations(isa: str, x: np.ndarray) -> None:
    f = Format(16, 64, 8, 32, "min")
    tiles = pack(random_matrix(np.random.default_rng(3), f))
    x = x.astype(np.float32)
    (got,) = run("NMMatMul", [x, tiles], ["float32"], **f.attributes(), activation="none")
    assert np.isfinite(got).all()
    np.testing.assert_allclose(got, reference.nm_matmul(x, tiles, f), rtol=1e-3, atol=1e-30)


@settings(max_examples=60, deadline=None)
@given(f=formats(), count=st.integers(1, 20), seed=st.integers(0, 2**32 - 1))
def test_gather(isa: str, f: Format, count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    q = random_matrix(rng, f)
    ids = rng.integers(0, f.n_out, count)
    (got,) = run("QuantGather", [ids, pack(q)], ["float32"], **f.attributes())
    np.testing.assert_allclose(got, dequantize(q)[ids], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("operator", "change", "message"),
    [
        ("NMMatMul", {"k_in": 128}, "x is not"),
        ("NMMatMul", {"bits": 8}, "another size"),
        ("NMMatMul", {"group": 33}, "no such weight tile"),
        ("NMMatMul", {"zero": "max"}, "no such weight tile"),
        ("NMMatMul", {"activation": "relu"}, "activation is none"),
        ("NMMatMulT", {"n_out": 17}, "dy is not"),
        ("NMMatMulT", {"k_in": 128}, "another size"),
        ("QuantGather", {"n_out": 17}, "another size"),
    ],
)
def test_a_wrong_graph_is_refused(operator: str, change: dict[str, object], message: str) -> None:
    f = Format(16, 64, 4, 64)
    widths = {"NMMatMul": 64, "NMMatMulT": 16}
    x = np.zeros((1, widths[operator]), np.float32) if operator in widths else np.zeros(1, np.int64)
    attributes = {**f.attributes(), **({"activation": "none"} if operator == "NMMatMul" else {}), **change}
    with pytest.raises(Exception, match=message):
        run(operator, [x, np.zeros(f.nbytes, np.uint8)], ["float32"], **attributes)


@pytest.mark.parametrize("token", [-1, 16])
def test_a_token_outside_the_vocabulary_is_refused(token: int) -> None:
    f = Format(16, 64, 4, 64)
    with pytest.raises(Exception, match="outside the vocabulary"):
        run("QuantGather", [np.array([token]), np.zeros(f.nbytes, np.uint8)], ["float32"], **f.attributes())
