"""Budgets a layer from what the layers attend to: one share of importance for all of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.bundles import make_bundle

from edgellm.export.prefix_kv import curve, needed, prefix_budgets, threshold
from edgellm.runtime import load
from edgellm.runtime.kv_policy import parse_kv

RNG = np.random.default_rng(0)


def test_a_curve_is_the_share_that_the_best_tokens_hold() -> None:
    importance = np.array([[1, 5, 2, 8], [3, 0, 1, 0]], np.float32)
    np.testing.assert_allclose(curve(importance, 1), np.mean([[1 / 16, 9 / 16, 14 / 16, 1], [0.75, 1, 1, 1]], axis=0))


def test_the_threshold_spends_the_budget_and_more_importance_needs_more() -> None:
    curves = [curve(RNG.random((2, 300)).astype(np.float32) ** power, 4) for power in (1, 2, 4, 8)]
    for mean in (10, 75, 200):
        share = threshold(curves, mean)
        assert mean - 1 <= np.mean(needed(curves, share)) <= mean
    before = [0] * 4
    for share in np.linspace(0, 1, 50):
        now = needed(curves, share)
        assert all(a <= b for a, b in zip(before, now, strict=True))
        before = now
    assert needed(curves, 1.0) <= [300] * 4
    wanted = needed(curves, threshold(curves, 75))
    assert wanted == sorted(wanted, reverse=True)  # what is spread more evenly needs more tokens


def test_layers_alike_need_alike() -> None:
    same = curve(RNG.random((2, 300)).astype(np.float32), 4)
    assert len(set(needed([same] * 5, threshold([same] * 5, 75)))) == 1


@pytest.fixture(scope="module")
def bundle(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("prefix") / "bundle"
    make_bundle(tiny_model, out, bits=8, kv="vatp:40,sinks=4,layers=prefix")
    return out


def test_the_bundle_keeps_what_export_found(bundle: Path) -> None:
    session = load(bundle, threads=1)
    assert str(session.policy) == "vatp:40,sinks=4,layers=prefix"
    found = session.policy.budgets
    assert sum(found) == 2 * 40
    assert found[0] != found[1]
    assert load(bundle, kv="vatp:40,sinks=4,layers=prefix", threads=1).policy.budgets == found
    assert sum(load(bundle, kv="h2o:60,layers=prefix", threads=1).policy.budgets) == 2 * 60
    whole = load(bundle, kv="vatp:256,sinks=4,prefill=whole", threads=1)
    ids = [(7 * i * i + i) % 317 + 3 for i in range(160)]
    policy = parse_kv("vatp:40,sinks=4,layers=prefix", 256)
    wanted = prefix_budgets(whole, policy, ids).budgets
    whole.reset()
    whole.prefill(ids)
    shares = [curve(whole.kv_importance(layer), 4)[budget - 1] for layer, budget in enumerate(wanted)]
    uneven = [curve(whole.kv_importance(layer), 4)[39] for layer in range(2)]
    assert abs(shares[0] - shares[1]) < abs(uneven[0] - uneven[1])
