"""What block training leaves on disk for the training of the whole."""

from __future__ import annotations

from pathlib import Path

import torch

from edgellm.export import latents
from edgellm.export.quantize import round_to_nearest
from edgellm.export.straight_through import Latent


def test_latents_are_read_as_they_were_and_damaged_ones_are_none(tmp_path: Path) -> None:
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    latent = Latent(round_to_nearest(weight, 4, 32), weight)
    latents.save(tmp_path / "left", 0, {"o": latent})
    assert torch.allclose(latents.load(tmp_path / "left", 0)["o"], latent.weight.detach(), rtol=1e-3, atol=1e-6)
    assert latents.load(tmp_path / "left", 1) == {}
    file = tmp_path / "left" / "layers.0.safetensors"
    file.write_bytes(file.read_bytes()[:-7])
    assert latents.load(tmp_path / "left", 0) == {}
