"""How much of a KV budget each layer needs: one share of importance to keep for all of them (PrefixKV, 2412.03409)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from edgellm.runtime.kv_policy import KVPolicy
from edgellm.runtime.layer_budgets import spread
from edgellm.runtime.session import Session

RATIO = 4  # ours: a sample has so many times the budget
SAMPLES = 10  # the paper's


def curve(importance: NDArray[np.float32], sinks: int) -> NDArray[np.float64]:
    """The share P(o) of a layer's importance [kv_heads, T] that its first sinks and then its o - sinks most important
    tokens hold, o = 1 … T, float64 [T]: the mean over heads, each of which keeps its own."""
    ranked = np.sort(importance[:, sinks:].astype(np.float64), axis=1)[:, ::-1]
    held = np.cumsum(np.concatenate([importance[:, :sinks].astype(np.float64), ranked], axis=1), axis=1)
    share: NDArray[np.float64] = (held / held[:, -1:]).mean(axis=0)
    return share


def needed(curves: Sequence[NDArray[np.float64]], share: float) -> list[int]:
    """Tokens a layer, min{o: P_l(o) >= share}; it grows with the share."""
    return [min(int(np.searchsorted(one, share)) + 1, len(one)) for one in curves]


def threshold(curves: Sequence[NDArray[np.float64]], mean: float) -> float:
    """The largest share that all layers can hold with `mean` tokens each on average, by binary search."""
    low, high = 0.0, 1.0
    for _ in range(50):
        share = (low + high) / 2
        low, high = (share, high) if sum(needed(curves, share)) <= mean * len(curves) else (low, share)
    return low


def prefix_budgets(session: Session, policy: KVPolicy, ids: Sequence[int]) -> KVPolicy:
    """`policy` with a budget for every layer, whose mean is its budget: from curves averaged over samples of `ids`.

    session: reads prompts whole under the same policy. A sample has RATIO times the budget, or what context and text
    allow; the budgets it finds there are scaled. Raises UsageError where a budget leaves no choice.
    """
    model = session.manifest.model
    length = min(RATIO * policy.budget, model.context, len(ids))
    total = np.zeros((model.layers, length))
    for start in range(0, min(len(ids), SAMPLES * length) - length + 1, length):
        session.reset()
        session.prefill(ids[start : start + length])
        total += [curve(session.kv_importance(layer), policy.sinks) for layer in range(model.layers)]
    curves = list(total / total[:, -1:])
    wanted = needed(curves, threshold(curves, max(1, length / RATIO)))
    return replace(policy, budgets=spread(wanted, policy.budget, policy.least, model.context))


def whole(policy: KVPolicy, context: int) -> str:
    """--kv of the session that prefix_budgets wants."""
    return str(replace(policy, budget=context, prefill="whole", layers="alike", pool=0))
