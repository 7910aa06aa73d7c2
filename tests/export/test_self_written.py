"""The dense model's own text: likely to itself, the same for a seed, in whatever memory there is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from edgellm.export import decoder, self_written
from edgellm.export.checkpoint import open_checkpoint
from edgellm.export.self_written import Held, text_memory, write_text


def test_the_model_writes_text_that_it_finds_likely(tiny_model: Path) -> None:
    checkpoint = open_checkpoint(tiny_model)
    ids = write_text(checkpoint, sequences=6, length=40, seed=3)
    assert (ids.shape, ids.dtype) == ((6, 40), torch.int64)
    assert torch.equal(ids, write_text(checkpoint, 6, 40, seed=3))
    assert not torch.equal(ids, write_text(checkpoint, 6, 40, seed=4))
    assert (ids[:, 0] == checkpoint.tokens["bos"]).all()
    assert len({tuple(row) for row in ids.tolist()}) == 6
    written = decoder.perplexity(checkpoint.architecture, checkpoint, ids.flatten(), 40)
    logits = decoder.forward(checkpoint.architecture, checkpoint, ids)
    entropy = torch.distributions.Categorical(logits=logits[:, :-1]).entropy().mean().exp()
    # A sample's perplexity is the exponent of the model's entropy: below it if the most likely were taken, far above
    # it (this model gives random tokens thousands) if the cache or the positions were wrong.
    assert 0.6 < written / float(entropy) < 1.6


def test_little_memory_changes_nothing_but_the_reading(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = open_checkpoint(tiny_model)
    ids = write_text(checkpoint, 1, 12, seed=0)
    monkeypatch.setattr(self_written, "available_bytes", lambda: 1)
    assert torch.equal(write_text(checkpoint, 1, 12, seed=0), ids)
    assert write_text(checkpoint, 3, 12, seed=0).shape == (3, 12)


def test_a_larger_model_is_held_in_half_the_bytes(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = open_checkpoint(tiny_model)
    arch = checkpoint.architecture
    assert text_memory(arch, 4, 12).held == torch.float32
    monkeypatch.setattr(self_written, "FLOATS", arch.parameters * 4 - 1)
    plan = text_memory(arch, 4, 12)
    assert (plan.held, plan.held_bytes) == (torch.bfloat16, 2 * arch.parameters)
    held = Held(arch, checkpoint, torch.bfloat16)
    for name, shape in arch.tensors():
        if shape[1]:
            expected = checkpoint.matrix(name).bfloat16().float()
            assert torch.equal(held.matrix(name), expected)
            assert torch.equal(held.matrix(name, slice(3, 9)), expected[3:9])
    assert write_text(checkpoint, 2, 12, seed=0).shape == (2, 12)
    monkeypatch.setattr(self_written, "HALVES", arch.parameters * 2 - 1)
    assert text_memory(arch, 4, 12).held is None
