"""PrunedKVAttention against the reference: shapes, GQA ratios, chunks, and the cache it leaves behind."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellm.kernels.attention_reference import Cache, pruned_kv_attention
from edgellm.kernels.control import FULL, SCORE, WINDOW, Control, control_of
from edgellm.kernels.kv_rows import SCALE_BYTES, from_rows
from tests.kernels.operators import run

KV = {16: "float16", 8: "int8"}


def nearly_held(got: np.ndarray, expected: np.ndarray, exact: bool = False) -> None:
    """Rows of a cache that were rounded after float32 arithmetic in another order: they may part by one step."""
    if got.dtype == np.int8:
        codes = np.abs(got[..., :-SCALE_BYTES].astype(int) - expected[..., :-SCALE_BYTES])
        assert codes.max(initial=0) <= 1
        assert (codes > 0).mean() < 0.02
        step = np.ascontiguousarray(expected[..., -SCALE_BYTES:]).view(np.float32)
        np.testing.assert_allclose(from_rows(got), from_rows(expected), atol=1.01 * step.max(), rtol=1e-4)
    elif exact:
        np.testing.assert_array_equal(got, expected)
    else:
        np.testing.assert_allclose(got.astype(np.float32), expected.astype(np.float32), rtol=2**-10, atol=2e-3)


def outputs(bits: int) -> list[str]:
    """Element types of what both operators that attend give."""
    return ["float32", KV[bits], KV[bits], "int32", "float32"]


@dataclass
class Layer:
    """One attention layer fed chunk by chunk, natively and by the reference."""

    heads: int
    kv_heads: int
    head_dim: int
    capacity: int
    rng: np.random.Generator
    rotary: int = 0
    window: int = 0
    softcap: float = 0.0
    normed: bool = False
    planes: int = 0
    bits: int = 16
    shifted: bool = False

    def __post_init__(self) -> None:
        self.cache = Cache.empty(self.kv_heads, self.capacity, self.head_dim, self.planes, self.bits)
        self.rotary = self.rotary or self.head_dim
        draw = [self.rng.normal(1, 0.5, self.head_dim).astype(np.float32) for _ in "qk"]
        self.norms: list[np.ndarray | None] = list(draw) if self.normed else [None, None]
        shift = self.rng.normal(0, 20, self.kv_heads * self.head_dim).astype(np.float32)
        self.shift = shift if self.shifted else None

    def inputs(self, steps: int, start: int) -> list[np.ndarray]:
        qkv = self.rng.normal(size=(steps, (self.heads + 2 * self.kv_heads) * self.head_dim)).astype(np.float32)
        angle = self.rng.normal(size=(steps, self.rotary // 2)).astype(np.float32)
        positions = np.arange(start, start + steps)
        return [qkv, np.cos(angle), np.sin(angle), positions]

    def both(self, inputs: list[np.ndarray], control: Control) -> tuple[np.ndarray, np.ndarray]:
        """Runs the operator and the reference on one cache; returns (native y, reference y), caches compared."""
        scale, cache = self.head_dim**-0.5, self.cache
        before = [cache.key.copy(), cache.value.copy(), cache.position.copy(), cache.score.copy()]
        rows = control_of([control._replace(budget=0), control])  # another layer's comes first
        got = self.operator(inputs, rows, before, scale)
        expected = pruned_kv_attention(
            *inputs, rows[1], cache, scale, self.window, self.softcap, *self.norms, 1e-5, self.shift
        )
        nearly_held(got[1], cache.key)
        nearly_held(got[2], cache.value, exact=True)
        np.testing.assert_array_equal(got[3], cache.position)
        np.testing.assert_allclose(got[4], cache.score, rtol=5e-3, atol=2e-3)
        return got[0], expected

    def operator(
        self, inputs: list[np.ndarray], rows: np.ndarray, cache: list[np.ndarray], scale: float
    ) -> list[np.ndarray]:
        """What is under test, with the control's second row: y, then the cache."""
        return run(
            "PrunedKVAttention", [*inputs, rows, *cache, *self.norms, self.shift], outputs(self.bits),
            heads=self.heads, kv_heads=self.kv_heads, head_dim=self.head_dim, scale=scale, window=self.window,
            softcap=self.softcap, epsilon=1e-5, layer=1,
        )  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(
    kv_heads=st.integers(1, 3), ratio=st.integers(1, 4), half=st.one_of(st.integers(1, 40), st.just(128)),
    budget=st.integers(5, 40), sinks=st.integers(0, 4), policy=st.sampled_from([FULL, WINDOW]),
    chunks=st.lists(st.integers(1, 12), min_size=1, max_size=5), partial=st.booleans(),
    near=st.sampled_from([0, 1, 7]), softcap=st.sampled_from([0.0, 2.0]), normed=st.booleans(),
    bits=st.sampled_from([16, 8]), shifted=st.booleans(), seed=st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_against_the_reference(
    isa: str, kv_heads: int, ratio: int, half: int, budget: int, sinks: int, policy: int, chunks: list[int],
    partial: bool, near: int, softcap: float, normed: bool, bits: int, shifted: bool, seed: int,
) -> None:  # fmt: skip
    head_dim = 2 * half  # up to five vector widths, and a long one
    rng = np.random.default_rng(seed)
    rotary = head_dim if head_dim < 4 or rng.random() < 0.5 else head_dim // 2
    layer = Layer(
        kv_heads * ratio,
        kv_heads,
        head_dim,
        budget + 12,
        rng,
        rotary,
        near,
        softcap,
        normed,
        bits=bits,
        shifted=shifted and not softcap,
    )
    committed, accepted, position = 0, 0, 0
    for steps in chunks:
        if policy == FULL and committed + accepted > budget:
            break
        control = Control(committed, accepted, budget, budget, sinks, policy)
        got, expected = layer.both(layer.inputs(steps, position), control)
        # At 8 bits a value between two codes may round either way, which moves a logit by a step of its key; a shifted
        # key's steps are several times as wide.
        near_enough = 5e-3 if bits == 16 else 2e-2 if layer.shift is None else 6e-2
        assert np.abs(got - expected).max() < near_enough * max(1, np.abs(expected).max())
        committed = min(budget, committed + accepted)
        accepted = steps - 1 if partial and steps > 1 else steps  # a rejected draft is simply not committed
        position += accepted


def test_window_keeps_sinks_and_the_newest() -> None:
    layer = Layer(2, 1, 16, capacity=12, rng=np.random.default_rng(0))
    committed = accepted = 0
    for start in range(0, 24, 4):
        layer.both(layer.inputs(4, start), Control(committed, accepted, 8, 8, 2, WINDOW))
        committed, accepted = min(8, committed + accepted), 4
    assert sorted(layer.cache.position[0, :8]) == [0, 1, 14, 15, 16, 17, 18, 19]  # 20 … 23 are staged


def test_chunks_give_what_one_run_gives() -> None:
    rng = np.random.default_rng(5)
    whole, parts = Layer(4, 2, 32, 48, rng), Layer(4, 2, 32, 48, rng)
    inputs = whole.inputs(12, 0)
    expected, _ = whole.both(inputs, Control(0, 0, 32, 32))
    first, _ = parts.both([x[:5] for x in inputs], Control(0, 0, 32, 32))
    second, _ = parts.both([x[5:] for x in inputs], Control(0, 5, 32, 32))
    np.testing.assert_allclose(np.concatenate([first, second]), expected, atol=2e-5)


@pytest.mark.parametrize("bits", [16, 8])
def test_a_shift_that_all_keys_share_changes_nothing_but_them(bits: int) -> None:
    plain, shifted = (Layer(4, 2, 32, 48, np.random.default_rng(5), bits=bits) for _ in "ab")
    inputs = plain.inputs(12, 0)
    shifted.shift = np.full(64, 0.5, np.float32)
    expected, _ = plain.both(inputs, Control(0, 0, 32, 32))
    got, _ = shifted.both(inputs, Control(0, 0, 32, 32))
    np.testing.assert_allclose(got, expected, atol=2e-3 if bits == 16 else 5e-2)
    assert not np.array_equal(plain.cache.key, shifted.cache.key)
    shifted.softcap = 2.0
    with pytest.raises(Exception, match="a soft cap would not drop that"):
        shifted.both(inputs, Control(0, 0, 32, 32))


@pytest.mark.parametrize(
    ("control", "message"),
    [
        (Control(5, 4, 8, 8), "the cache is full"),
        (Control(9, 0, 8, 8), "control out of range"),
        (Control(0, 5, 8, 8), "control out of range"),
        (Control(0, 0, 8, 8, policy=SCORE, counted=4), "control out of range"),
        (Control(0, 0, 8, 8, policy=SCORE, heads=3), "control out of range"),
        (Control(0, 0, 8, 8, policy=SCORE, forget=-1), "control out of range"),
        (Control(0, 0, 8, 8, policy=SCORE, queries=3, anchor=3), "control out of range"),
        (Control(0, 0, 8, 10), "staging area"),
        (Control(6, 3, 7, 8, policy=WINDOW), "lies in the budget"),
        (Control(0, 0, 8, 8, 8, WINDOW), "sinks fill"),
        (Control(0, 0, 8, 8, 4, SCORE, recent=5), "exceed the budget"),
        (Control(0, 0, 8, 8, policy=SCORE, queries=5), "too few planes"),
        (Control(0, 0, 8, 8, 0, 7), "unknown policy"),
    ],
)
def test_a_control_that_cannot_be_is_refused(control: Control, message: str) -> None:
    layer = Layer(2, 1, 16, capacity=12, rng=np.random.default_rng(0), planes=2)
    with pytest.raises(Exception, match=message):
        layer.both(layer.inputs(3, 0), control)
