"""A KV budget shared among layers by what each of them needs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgellm.runtime.errors import UsageError


def spread(weights: Sequence[float], mean: int, least: int, most: int) -> tuple[int, ...]:
    """Budgets proportional to `weights`, each from `least` to `most`, whose mean is exactly `mean`.

    A heavier layer never gets less than a lighter one, but for a token that rounding takes. Raises UsageError where
    least <= mean <= most does not hold.
    """
    if not least <= mean <= most:
        raise UsageError(f"a mean KV budget of {mean} tokens is outside {least} to {most}, the range of every layer's")
    needs, total = np.asarray(weights, np.float64), mean * len(weights)
    low, high = 0.0, most / needs.min()
    for _ in range(100):  # the scale at which what is within the range adds up; more than enough for its last bit
        scale = (low + high) / 2
        low, high = (scale, high) if np.clip(scale * needs, least, most).sum() <= total else (low, scale)
    exact = np.clip(low * needs, least, most)
    budgets = np.floor(exact).astype(int)
    missing = total - int(budgets.sum())
    order = np.argsort(np.where(budgets < most, budgets - exact, np.inf), kind="stable")  # largest remainder first
    budgets[order[:missing]] += 1
    return tuple(budgets.tolist())
