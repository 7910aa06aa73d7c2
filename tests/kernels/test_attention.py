"""PrunedKVAttention against the reference: shapes, GQA ratios, chunks, and the cache it leaves behind."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellm.kernels.attention_reference import Cache, pruned_kv_attention
from edgellm.kernels.control import FULL, SCORE, WINDOW, Control, control_of
from tests.kernels.operators import run

OUTPUTS = ["float32", "float16", "float16", "int32", "float32"]


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

    def __post_init__(self) -> None:
        self.cache = Cache.empty(self.kv_heads, self.capacity, self.head_dim, self.planes)
        self.rotary = self.rotary or self.head_dim
        draw = [self.rng.normal(1, 0.5, self.head_dim).astype(np.float32) for _ in "qk"]
        self.norms: list[np.ndarray] = draw if self.normed else []

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
            *inputs, rows[1], cache, scale, self.window, self.softcap, *(self.norms or (None, None)), 1e-5
        )
        # Both round to half precision after float32 arithmetic in another order: they may part by one step.
        np.testing.assert_allclose(got[1].astype(np.float32), cache.key.astype(np.float32), rtol=2**-10, atol=2e-3)
        np.testing.assert_array_equal(got[2], cache.value)
        np.testing.assert_array_equal(got[3], cache.position)
        np.testing.assert_allclose(got[4], cache.score, rtol=5e-3, atol=2e-3)
        return got[0], expected

    def operator(
        self, inputs: list[np.ndarray], rows: np.ndarray, cache: list[np.ndarray], scale: float
    ) -> list[np.ndarray]:
        """What is under test, with the control's second row: y, then the cache."""
        return run(
            "PrunedKVAttention", [*inputs, rows, *cache, *self.norms], OUTPUTS,
            heads=self.heads, kv_heads=self.kv_heads, head_dim=self.head_dim, scale=scale, window=self.window,
            softcap=self.softcap, epsilon=1e-5, layer=1,
        )  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(
    kv_heads=st.integers(1, 3), ratio=st.integers(1, 4), half=st.one_of(st.integers(1, 40), st.just(128)),
    budget=st.integers(5, 40), sinks=st.integers(0, 4), policy=st.sampled_from([FULL, WINDOW]),
    chunks=st.lists(st.integers(1, 12), min_size=1, max_size=5), partial=st.booleans(),
    near=st.sampled_from([0, 1, 7]), softcap=st.sampled_from([0.0, 2.0]), normed=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_against_the_reference(
    isa: str, kv_heads: int, ratio: int, half: int, budget: int, sinks: int, policy: int, chunks: list[int],
    partial: bool, near: int, softcap: float, normed: bool, seed: int,
) -> None:  # fmt: skip
    head_dim = 2 * half  # up to five vector widths, and a long one
    rng = np.random.default_rng(seed)
    rotary = head_dim if head_dim < 4 or rng.random() < 0.5 else head_dim // 2
    layer = Layer(kv_heads * ratio, kv_heads, head_dim, budget + 12, rng, rotary, near, softcap, normed)
    committed, accepted, position = 0, 0, 0
    for steps in chunks:
        if policy == FULL and committed + accepted > budget:
            break
        control = Control(committed, accepted, budget, budget, sinks, policy)
        got, expected = layer.both(layer.inputs(steps, position), control)
        assert np.abs(got - expected).max() < 5e-3 * max(1, np.abs(expected).max())
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
