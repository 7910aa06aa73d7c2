"""Weights trained through the quantizer: forward they are what the bundle will hold, backward rounding is not there.

Straight-through (arXiv 1308.3432) for the weights, and LSQ's gradient (arXiv 1902.08153) for scales and minima; masks
stay. Scales and minima move relative to the scale they had, and are fp16 in every forward pass: nothing is rounded
afterwards that was not trained so.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from edgellm.export.quantize import checked
from edgellm.export.scales import codes
from edgellm.kernels.layout import Format, Quantized, dequantize

ROOM = 0.45  # of a step: how far from its code's value a latent may start


class _Rounded(torch.autograd.Function):
    """weight [out, in], scale and low [out, groups] -> scale * code + low, code = clamp(round((weight - low) / scale)).

    With u = (weight - low) / scale and g the gradient of a value: d weight = g where u is on the grid, else 0; d scale
    = sum over the group of g * (code - u on the grid, else code); d low = sum of g off the grid.
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, scale: Tensor, low: Tensor, bits: int) -> Tensor:
        ctx.save_for_backward(weight, scale, low)
        ctx.bits = bits
        w = weight.view(*scale.shape, -1)
        return codes(w, (scale, low), bits).mul_(scale[..., None]).add_(low[..., None]).view(weight.shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        weight, scale, low = ctx.saved_tensors
        w, g = weight.view(*scale.shape, -1), gradients[0].view(*scale.shape, -1)
        usable = torch.where(scale == 0, 1, scale)[..., None]
        u = (w - low[..., None]).div_(usable)
        code = codes(w, (scale, low), ctx.bits)
        on_grid = (u - code).abs_() <= 0.5
        off_grid = torch.where(on_grid, 0, g)
        stretched = (g * code).sub_(torch.where(on_grid, g * u, 0)).sum(-1)
        return (g - off_grid).view(weight.shape), stretched, off_grid.sum(-1), None


class _Half(torch.autograd.Function):
    """Rounded to fp16 and back; the gradient passes."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return values.half().float()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


class Latent:
    """The float32 weights behind a quantized matrix: weight [out, in], stretch and (with minima) shift [out, groups].

    near: the dense weights [out, in], or what an earlier training left; every latent starts where its code is still the
    same, as near to them as that allows. From the codes' own values, half a step away from any other, a short training
    at 4 bits learns nothing.
    """

    def __init__(self, q: Quantized, near: Tensor) -> None:
        self.format: Format = q.format
        self.mask = None if q.mask is None else torch.from_numpy(q.mask)
        self._scale = torch.from_numpy(q.scale).float()
        self._minimum = None if q.minimum is None else torch.from_numpy(q.minimum).float()
        self.stretch = torch.zeros_like(self._scale).requires_grad_()
        self.shift = torch.zeros_like(self._scale).requires_grad_()
        room = ROOM * self._scale.abs().repeat_interleave(q.format.group, dim=1)
        values = torch.from_numpy(dequantize(q))
        start = torch.minimum(torch.maximum(near, values - room), values + room)
        self.weight = (start if self.mask is None else start * self.mask).requires_grad_()

    @property
    def grid(self) -> list[Tensor]:
        """The trained tensors that belong to groups."""
        return [self.stretch] if self._minimum is None else [self.stretch, self.shift]

    def values(self) -> Tensor:
        """The weights that the bundle would hold, float32 [out, in], with gradients."""
        scale, low = self._grid()
        values: Tensor = _Rounded.apply(self.weight, scale, low, self.format.bits)  # type: ignore[no-untyped-call]
        return values if self.mask is None else values * self.mask

    @torch.no_grad()
    def quantized(self) -> Quantized:
        """The same as a Quantized: dequantizing it gives `values` exactly."""
        scale, low = self._grid()
        code = codes(self.weight.view(*scale.shape, -1), (scale, low), self.format.bits).view(self.weight.shape)
        return checked(self.format, code.to(torch.uint8), scale, low, self.mask)

    def _grid(self) -> tuple[Tensor, Tensor]:
        scale: Tensor = _Half.apply(self._scale * (1 + self.stretch))  # type: ignore[no-untyped-call]
        if self._minimum is None:
            return scale, -float(self.format.zero_point) * scale
        low: Tensor = _Half.apply(self._minimum + self._scale * self.shift)  # type: ignore[no-untyped-call]
        return scale, low
