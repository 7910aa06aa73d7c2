"""How well scores order defaulters before others, and paired differences of that with intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

# 97.5 % quantiles of Student's t for 1, 2, ... degrees of freedom.
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
      2.110, 2.101, 2.093, 2.086)  # fmt: skip


def auc(score: NDArray[np.float32], y: NDArray[np.float32]) -> float:
    """The chance that a defaulter (y = 1) has a higher score than another client, ties counting half."""
    _, places, counts = np.unique(score, return_inverse=True, return_counts=True)
    rank = (np.cumsum(counts) - (counts - 1) / 2)[places]
    ones = float(y.sum())
    return float((rank[y == 1].sum() - ones * (ones + 1) / 2) / (ones * (len(y) - ones)))


def ks(score: NDArray[np.float32], y: NDArray[np.float32]) -> float:
    """Kolmogorov and Smirnov's distance: the largest true positive rate - false positive rate of any threshold."""
    hits, misses = _steps(score, y)
    return float(np.abs(hits / hits[-1] - misses / misses[-1]).max())


def ap(score: NDArray[np.float32], y: NDArray[np.float32]) -> float:
    """Average precision: the sum over thresholds of precision * what recall gains there."""
    hits, misses = _steps(score, y)
    gained = np.diff(hits, prepend=0.0)
    return float((gained * hits / (hits + misses)).sum() / hits[-1])


def interval(differences: Sequence[float]) -> tuple[float, float, float]:
    """(mean, low, high): the 95 % interval of a mean of paired differences, by Student's t, for 2 to 21 of them."""
    values = np.array(differences)
    half = _T[len(values) - 2] * values.std(ddof=1) / math.sqrt(len(values))
    return float(values.mean()), float(values.mean() - half), float(values.mean() + half)


def _steps(score: NDArray[np.float32], y: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """How many defaulters, and how many others, are at or above each threshold, from the highest."""
    order = np.argsort(-score, kind="stable")
    ends = np.append(np.nonzero(np.diff(score[order]))[0], len(order) - 1)
    return np.cumsum(y[order], dtype=np.float64)[ends], np.cumsum(1 - y[order], dtype=np.float64)[ends]
