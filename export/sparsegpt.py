"""Rounding and pruning that correct their own errors: what a weight loses, those of later inputs make good.

SparseGPT (arXiv 2301.00774) and, without a mask, GPTQ (arXiv 2210.17323), as one sweep over groups of inputs. With the
Hessian factored H = R R^T, R upper triangular, the error of Q against W is ||(W - Q) R||^2. Its term for input j holds
only inputs up to j in the sweep's order, so W_j + sum_{i<j} (W - Q)_i R_ij / R_jj is what Q_j has to be nearest to, and
an error there costs R_jj^2: the papers' updates by rows of the inverse come to the same (a test has them beside it).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from edgellm.export.quantize import checked
from edgellm.export.refine import refine
from edgellm.export.scales import Grid, nearest, reciprocal, search
from edgellm.kernels.layout import Format, Quantized

# Of the mean diagonal, added to every input. The papers' 0.01 fits calibration text too well: on C4 that it had not
# seen 0.1 lost least of 0.003 to 1, from 16k tokens as from 33k (SmolLM2, q, o, up and down of five layers).
DAMPING = 0.1


@dataclass(frozen=True)
class Feedback:
    """order: int64 [in], inputs in the order of the sweep, whole groups at a time. factor: float32 [in, in], R with its
    columns divided by their diagonal; importance: float32 [in], the diagonal squared; both in that order. hessian:
    float32 [in, in], damped, in the inputs' own order."""

    order: Tensor
    factor: Tensor
    importance: Tensor
    hessian: Tensor


def feedback(hessian: Tensor, group: int) -> Feedback:
    """Factor a Hessian X^T X [in, in]. Groups with the largest inputs come first, and the largest inputs first in
    them: their errors have the most inputs left to make them good."""
    h = hessian.to(torch.float64, copy=True)
    mean = float(h.diagonal().mean())
    h.diagonal().add_(DAMPING * mean if mean > 0 else 1.0)
    damped = h.float()
    sizes = h.diagonal().view(-1, group)
    groups = sizes.sum(1).argsort(descending=True, stable=True)
    within = sizes[groups].argsort(dim=1, descending=True, stable=True)
    order = (groups[:, None] * group + within).flatten()
    h = h[order][:, order]
    factor = torch.linalg.cholesky(h.flip(0, 1)).flip(0, 1)
    diagonal = factor.diagonal().clone()
    return Feedback(order, factor.div_(diagonal).float(), diagonal.square().float(), damped)


def sparsegpt(
    weight: Tensor, found: Feedback, f: Format, mask: Tensor | None = None, refined: bool = True
) -> Quantized:
    """Round a weight [out, in] to `f`, each group's grid searched when the sweep reaches it, and refine that
    (refine.py).

    mask: bool [out, in], True where kept; None with f.n < f.m along the input: the sweep chooses, for every m inputs,
    the n whose loss would cost most. Raises EdgellmError as quantize.round_to_nearest does.
    """
    _, kept, grids, code = _sweep(weight, found, f.group, (f.n, f.m), mask, (f.bits, f.zero))
    scale, minimum = (torch.stack(parts, dim=1) for parts in zip(*grids, strict=True))
    if refined:
        code, (scale, minimum) = refine(weight, found.hessian, code, (scale, minimum), f.bits, f.zero, kept)
    return checked(f, code, scale, minimum, kept)


def updated(weight: Tensor, found: Feedback, group: int, n: int, m: int, mask: Tensor | None = None) -> Tensor:
    """The same without rounding: the kept weights as they make good what the dropped ones did, float32 [out, in]."""
    return _sweep(weight, found, group, (n, m), mask, None)[0]


def simulated(weight: Tensor, found: Feedback, group: int, bits: int, zero: str) -> Tensor:
    """The dense weight as the same sweep rounds it to any width, even 3 bits, which no tile holds: float32."""
    _, _, grids, code = _sweep(weight, found, group, (1, 1), None, (bits, zero))
    scale, minimum = (torch.stack(parts, dim=1) for parts in zip(*grids, strict=True))
    code, found_grid = refine(weight, found.hessian, code, (scale, minimum), bits, zero)
    scale, minimum = (part.repeat_interleave(group, 1) for part in found_grid)
    return code * scale + minimum


def _sweep(
    weight: Tensor, found: Feedback, group: int, nm: tuple[int, int], mask: Tensor | None, to: tuple[int, str] | None
) -> tuple[Tensor, Tensor | None, list[Grid], Tensor]:
    """(values [out, in], what is kept, grids by group [out], codes uint8 [out, in]) in the inputs' own order.
    to: bits and zero of the grids, or None: not rounded."""
    outputs, inputs = weight.shape
    w = weight.T[found.order].contiguous()  # an input's weights side by side
    given = None if mask is None else mask.T[found.order]
    off, values, code = torch.zeros_like(w), torch.empty_like(w), torch.zeros(w.shape, dtype=torch.uint8)
    chosen = torch.empty(w.shape, dtype=torch.bool) if nm[0] < nm[1] else None
    grids: list[Grid] = [(torch.empty(0), torch.empty(0))] * (inputs // group)
    for start in range(0, inputs, group):
        here = slice(start, start + group)
        target = torch.addmm(w[here], found.factor[:start, here].T, off[:start])
        factor, importance = found.factor[here, here], found.importance[here]
        kept = None
        if chosen is not None:
            places = found.order[here] - int(found.order[here].min())
            kept = given[here] if given is not None else _costly(target, importance, places, *nm)
            chosen[here] = kept
        grid: Grid | None = None
        if to is not None:
            counts = importance.expand(outputs, group) if kept is None else importance * kept.T
            grid = search(target.T.contiguous(), counts, *to)
            grids[int(found.order[start]) // group] = grid
            inverse, low = reciprocal(grid)
        for j in range(group):
            wanted = torch.addmv(target[j], off[here][:j].T, factor[:j, j]) if j else target[j]
            if grid is not None and to is not None:
                chosen_code = nearest(wanted, inverse, low, to[0])
                code[start + j] = chosen_code.to(torch.uint8)
                wanted = chosen_code * grid[0] + grid[1]
            values[start + j] = wanted if kept is None else torch.where(kept[j], wanted, 0)
            off[start + j] = w[start + j] - values[start + j]
    back = found.order.argsort()
    own = None if chosen is None else chosen[back].T.contiguous()
    return values[back].T.contiguous(), own, grids, code[back].T.contiguous()


def _costly(target: Tensor, importance: Tensor, places: Tensor, n: int, m: int) -> Tensor:
    """Of every m inputs of a group, in their own order, the n that cost most to drop: bool [group, out]."""
    back = places.argsort()
    cost = (target.square() * importance[:, None])[back].view(-1, m, target.shape[1])
    kept = torch.zeros(cost.shape, dtype=torch.bool)
    kept.scatter_(1, cost.argsort(dim=1, descending=True, stable=True)[:, :n], True)
    return kept.view(target.shape)[places]
