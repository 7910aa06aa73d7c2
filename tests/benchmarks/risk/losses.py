"""MGKD's losses after methods.md A3.2, each a mean over rows; what the abstract leaves open is a reconstruction.

s: logits [K, B] of K students; t [B] of the teacher; states [K, B, width] and [B, width] before their last layers; w
[K, B] row weights; y [B] labels. Each gives [K], one for every student.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

TEMPERATURE, TAU = 2.0, 0.2
MOST = 10.0  # what a defaulter may count at most


def default_weight(y: Tensor) -> float:
    """What a defaulter counts where they are re-weighted: min(10, sqrt(n0 / n1))."""
    ones = float(y.sum())
    return float(min(MOST, ((len(y) - ones) / ones) ** 0.5))


def supervised(s: Tensor, y: Tensor, w: Tensor) -> Tensor:
    """Mean of w * cross-entropy."""
    return (w * functional.binary_cross_entropy_with_logits(s, y.expand_as(s), reduction="none")).mean(-1)


def soft(s: Tensor, t: Tensor, w: Tensor) -> Tensor:
    """T^2 * mean w * KL(sigmoid(t / T) || sigmoid(s / T)), T = 2."""
    return TEMPERATURE**2 * (w * _divergence(t / TEMPERATURE, s / TEMPERATURE)).mean(-1)


def feature(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean of 1 - cosine, the student's states projected to the teacher's width by the caller."""
    return (1 - functional.cosine_similarity(student, teacher, dim=-1)).mean(-1)


def fine(student: Tensor, teacher: Tensor, defaulters: Tensor) -> Tensor:
    """Whom a defaulter (bool [B]) is like: mean over them of KL(softmax_j cos_teacher / tau || softmax_j cos_student /
    tau) over the other rows j of the batch, tau = 0.2; 0 without defaulters."""
    if not bool(defaulters.any()):
        return student.new_zeros(len(student))
    self_ = torch.eye(len(defaulters), dtype=torch.bool)[defaulters]

    def likeness(states: Tensor) -> Tensor:
        unit = functional.normalize(states, dim=-1)
        cosines = unit[..., defaulters, :] @ unit.transpose(-1, -2) / TAU
        return cosines.masked_fill(self_, -1e9).log_softmax(dim=-1)

    own, wanted = likeness(student), likeness(teacher)
    return (wanted.exp() * (wanted - own)).sum(-1).mean(-1)


def own_average(s: Tensor, average: Tensor) -> Tensor:
    """KL(sigmoid(average) || sigmoid(s)), average: logits of the student's exponential moving average."""
    return _divergence(average, s).mean(-1)


def _divergence(wanted: Tensor, found: Tensor) -> Tensor:
    """KL of two Bernoulli distributions by their logits, a row each."""
    p = wanted.sigmoid()
    gap = functional.logsigmoid(wanted) - functional.logsigmoid(found)
    return p * gap + (1 - p) * (functional.logsigmoid(-wanted) - functional.logsigmoid(-found))
