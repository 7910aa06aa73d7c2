"""Embedding and output head, a slab of rows at a time: each is as large as many blocks, and never whole in float32."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional

from edgellm.export.architectures import Architecture
from edgellm.export.checkpoint import Source

SLAB = 1 << 24  # weights of the matrix in memory at once: 64 MiB in float32
FEW = 64  # rows that are read one by one
ROWS_AT_ONCE = 256  # of logits

Head = Callable[[Tensor], Tensor]
"""Normed states [..., hidden] -> logits [..., rows of the slab]."""


def head_name(arch: Architecture) -> str:
    """The canonical name of the output head's matrix."""
    return "embedding" if arch.tied else "head"


def pieces(rows: int, columns: int) -> Iterator[slice]:
    """Rows of a matrix in pieces of SLAB weights, in multiples of 128."""
    step = max(1, SLAB // columns // 128) * 128
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def slabs(arch: Architecture) -> Iterator[slice]:
    """The vocabulary's rows in pieces."""
    return pieces(arch.vocabulary, arch.hidden)


def embed(arch: Architecture, source: Source, ids: Tensor) -> Tensor:
    """Rows of the embedding, scaled: int64 [...] -> float32 [..., hidden]."""
    flat = ids.flatten()
    out = torch.empty(len(flat), arch.hidden)
    for rows in _rows_of(arch, flat):
        here = (flat >= rows.start) & (flat < rows.stop)
        if here.any():
            out[here] = source.matrix("embedding", rows)[flat[here] - rows.start]
    return out.view(*ids.shape, arch.hidden) * arch.embedding_scale


def _rows_of(arch: Architecture, ids: Tensor) -> Iterator[slice]:
    wanted: list[int] = sorted(set(ids.tolist()))
    return (slice(row, row + 1) for row in wanted) if len(wanted) <= FEW else slabs(arch)


def head_slabs(arch: Architecture, source: Source) -> Iterator[tuple[slice, Head]]:
    """(rows of the vocabulary, the head's product with them), soft cap included."""

    def product(weight: Tensor) -> Head:
        def logits(normed: Tensor) -> Tensor:
            found = functional.linear(normed, weight)
            cap = arch.final_softcap
            return cap * torch.tanh(found / cap) if cap else found

        return logits

    for rows in slabs(arch):
        yield rows, product(source.matrix(head_name(arch), rows))


def head_logits(arch: Architecture, source: Source, normed: Tensor) -> Tensor:
    """Logits [..., vocabulary] of normed states [..., hidden]."""
    return torch.cat([head(normed) for _, head in head_slabs(arch, source)], dim=-1)


@torch.no_grad()
def head_losses(arch: Architecture, source: Source, normed: list[Tensor], following: list[Tensor]) -> list[Tensor]:
    """-ln softmax(logits)[following] in nats, float64 [T] each, for normed states [T, hidden] and int64 ids [T] each.

    log sum exp is carried from slab to slab, so the head is read once and no row of logits is ever whole.
    """
    sums = [torch.full((len(x),), -torch.inf, dtype=torch.float64) for x in normed]
    chosen = [torch.zeros(len(x)) for x in normed]
    for rows, head in head_slabs(arch, source):
        for i, x in enumerate(normed):
            for start in range(0, len(x), ROWS_AT_ONCE):
                part = slice(start, start + ROWS_AT_ONCE)
                logits, ids = head(x[part]).float(), following[i][part]  # a product in bfloat16 is
                here = (ids >= rows.start) & (ids < rows.stop)
                chosen[i][part][here] = logits[here, ids[here] - rows.start]
                sums[i][part] = torch.logaddexp(sums[i][part], logits.logsumexp(dim=-1).double())
    return [total - own.double() for total, own in zip(sums, chosen, strict=True)]
