"""DecoderLayer against the reference, and against the operators it stands for, bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgellm.export.pack import pack
from edgellm.kernels import reference
from edgellm.kernels.attention_reference import Cache
from edgellm.kernels.control import SCORE, Control, control_of
from edgellm.kernels.kv_rows import from_rows, to_rows
from edgellm.kernels.layer_reference import Layer, decoder_layer
from edgellm.kernels.layout import Format
from tests.kernels.operators import random_matrix, run
from tests.kernels.test_attention import outputs

HIDDEN, INNER, HEADS, KV_HEADS, DIM = 128, 192, 6, 2, 32
BUDGET, STAGING = 600, 16  # two segments of attention
WIDTHS = {"q": HEADS * DIM, "k": KV_HEADS * DIM, "v": KV_HEADS * DIM, "o": HIDDEN, "gate_up": 2 * INNER, "down": HIDDEN}
BIASES, NORMS = ("q_bias", "k_bias", "v_bias", "o_bias"), ("q_norm", "k_norm")
POST = ("post_attention_norm", "post_mlp_norm")
OPTIONAL = (*BIASES, *NORMS, *POST, "k_shift")


def layer_of(rng: np.random.Generator, joined: bool, optional: tuple[str, ...]) -> Layer:
    widths = dict(WIDTHS)
    if joined:
        widths["q"] += widths.pop("k") + widths.pop("v")
    inputs = {"o": HEADS * DIM, "down": INNER}
    forms = {
        "q": Format(widths["q"], HIDDEN, 4, 64),
        "k": Format(WIDTHS["k"], HIDDEN, 8, 32),
        "v": Format(WIDTHS["v"], HIDDEN, 4, 32, "min"),
        "gate_up": Format(widths["gate_up"], HIDDEN, 4, 64, "symmetric", 2, 4, "out"),
    }
    matrices = {}
    for role, width in widths.items():
        form = forms.get(role, Format(width, inputs.get(role, HIDDEN), 4, 64))
        matrices[role] = (pack(random_matrix(rng, form)), form)
    sizes = {"q_norm": DIM, "k_norm": DIM, "k_shift": KV_HEADS * DIM} | {
        f"{role}_bias": width for role, width in widths.items()
    }
    names = ("attention_norm", "mlp_norm", *(n for n in optional if n in sizes or n in POST))
    vectors = {n: rng.normal(1, 0.3, sizes.get(n, HIDDEN)).astype(np.float32) for n in names}
    return Layer(HEADS, DIM**-0.5, "silu", 1e-5, matrices, vectors)


def native(layer: Layer, inputs: list[np.ndarray], cache: Cache, rows: np.ndarray | None) -> list[np.ndarray]:
    given: list[Any] = [*inputs, *(buffer.copy() for buffer in vars(cache).values())]
    tiles = {role: matrix[0] for role, matrix in layer.matrices.items()}
    given += [tiles[role] for role in ("q", "o", "gate_up", "down")]
    given += [layer.vectors[n] for n in ("attention_norm", "mlp_norm")]
    given += [tiles.get("k"), tiles.get("v"), *(layer.vectors.get(n) for n in (*BIASES, *NORMS, *POST)), rows]
    given += [layer.vectors.get("k_shift")]
    attributes: dict[str, Any] = {"k.n_out": 0, "epsilon": layer.epsilon, "activation": layer.activation}
    for role, (_, form) in layer.matrices.items():
        attributes |= {f"{role}.{key}": value for key, value in form.attributes().items()}
    attributes |= {"heads": HEADS, "kv_heads": KV_HEADS, "head_dim": DIM, "scale": layer.scale}
    return run(
        "DecoderLayer",
        given,
        outputs(cache.bits),
        window=0,
        softcap=0.0,
        layer=0,
        **attributes,
    )


def one_by_one(layer: Layer, inputs: list[np.ndarray], cache: Cache, rows: np.ndarray | None) -> np.ndarray:
    """The same through NMMatMul and PrunedKVAttention."""
    x, *rest = inputs
    v = layer.vectors

    def product(y: np.ndarray, role: str, norm: str = "", residual: np.ndarray | None = None) -> np.ndarray:
        tiles, form = layer.matrices[role]
        activation = layer.activation if role == "gate_up" else "none"
        given = [y, tiles, v.get(f"{role}_bias"), residual, v.get(norm)]
        return run("NMMatMul", given, ["float32"], **form.attributes(), activation=activation, epsilon=layer.epsilon)[0]

    def added(x: np.ndarray, y: np.ndarray, role: str, norm: str) -> np.ndarray:
        if norm not in v:
            return product(y, role, residual=x)
        return x + reference.rms_norm(product(y, role), v[norm], layer.epsilon)

    qkv = np.concatenate([product(x, r, "attention_norm") for r in ("q", "k", "v") if r in layer.matrices], axis=1)
    given = [qkv, *rest, *vars(cache).values(), v.get("q_norm"), v.get("k_norm"), v.get("k_shift")]
    sizes: dict[str, Any] = {"heads": HEADS, "kv_heads": KV_HEADS, "head_dim": DIM, "scale": layer.scale}
    more: dict[str, Any] = {"window": 0, "softcap": 0.0, "epsilon": layer.epsilon, "layer": 0}
    mixed = run("PrunedKVAttention", given, outputs(cache.bits), **sizes, **more)[0]
    if rows is not None:
        x, mixed = x[rows], mixed[rows]
    x = added(x, mixed, "o", "post_attention_norm")
    return added(x, product(x, "gate_up", "mlp_norm"), "down", "post_mlp_norm")


def case(rng: np.random.Generator, steps: int, committed: int, bits: int = 16) -> tuple[list[np.ndarray], Cache]:
    cache = Cache.empty(KV_HEADS, BUDGET + STAGING, DIM, 2, bits)
    for buffer in (cache.key, cache.value):
        buffer[:] = to_rows(rng.normal(size=(*buffer.shape[:2], DIM)).astype(np.float32), buffer.dtype)
    cache.position[:] = np.arange(BUDGET + STAGING)
    angle = rng.normal(size=(steps, DIM // 2)).astype(np.float32)
    x = rng.normal(size=(steps, HIDDEN)).astype(np.float32)
    control = Control(committed, 1, BUDGET, BUDGET, 4, SCORE, 20, counted=steps, norm=1)
    positions = np.arange(committed + 1, committed + 1 + steps)
    return [x, np.cos(angle), np.sin(angle), positions, control_of([control])], cache


@pytest.mark.parametrize("optional", [(), NORMS, (*BIASES, *POST), OPTIONAL])
@pytest.mark.parametrize("joined", [True, False])
@pytest.mark.parametrize(
    ("steps", "committed", "bits"),
    [(1, 3, 16), (1, 560, 16), (1, 600, 16), (4, 520, 16), (9, 40, 16), (1, 560, 8), (1, 600, 8), (9, 40, 8)],
)
def test_a_layer(isa: str, steps: int, committed: int, bits: int, joined: bool, optional: tuple[str, ...]) -> None:
    rng = np.random.default_rng(steps + committed)
    layer = layer_of(rng, joined, optional)
    inputs, cache = case(rng, steps, committed, bits)
    rows = None if steps == 1 else np.array([steps - 1, 0])
    got = native(layer, inputs, cache, rows)
    apart = one_by_one(layer, inputs, Cache(*(buffer.copy() for buffer in vars(cache).values())), rows)
    x, cos, sin, positions, control = inputs
    expected = decoder_layer(x, layer, cos, sin, positions, control[0], cache, rows)
    assert got[0].shape == expected.shape
    # The kernels' 16-bit activations now and then send a key to the next code.
    np.testing.assert_allclose(got[0], expected, atol=(2e-3 if bits == 16 else 1e-2) * np.abs(expected).max())
    np.testing.assert_allclose(from_rows(got[1]), from_rows(cache.key), atol=2e-2 if bits == 16 else 5e-2)
    np.testing.assert_array_equal(got[3], cache.position)
    np.testing.assert_allclose(got[4], cache.score, rtol=2e-2, atol=1e-2)
    if any(name in layer.vectors for name in POST):
        np.testing.assert_allclose(got[0], apart, atol=2e-4 * np.abs(apart).max())  # NumPy norms in another order
    else:
        np.testing.assert_array_equal(got[0], apart)


def test_what_does_not_fit_is_refused() -> None:
    rng = np.random.default_rng(0)
    layer = layer_of(rng, True, ())
    inputs, cache = case(rng, 2, 3)
    with pytest.raises(Exception, match="rows are not of x"):
        native(layer, inputs, cache, np.array([2]))
    with pytest.raises(Exception, match="the cache is full"):
        native(layer, [*inputs[:-1], control_of([Control(BUDGET, 1, BUDGET, BUDGET)])], cache, None)
    layer.vectors["mlp_norm"] = layer.vectors["mlp_norm"][1:]
    with pytest.raises(Exception, match="a norm is not"):
        native(layer, inputs, cache, None)
    layer.matrices["o"] = layer.matrices["q"]
    with pytest.raises(Exception, match="do not fit each other"):
        native(layer, inputs, cache, None)
