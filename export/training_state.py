"""What a training had learned when it was killed: latents, Adam's moments and the student's average in one file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from edgellm.export import tensor_file
from edgellm.export.block_recovery import trained
from edgellm.export.straight_through import Latent

_MOMENTS = ("exp_avg", "exp_avg_sq")


def save(
    file: Path,
    latents: Mapping[str, Latent],
    optimizer: torch.optim.Adam,
    average: Sequence[Mapping[str, Tensor]],
    steps: int,
    seconds: float,
) -> None:
    """Write everything after `steps` steps and `seconds`. Raises OSError as tensor_file.write does."""
    tensors: dict[str, Tensor] = {}
    for i, tensor in enumerate(trained(latents)):
        tensors[f"{i}"] = tensor.detach()
        tensors |= {f"{i}.{moment}": optimizer.state[tensor][moment] for moment in _MOMENTS}
    tensors |= {f"average.{layer}.{role}": t for layer, block in enumerate(average) for role, t in block.items()}
    tensor_file.write(file, tensors, {"steps": str(steps), "seconds": str(seconds)})


def restore(
    file: Path, latents: Mapping[str, Latent], optimizer: torch.optim.Adam, average: list[dict[str, Tensor]]
) -> tuple[int, float]:
    """(steps, seconds) of what `save` wrote, put in place; (0, 0.0) where there is no such file, or it is damaged."""
    try:
        with safe_open(file, framework="pt") as found, torch.no_grad():
            told = found.metadata()
            steps, seconds = int(told["steps"]), float(told["seconds"])
            pairs = list(enumerate(trained(latents)))
            if any(found.get_slice(f"{i}").get_shape() != list(tensor.shape) for i, tensor in pairs):
                return 0, 0.0
            for i, tensor in pairs:
                tensor.copy_(found.get_tensor(f"{i}"))
                optimizer.state[tensor] = {moment: found.get_tensor(f"{i}.{moment}") for moment in _MOMENTS}
                optimizer.state[tensor]["step"] = torch.tensor(float(steps))
            for name in sorted(name for name in found.keys() if name.startswith("average.")):  # noqa: SIM118  no dict
                layer, role = name.split(".")[1:]
                average += [{} for _ in range(int(layer) + 1 - len(average))]
                average[int(layer)][role] = found.get_tensor(name)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return 0, 0.0
    return steps, seconds
