"""What the matrices of a block read: their Hessians X^T X over the calibration text, one for each input."""

from __future__ import annotations

import torch
from torch import Tensor

from edgellm.export.sparsegpt import Feedback, feedback

SHARED = {"k": "q", "v": "q", "up": "gate"}  # matrices that read the same input
PANEL = 1024  # rows at a time: what lies below them is their mirror image, and not multiplied again
LOUD = 4.0  # times the median token's square norm: what one token may count at most


class Hessians:
    """Sums over tokens by role, float32 [in, in], of the roles that were added; k and v are q's, up is gate's.

    A few tokens, such as the first of a text, enter some "down" hundreds of times as large as others and would be all
    that it is fitted to; the residual stream behind is as large there, and little hangs on them. They are scaled down.
    """

    def __init__(self, whole: bool = True) -> None:
        """whole: False where nothing is corrected: only diagonals are summed, and `importance` is all there is."""
        self._whole = whole
        self._sums: dict[str, Tensor] = {}
        self._factors: dict[tuple[str, int], Feedback] = {}

    def add(self, role: str, entering: Tensor) -> None:
        """Count inputs [..., in] of a matrix (decoder.Record)."""
        x = entering.reshape(-1, entering.shape[-1])
        squares = x.square().sum(dim=1)
        most = LOUD * squares.median()
        if most > 0:
            x = x * (most / squares.clamp_min(most)).sqrt()[:, None]
        inputs = x.shape[1]
        if not self._whole:
            self._sums.setdefault(role, torch.zeros(inputs)).add_(x.square().sum(dim=0))
            return
        sums = self._sums.setdefault(role, torch.zeros(inputs, inputs))
        for start in range(0, inputs, PANEL):
            here, after = slice(start, start + PANEL), slice(start + PANEL, None)
            sums[here, start:].addmm_(x[:, here].T, x[:, start:])
            sums[after, here] = sums[here, after].T

    def importance(self, role: str) -> Tensor:
        """The diagonal, float32 [in]: how often an input is large."""
        found = self._sums[SHARED.get(role, role)]
        return found.diagonal() if self._whole else found

    def energy(self, role: str, weight: Tensor) -> float:
        """||W X||^2 of a weight [out, in] over the inputs counted."""
        return float(((weight @ self._sums[SHARED.get(role, role)]) * weight).sum(dtype=torch.float64))

    def feedback(self, role: str, group: int) -> Feedback:
        """The factor that the sweep needs, made once for matrices that share it."""
        key = SHARED.get(role, role), group
        if key not in self._factors:
            self._factors = {key: feedback(self._sums[key[0]], group)}  # the one before is not needed again
        return self._factors[key]
