"""The weights behind the codes that block training left, kept on disk for the training of the whole to go on from.

A bundle's codes say of a trained weight only in which step of its scale it lies. Begun anew as near to the dense
weights as codes allow, all that blocks moved to another code would lie next to the border they came over, where a small
step undoes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from edgellm.export import tensor_file
from edgellm.export.straight_through import Latent


def save(folder: Path, layer: int, latents: Mapping[str, Latent]) -> None:
    """Write the weights [out, in] of a layer's latents, by role, in fp16: at 4 bits that moves one by 0.004 of a code's
    step at most, at 8 bits by 0.06. Raises OSError as tensor_file.write does."""
    folder.mkdir(exist_ok=True)
    file = folder / f"layers.{layer}.safetensors"
    tensor_file.write(file, {role: latent.weight.detach().half() for role, latent in latents.items()})


def load(folder: Path, layer: int) -> dict[str, Tensor]:
    """Float32 [out, in] by role; nothing of a layer that no block training left, or whose file is damaged."""
    try:
        with safe_open(folder / f"layers.{layer}.safetensors", framework="pt") as found:
            return {role: found.get_tensor(role).to(torch.float32) for role in found.keys()}  # noqa: SIM118  no dict
    except (OSError, SafetensorError):
        return {}
