"""DaSS's order of work: statistics from a layer's dense weights, states moved on through its compressed ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from edgellm.export import compress
from edgellm.export.calibrate import statistics
from edgellm.export.checkpoint import open_checkpoint
from edgellm.export.config import ExportConfig, Sparsity
from edgellm.export.decoder import Block, load_block, propagate
from edgellm.export.prune import mask
from edgellm.export.vocabulary import embed
from edgellm.kernels.layout import dequantize


@pytest.fixture
def config(tiny_model: Path, tmp_path: Path) -> ExportConfig:
    return ExportConfig(tiny_model, tmp_path / "bundle", Sparsity.parse("dass:2:4"), bits=8)


def states(config: ExportConfig) -> torch.Tensor:
    ids = torch.randint(0, 320, (4, 24), generator=torch.Generator().manual_seed(0))
    checkpoint = open_checkpoint(config.source)
    return embed(checkpoint.architecture, checkpoint, ids)


def compressed_block(config: ExportConfig, layer: int, x: torch.Tensor) -> tuple[Block, torch.Tensor]:
    checkpoint = open_checkpoint(config.source)
    found, moved = compress.compress_layer(config, checkpoint, layer, x)
    block = load_block(checkpoint.architecture, checkpoint, layer)
    return block | {role: torch.from_numpy(dequantize(q)) for role, q in found.items()}, moved


def test_states_move_on_through_the_compressed_weights(config: ExportConfig) -> None:
    arch, checkpoint = open_checkpoint(config.source).architecture, open_checkpoint(config.source)
    block, moved = compressed_block(config, 0, states(config))
    assert torch.allclose(moved, propagate(arch, 0, block, states(config)), atol=1e-6)
    dense = propagate(arch, 0, load_block(arch, checkpoint, 0), states(config))
    assert (moved - dense).norm() > 0.05 * dense.norm()


def test_masks_of_a_layer_follow_from_the_pruned_layer_before(config: ExportConfig) -> None:
    checkpoint = open_checkpoint(config.source)
    arch = checkpoint.architecture
    dense = load_block(arch, checkpoint, 1)
    _, moved = compressed_block(config, 0, states(config))
    block, _ = compressed_block(config, 1, moved.clone())
    for role in ("gate", "up", "down"):
        # From dense weights of this layer, and states that came through the pruned layer 0.
        stats = statistics(arch, 1, dense, moved)
        kept = mask("dass", role, dense[role], stats, 2, 4)
        assert (block[role][~kept] == 0).all(), role
        one_shot = propagate(arch, 0, load_block(arch, checkpoint, 0), states(config))
        other = mask("dass", role, dense[role], statistics(arch, 1, dense, one_shot), 2, 4)
        assert (kept != other).any(), role


def test_gate_and_up_of_different_forms_are_rounded_alike(
    tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = open_checkpoint(tiny_gguf)
    stored = checkpoint.stored
    monkeypatch.setattr(checkpoint, "stored", lambda name, rows: None if name.endswith("up") else stored(name, rows))
    found, _ = compress.compress_layer(ExportConfig(tiny_gguf, tmp_path), checkpoint, 0, None)
    assert found["gate"].format == found["up"].format
    assert found["gate"].format.bits == 8
    assert found["q"].format.group == 32  # still as stored
