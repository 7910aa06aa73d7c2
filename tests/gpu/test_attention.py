"""PrunedKVAttention for GPUs, by Triton's interpreter, against the reference: shapes, chunks, policies, the cache."""

from __future__ import annotations

import numpy as np
import pytest

from edgellm.kernels.control import FULL, SCORE, WINDOW, Control
from tests.gpu.launch import GpuLayer
from tests.kernels.test_eviction import POLICIES, fed


def close(got: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(got, expected, atol=5e-3 * max(1, np.abs(expected).max()))


@pytest.mark.parametrize(
    ("head_dim", "kv_heads", "ratio", "rotary"),
    [(64, 1, 3, 0), (80, 2, 1, 32), (96, 1, 4, 0), (128, 1, 7, 64), (256, 1, 2, 0)],
)
@pytest.mark.parametrize("few", [True, False], ids=["few", "many"])
def test_every_head_size_and_ratio(head_dim: int, kv_heads: int, ratio: int, rotary: int, few: bool) -> None:
    layer = GpuLayer(kv_heads * ratio, kv_heads, head_dim, 26, np.random.default_rng(head_dim), rotary)
    layer.split, layer.most = 16, 64 if few else 0
    for control, start, steps in ((Control(0, 0, 16, 16), 0, 9), (Control(0, 9, 16, 16), 9, 2)):
        close(*layer.both(layer.inputs(steps, start), control))


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_keeps_what_the_reference_keeps(name: str) -> None:
    """Chunks that fit, overflow and decode, rejected drafts among them; `both` compares the caches."""
    policy = POLICIES[name]._replace(heads=len(name) % 3)
    layer = GpuLayer(2, 1, 16, 26, np.random.default_rng(1), planes=policy.planes)
    layer.split, layer.most = 16, 8
    fed(
        layer, policy, 18 if policy.policy == FULL else 8, [6, 7, 1, 1] if policy.policy != FULL else [5, 1], rejected=1
    )


@pytest.mark.parametrize("few", [True, False], ids=["few", "many"])
@pytest.mark.parametrize("heads", [0, 1, 2])
def test_scores_of_groups_windows_and_splits(heads: int, few: bool) -> None:
    """Windows that end within a run, decay, groups that are no power of two, slots in several splits and blocks."""
    policy = POLICIES["all at once"]._replace(heads=heads, queries=4, anchor=1)
    layer = GpuLayer(3, 1, 16, 60, np.random.default_rng(2), planes=3)
    layer.split, layer.most = 16, 64 if few else 0
    fed(layer, policy, 40, [19, 11, 2])


@pytest.mark.parametrize("few", [True, False], ids=["few", "many"])
def test_sliding_windows_caps_and_normed_heads(few: bool) -> None:
    layer = GpuLayer(2, 1, 16, 30, np.random.default_rng(3), window=5, softcap=2.0, normed=True)
    layer.split, layer.most = 16, 64 if few else 0
    fed(layer, Control(0, 0, 0, 0, 1, WINDOW), 12, [11, 6, 1])


def test_a_whole_prompt_is_pruned_to_a_smaller_budget() -> None:
    """Many go at once and tokens behind the new budget move into the holes; then the budget grows again."""
    policy = POLICIES["vatp"]
    layer = GpuLayer(2, 1, 16, 40, np.random.default_rng(4), planes=2)
    layer.both(layer.inputs(20, 0), policy._replace(staged=20, budget=20, counted=20))
    layer.both(layer.inputs(1, 20), policy._replace(accepted=20, staged=20, budget=9, counted=1))
    assert layer.cache.position[0, 9] == 20
    layer.both(layer.inputs(4, 21), policy._replace(committed=9, accepted=1, staged=9, budget=20, counted=4))
    layer.both(layer.inputs(1, 25), policy._replace(committed=10, accepted=4, staged=20, budget=30, counted=1))


def test_ties_go_by_age_and_not_a_number_first() -> None:
    """`both` compares with the reference; here the survivors are named."""
    layer = GpuLayer(2, 1, 16, 14, np.random.default_rng(5), planes=1)
    policy = Control(0, 0, 8, 8, policy=SCORE)
    layer.both(layer.inputs(6, 0), policy)
    layer.both(layer.inputs(6, 6), policy._replace(accepted=6))
    layer.cache.score[0, :6, 0] = [1, 1, -0.0, np.nan, 0, 2]
    layer.cache.score[0, 8:14, 0] = [0, 1, 1, 1, -3, 1]
    layer.both(layer.inputs(1, 12), policy._replace(committed=6, accepted=6))
    assert sorted(layer.cache.position[0, :8]) == [0, 1, 5, 6, 7, 8, 9, 11]  # gone: 3, 10, and of the zeros 2 and 4


@pytest.mark.parametrize("name", ["committed", "norm", "heads", "anchor"])
def test_kernels_read_the_control_row_by_its_names(name: str) -> None:
    from edgellm.kernels.gpu import run

    assert getattr(run, name.upper()).value == Control._fields.index(name)
