"""What dense layers of 4 and 3 bits lose on the same text: whether pruning was worth its bytes.

They pass beside the recipe's layers, rounded by the same sweep with what the recipe's layers read, so that each costs a
sweep and the held-out text's way through a block. 3 bits exist here alone: no tile holds them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from edgellm.export import tensor_file
from edgellm.export.architectures import MATRICES, Architecture
from edgellm.export.checkpoint import Checkpoint, Source
from edgellm.export.compress import Read
from edgellm.export.decoder import Block, mean_perplexity, propagate, state_losses
from edgellm.export.level import GROUP
from edgellm.export.sparsegpt import simulated

WIDTHS = (4, 3)
MINIMUM = 32 / GROUP  # bits a weight of an fp16 scale and minimum a group


class References:
    """The held-out text's states in models whose layers are dense, of WIDTHS bits in groups with a minimum; embedding
    and head are the recipe's. A killed export finds them in `work` again, as they left layer `done`."""

    def __init__(self, arch: Architecture, work: Path, done: int, embedded: Tensor) -> None:
        self._arch = arch
        self._work = work
        self._states = {str(bits): embedded.clone() for bits in WIDTHS}
        if done:
            self._states = load_file(self._file(done))

    def _file(self, done: int) -> Path:
        return self._work / f"references.{done}.safetensors"

    @torch.no_grad()
    def layer(self, layer: int, checkpoint: Checkpoint, read: Read) -> None:
        """Move on through one layer; read: by its matrices."""
        at = f"layers.{layer}"
        vectors = {role: checkpoint.vector(f"{at}.{role}") for role in self._arch.vectors}
        blocks: dict[int, Block] = {bits: dict(vectors) for bits in WIDTHS}
        for role in MATRICES:
            weight, found = checkpoint.matrix(f"{at}.{role}"), read.hessians.feedback(role, GROUP)
            for bits, block in blocks.items():
                block[role] = simulated(weight, found, GROUP, bits, "min")
        for bits, block in blocks.items():
            propagate(self._arch, layer, block, self._states[str(bits)])
        # The layer before's stay until this one is in the journal.
        tensor_file.write(self._file(layer + 1), self._states)
        self._file(layer - 1).unlink(missing_ok=True)

    def measured(self, recipe: Source, text: Tensor, vocabulary_bytes: int) -> list[dict[str, Any]]:
        """The manifest's "references". recipe: whose head is read; vocabulary_bytes: of its embedding and head."""
        arch = self._arch
        layers = arch.layers * sum(rows * columns for rows, columns in map(arch.shape, MATRICES))
        weights = layers + (1 if arch.tied else 2) * arch.vocabulary * arch.hidden
        found = []
        for bits in WIDTHS:
            nbytes = vocabulary_bytes + int(layers * (bits + MINIMUM) / 8)
            found.append(
                {
                    "name": f"dense {bits} bits",
                    "perplexity": mean_perplexity(*state_losses(arch, recipe, self._states[str(bits)], text)),
                    "bytes": nbytes,
                    "bits_per_weight": 8 * nbytes / weights,
                }
            )
        return found
