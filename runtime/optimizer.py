"""Adam (arXiv 1412.6980) over a few small arrays, within a trust region around where it began."""

from __future__ import annotations

import math

import numpy as np

from edgellm.runtime.adapter import Tensors


class Adam:
    """tensors: the current values. They stay within `radius` of the first ones: root mean square over all elements."""

    def __init__(self, start: Tensors, radius: float, beta1: float = 0.9, beta2: float = 0.999) -> None:
        self._start = start
        self.tensors: Tensors = {name: value.copy() for name, value in start.items()}
        self._radius, self._betas = radius, (beta1, beta2)
        self._mean = {name: np.zeros_like(value) for name, value in start.items()}
        self._square = {name: np.zeros_like(value) for name, value in start.items()}
        self._steps = 0

    def step(self, gradients: Tensors, rate: float) -> None:
        """One step, then back to the trust region. `tensors` are new arrays: who kept the old ones still has them."""
        self._steps += 1
        first, second = (1 - beta**self._steps for beta in self._betas)
        moved = {}
        for name, gradient in gradients.items():
            mean, square = self._mean[name], self._square[name]
            mean += (1 - self._betas[0]) * (gradient - mean)
            square += (1 - self._betas[1]) * (gradient * gradient - square)
            update = (mean / first) / (np.sqrt(square / second) + 1e-8)
            moved[name] = self.tensors[name] - np.float32(rate) * update
        far = self.distance(moved)
        if far > self._radius:
            back = np.float32(self._radius / far)
            moved = {name: self._start[name] + back * (value - self._start[name]) for name, value in moved.items()}
        self.tensors = moved

    def distance(self, tensors: Tensors) -> float:
        """Root mean square of the difference from where it began."""
        squares = sum(float(((value - self._start[name]) ** 2).sum()) for name, value in tensors.items())
        return math.sqrt(squares / sum(value.size for value in tensors.values()))
