"""N:M masks: which n of every m weights stay.

dass: arXiv 2405.01943 (the official code's `prune_wandinter`); wanda: arXiv 2306.11695; magnitude: |W|.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from edgellm.export.architectures import MATRICES, role
from edgellm.runtime.errors import EdgellmError

METHODS = ("dass", "wanda", "magnitude")
SWEPT = "sparsegpt"  # a method whose mask is chosen while weights are updated (sparsegpt.py)
SCOPES: dict[str, tuple[str, ...]] = {"mlp": ("gate", "up", "down"), "all": MATRICES}

_WEIGHTS_AT_ONCE = 1 << 22  # scores are float64 and sorted: bound what that takes


def axis(method: str, name: str) -> str:
    """Which dimension the groups of m run along: "out" for DaSS's gate and up, "in" for everything else."""
    return "out" if method == "dass" and role(name) in ("gate", "up") else "in"


def mask(method: str, name: str, weight: Tensor, stats: Mapping[str, Tensor] | None, n: int, m: int) -> Tensor:
    """The mask of one matrix, bool [out, in], True where kept: exactly n of every m, ties to the lower index.

    name: canonical, or just the role. weight: float32 [out, in]. stats: calibrate.statistics of the same layer with its
    dense weights (not needed for magnitude). Scores:
      dass, gate and up: |W| * s_down[row]^(1/4), groups of m consecutive output rows in every column
      dass, down and (ours, with scope "all") attention, and wanda: |W| * sqrt(s[column]), groups along the input
      magnitude: |W|, groups along the input
    Raises EdgellmError for an unknown method, an n:m or a size that does not divide, and statistics that do not fit.
    """
    along = axis(method, name)
    _check(method, name, weight, along, n, m)
    rows, columns = _factors(method, name, weight, stats)
    # Panels of whole groups: every m rows, or any number of rows.
    step = max(1, _WEIGHTS_AT_ONCE // (weight.shape[1] * m)) * m
    kept = torch.empty(weight.shape, dtype=torch.bool)
    for start in range(0, weight.shape[0], step):
        score = weight[start : start + step].double().abs()
        if rows is not None:
            score *= rows[start : start + step, None]
        if columns is not None:
            score *= columns[None, :]
        kept[start : start + step] = _largest(score.T, n, m).T if along == "out" else _largest(score, n, m)
    return kept


def _largest(score: Tensor, n: int, m: int) -> Tensor:
    groups = score.reshape(score.shape[0], -1, m)
    order = groups.argsort(dim=-1, descending=True, stable=True)
    kept = torch.zeros(groups.shape, dtype=torch.bool)
    return kept.scatter_(-1, order[..., :n], True).reshape(score.shape)


def _factors(
    method: str, name: str, weight: Tensor, stats: Mapping[str, Tensor] | None
) -> tuple[Tensor | None, Tensor | None]:
    if method == "magnitude":
        return None, None
    along_rows = axis(method, name) == "out"
    needed, size = ("down", weight.shape[0]) if along_rows else (role(name), weight.shape[1])
    s = None if stats is None else stats.get(needed)
    if s is None or s.shape != (size,) or not bool(torch.isfinite(s).all()) or bool((s < 0).any()):
        found = "missing" if s is None else f"of shape {tuple(s.shape)}, or not finite"
        raise EdgellmError(
            f"{method} needs {needed}'s activation statistics, {size} finite values, to prune {name}; they are {found}",
            "Check the calibration text and the checkpoint for NaN.",
        )
    return (s.double() ** 0.25, None) if along_rows else (None, s.double().sqrt())


def _check(method: str, name: str, weight: Tensor, along: str, n: int, m: int) -> None:
    if method not in METHODS:
        raise EdgellmError(f'pruning method "{method}" is not known', f"Use one of {', '.join(METHODS)}.")
    if not 0 < n < m:
        raise EdgellmError(f"{n}:{m} keeps {n} of {m} weights, which prunes nothing", "Use 0 < N < M, such as 2:4.")
    size, what = (weight.shape[0], "outputs") if along == "out" else (weight.shape[1], "inputs")
    if size % m:
        raise EdgellmError(
            f"{name}: {size} {what} do not divide into groups of {m}", "Use another N:M, or prune the MLP only."
        )
