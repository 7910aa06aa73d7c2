"""Text that the dense model writes itself, to calibrate on and to measure with where the user gives none."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from edgellm.devices.memory import available_bytes
from edgellm.export.architectures import Architecture
from edgellm.export.checkpoint import Checkpoint, Source
from edgellm.export.decoder import KeyValue, block_forward, final_norm, load_block
from edgellm.export.vocabulary import embed, head_logits, pieces

FLOATS = 1 << 30  # bytes of a model that stays in memory whole while it writes, in float32
HALVES = 3 << 29  # and in bfloat16: a larger one is read again at every step
CACHES = 1 << 29


@dataclass(frozen=True)
class TextMemory:
    """How text is sampled: the type that all weights are held in (None: read again at every step), their bytes,
    sequences at once, and bytes of their caches."""

    held: torch.dtype | None
    held_bytes: int
    batch: int
    cache_bytes: int


def text_memory(arch: Architecture, sequences: int, length: int) -> TextMemory:
    """What the free memory allows: a quarter for the model, a quarter for the caches, within the limits above."""
    quarter = (available_bytes() or 4 << 30) // 4  # a system that does not tell
    one = arch.layers * 2 * arch.kv_heads * length * arch.head_dim * 4
    batch = max(1, min(sequences, min(quarter, CACHES) // one))
    held = next((kind for kind, most in ((torch.float32, FLOATS), (torch.bfloat16, HALVES))
                 if arch.parameters * kind.itemsize <= min(quarter, most)), None)  # fmt: skip
    return TextMemory(held, arch.parameters * held.itemsize if held else 0, batch, batch * one)


class Held:
    """A Source whose tensors were read once, but for `without`, and are held in a type; given in float32."""

    def __init__(self, arch: Architecture, source: Source, kind: torch.dtype, without: Collection[str] = ()) -> None:
        self._tensors = {
            name: torch.cat([source.matrix(name, rows).to(kind) for rows in pieces(*shape)])
            if shape[1]
            else source.vector(name)
            for name, shape in arch.tensors()
            if name not in without
        }

    def matrix(self, name: str, rows: slice | None = None) -> Tensor:
        """float32 [out, in], or these rows of it."""
        whole = self._tensors[name]
        return (whole if rows is None else whole[rows]).float()

    def vector(self, name: str) -> Tensor:
        """float32 [length]."""
        return self._tensors[name]


@torch.no_grad()
def write_text(
    checkpoint: Checkpoint,
    sequences: int,
    length: int,
    seed: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Tensor:
    """Calibration text that the dense model writes itself: int64 [sequences, length], sampled at temperature 1.

    Every sequence begins with bos (or eos) and goes on through ends of turns or documents. A small model stays in
    memory whole (text_memory); a larger one is read again at every step, all sequences at once.
    progress: called with tokens of each sequence (done, total).
    """
    arch, tokens = checkpoint.architecture, checkpoint.tokens
    plan = text_memory(arch, sequences, length)
    begin = next((token for token in (tokens["bos"], tokens["eos"]) if token is not None), 0)
    generator = torch.Generator().manual_seed(seed)
    source: Source = checkpoint if plan.held is None else Held(arch, checkpoint, plan.held)
    written: list[Tensor] = []
    batches = range(0, sequences, plan.batch)
    for start in batches:
        size = min(plan.batch, sequences - start)
        ids = torch.full((size, length), begin, dtype=torch.int64)
        shape = (size, arch.kv_heads, length, arch.head_dim)
        caches = [KeyValue(torch.zeros(shape), torch.zeros(shape)) for _ in range(arch.layers)]
        for position in range(length - 1):
            x = embed(arch, source, ids[:, position : position + 1])
            for layer, cache in enumerate(caches):
                x = block_forward(arch, layer, load_block(arch, source, layer), x, cache=cache)
            probabilities = head_logits(arch, source, final_norm(arch, source, x[:, 0])).softmax(dim=-1)
            ids[:, position + 1] = torch.multinomial(probabilities, 1, generator=generator)[:, 0]
            progress(len(written) * length + position + 2, len(batches) * length)
        written.append(ids)
    return torch.cat(written)
