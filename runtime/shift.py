"""The carrier "delta": a vector added to what the output head reads, its gradient in closed form (methods A5.4).

With z_t = W h_t known from one run, W (h_t + delta) = z_t + W delta: the body never runs again, and the KV cache stays
as it is. dL/d delta = W^T sum_t dL/dz_t, so that a step is two products of the head with one row.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgellm.runtime.adapter import Tensors
from edgellm.runtime.head import Head
from edgellm.runtime.objective import Example, Losses, Weights, log_softmax
from edgellm.runtime.session import shift_logits

F32 = NDArray[np.float32]


class ShiftGradient:
    """The head, and the logits of the example that `observe` was told of, with nothing added to them.

    softcap: of the output's logits; 0: none.
    """

    def __init__(self, head: Head, softcap: float) -> None:
        self._head, self._softcap = head, softcap
        self._observed: tuple[Example, F32] | None = None

    def observe(self, example: Example, logits: F32) -> None:
        """The base model's logits [M, vocabulary] at an example's prompt rows; those at its answer's it has itself."""
        self._observed = example, logits

    def losses(self, example: Example, tensors: Tensors) -> Losses:
        """See Gradient.losses."""
        return self._slopes(example, tensors, Weights())[0]

    def step(self, example: Example, tensors: Tensors, weights: Weights) -> tuple[Losses, Tensors]:
        """See Gradient.step."""
        losses, slope = self._slopes(example, tensors, weights)
        return losses, {"delta": self._head.gradient(slope)}

    def _slopes(self, example: Example, tensors: Tensors, weights: Weights) -> tuple[Losses, F32]:
        """The losses, and the sum over rows of dL/dz before the cap, [vocabulary]."""
        shift = self._head.shift(tensors["delta"])

        def moved(logits: F32) -> F32:
            z = logits.copy()
            shift_logits(z, shift, self._softcap)
            return z

        assert self._observed is not None
        assert self._observed[0] is example
        z = moved(self._observed[1])
        log_p = log_softmax(z)
        each, rows = np.float32(1 / max(1, len(z))), np.arange(len(z))
        ida = -float(log_p[rows, example.targets].sum()) * float(each)
        slope = np.exp(log_p) * (weights.ida * each)
        slope[rows, example.targets] -= weights.ida * each
        total = (slope * self._bent(z)).sum(axis=0)

        z = moved(example.reference)
        log_p = log_softmax(z)
        p, apart = np.exp(log_p), log_p - log_softmax(example.reference)
        entropy, kl = -(p * log_p).sum(axis=1, keepdims=True), (p * apart).sum(axis=1, keepdims=True)
        slope = p * (weights.kl * (apart - kl) - weights.entropy * (log_p + entropy))
        total += (slope * self._bent(z)).sum(axis=0)
        return Losses(ida, float(entropy.sum()), float(kl.sum())), total.astype(np.float32)

    def _bent(self, z: F32) -> F32 | float:
        """dz capped / dz."""
        return 1 - (z / self._softcap) ** 2 if self._softcap else 1.0
