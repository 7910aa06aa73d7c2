"""MGKD's losses after methods.md A3.2, each a mean over rows; what the abstract leaves open is a reconstruction.

s, t: logits [B] of student and teacher; states [B, width] before the last layer; w [B] row weights; y [B] labels.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

TEMPERATURE, TAU = 2.0, 0.2
MOST = 10.0  # what a defaulter may count at most


def row_weights(y: Tensor, known: Tensor, reweight: bool) -> Tensor:
    """1 for y = 0, min(10, sqrt(n0 / n1)) for defaulters among the known rows, or 1 for all."""
    if not reweight:
        return torch.ones_like(y)
    ones = float(y[known].sum())
    return torch.where(y == 1, min(MOST, ((float(known.sum()) - ones) / ones) ** 0.5), 1.0)


def supervised(s: Tensor, y: Tensor, w: Tensor, known: Tensor) -> Tensor:
    """Mean over the known rows (bool [B]) of w * cross-entropy; 0 where none is."""
    each = w * functional.binary_cross_entropy_with_logits(s, y, reduction="none")
    return (each * known).sum() / known.sum().clamp_min(1)


def soft(s: Tensor, t: Tensor, w: Tensor) -> Tensor:
    """T^2 * mean w * KL(sigmoid(t / T) || sigmoid(s / T)), T = 2."""
    return TEMPERATURE**2 * (w * _divergence(t / TEMPERATURE, s / TEMPERATURE)).mean()


def feature(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean of 1 - cosine, the student's states projected to the teacher's width by the caller."""
    return (1 - functional.cosine_similarity(student, teacher, dim=-1)).mean()


def fine(student: Tensor, teacher: Tensor, defaulters: Tensor) -> Tensor:
    """Whom a defaulter (bool [B]) is like: mean over them of KL(softmax_j cos_teacher / tau || softmax_j cos_student /
    tau) over the other rows j of the batch, tau = 0.2; 0 without defaulters."""
    if not bool(defaulters.any()):
        return student.new_zeros(())
    others = torch.eye(len(student), dtype=torch.bool)[defaulters].logical_not()

    def likeness(states: Tensor) -> Tensor:
        unit = functional.normalize(states, dim=-1)
        return (unit[defaulters] @ unit.T / TAU)[others].view(len(others), -1).log_softmax(dim=-1)

    own, wanted = likeness(student), likeness(teacher)
    return functional.kl_div(own, wanted, reduction="batchmean", log_target=True)


def own_average(s: Tensor, average: Tensor) -> Tensor:
    """KL(sigmoid(average) || sigmoid(s)), average: logits of the student's exponential moving average."""
    return _divergence(average, s).mean()


def _divergence(wanted: Tensor, found: Tensor) -> Tensor:
    """KL of two Bernoulli distributions by their logits, a row each."""
    p = wanted.sigmoid()
    gap = functional.logsigmoid(wanted) - functional.logsigmoid(found)
    return p * gap + (1 - p) * (functional.logsigmoid(-wanted) - functional.logsigmoid(-found))
