from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edgellm.export import prune
from edgellm.runtime.errors import EdgellmError

PATTERNS = [(2, 4), (4, 8), (1, 4), (3, 4), (8, 16), (1, 8)]
ROLES = ["q", "k", "v", "o", "gate", "up", "down"]
seeds = st.integers(0, 2**32)
patterns = st.sampled_from(PATTERNS)


def layer(seed: int, m: int, coarse: bool = False) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Weights and statistics of a small layer of sizes that m divides; coarse values tie often."""
    generator = torch.Generator().manual_seed(seed)
    hidden, ff = 2 * m, 3 * m

    def matrix(rows: int, columns: int) -> torch.Tensor:
        w = torch.randn(rows, columns, generator=generator)
        return w.round() if coarse else w

    weights = {role: matrix(hidden, hidden) for role in ("q", "k", "v", "o")}
    weights |= {"gate": matrix(ff, hidden), "up": matrix(ff, hidden), "down": matrix(hidden, ff)}
    stats = {role: torch.rand(w.shape[1], generator=generator, dtype=torch.float64) * 10 for role, w in weights.items()}
    return weights, stats


@given(seed=seeds, pattern=patterns, method=st.sampled_from(prune.METHODS), role=st.sampled_from(ROLES), coarse=...)
def test_exactly_n_of_every_m_stay_on_the_right_axis(
    seed: int, pattern: tuple[int, int], method: str, role: str, coarse: bool
) -> None:
    n, m = pattern
    weights, stats = layer(seed, m, coarse)
    kept = prune.mask(method, f"layers.3.{role}", weights[role], stats, n, m)
    along = "out" if method == "dass" and role in ("gate", "up") else "in"
    assert prune.axis(method, f"layers.3.{role}") == along
    groups = kept.T if along == "out" else kept
    assert (groups.reshape(groups.shape[0], -1, m).sum(-1) == n).all()


@given(seed=seeds, pattern=patterns, role=st.sampled_from(ROLES))
def test_dass_keeps_the_largest_scores_of_its_groups(seed: int, pattern: tuple[int, int], role: str) -> None:
    n, m = pattern
    weights, stats = layer(seed, m)
    w = weights[role].tolist()
    if role in ("gate", "up"):
        score = [[abs(x) * float(stats["down"][r]) ** 0.25 for x in row] for r, row in enumerate(w)]
        groups = [[(r + i, c) for i in range(m)] for r in range(0, len(w), m) for c in range(len(w[0]))]
    else:
        score = [[abs(x) * math.sqrt(float(stats[role][c])) for c, x in enumerate(row)] for row in w]
        groups = [[(r, c + i) for i in range(m)] for r in range(len(w)) for c in range(0, len(w[0]), m)]
    expected = torch.zeros(len(w), len(w[0]), dtype=torch.bool)
    for group in groups:
        for r, c in sorted(group, key=lambda at: -score[at[0]][at[1]])[:n]:
            expected[r, c] = True
    assert torch.equal(prune.mask("dass", role, weights[role], stats, n, m), expected)


@given(
    seed=seeds, pattern=patterns, role=st.sampled_from(ROLES), factor=st.sampled_from([2.0**-20, 0.25, 16.0, 2.0**12])
)
def test_scaling_the_statistics_changes_no_mask(seed: int, pattern: tuple[int, int], role: str, factor: float) -> None:
    weights, stats = layer(seed, pattern[1])
    scaled = {name: s * factor for name, s in stats.items()}
    for method in ("dass", "wanda"):
        masks = [prune.mask(method, role, weights[role], s, *pattern) for s in (stats, scaled)]
        assert torch.equal(*masks)


@given(seed=seeds, pattern=patterns, role=st.sampled_from(["gate", "up"]), constant=st.floats(1e-3, 1e3))
def test_constant_statistics_make_dass_magnitude_along_the_outputs(
    seed: int, pattern: tuple[int, int], role: str, constant: float
) -> None:
    weights, stats = layer(seed, pattern[1])
    stats["down"] = torch.full_like(stats["down"], constant)
    transposed = prune.mask("magnitude", "down", weights[role].T.contiguous(), None, *pattern).T
    assert torch.equal(prune.mask("dass", role, weights[role], stats, *pattern), transposed)


@given(seed=seeds, pattern=patterns, role=st.sampled_from(ROLES))
def test_wanda_weighs_by_the_matrix_own_inputs(seed: int, pattern: tuple[int, int], role: str) -> None:
    weights, stats = layer(seed, pattern[1])
    weighted = weights[role].double() * stats[role].sqrt()
    expected = prune.mask("magnitude", role, weighted, None, *pattern)
    assert torch.equal(prune.mask("wanda", role, weights[role], stats, *pattern), expected)


def test_rows_feeding_weak_neurons_lose_more() -> None:
    weights, stats = layer(0, 8)
    stats["down"][0::2] *= 1e-6
    kept = prune.mask("dass", "gate", weights["gate"], stats, 4, 8)
    assert int(kept[0::2].sum()) < int(kept[1::2].sum()) / 2
    flat = prune.mask("wanda", "gate", weights["gate"], stats, 4, 8)
    assert int(flat[0::2].sum()) == int(flat[1::2].sum())


def test_ties_go_to_the_lower_index() -> None:
    kept = prune.mask("magnitude", "q", torch.ones(3, 8), None, 2, 4)
    assert kept.tolist() == [[True, True, False, False] * 2] * 3


@pytest.mark.parametrize("method", prune.METHODS)
def test_panels_make_no_difference(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    weights, stats = layer(5, 8)
    whole = {role: prune.mask(method, role, w, stats, 4, 8) for role, w in weights.items()}
    monkeypatch.setattr(prune, "_WEIGHTS_AT_ONCE", 1)
    for role, w in weights.items():
        assert torch.equal(prune.mask(method, role, w, stats, 4, 8), whole[role])


def test_refusals_name_the_reason() -> None:
    weights, stats = layer(0, 4)
    with pytest.raises(EdgellmError, match="up: 12 outputs do not divide into groups of 8"):
        prune.mask("dass", "up", weights["up"], stats, 4, 8)
    with pytest.raises(EdgellmError, match="down: 12 inputs do not divide into groups of 8"):
        prune.mask("wanda", "down", weights["down"], stats, 4, 8)
    with pytest.raises(EdgellmError, match='"sparse" is not known'):
        prune.mask("sparse", "up", weights["up"], stats, 2, 4)
    with pytest.raises(EdgellmError, match="4:4 keeps 4 of 4"):
        prune.mask("wanda", "up", weights["up"], stats, 4, 4)
    with pytest.raises(EdgellmError, match="needs down's activation statistics, 12 finite values"):
        prune.mask("dass", "up", weights["up"], {"up": stats["up"]}, 2, 4)
    with pytest.raises(EdgellmError, match="needs up's"):
        prune.mask("wanda", "up", weights["up"], None, 2, 4)
    with pytest.raises(EdgellmError, match="not finite"):
        prune.mask("wanda", "up", weights["up"], {"up": stats["up"] * float("nan")}, 2, 4)
