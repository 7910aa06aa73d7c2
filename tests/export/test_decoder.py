from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from edgellm.export import decoder
from edgellm.export.checkpoint import open_checkpoint


def random_ids(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 320, shape, generator=torch.Generator().manual_seed(seed))


def transformers_logits(ids: torch.Tensor, folder: Path, **options: str) -> torch.Tensor:
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options).eval()
    with torch.no_grad():
        logits: torch.Tensor = model(ids).logits
    return logits


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_word_embeddings": False, "num_key_value_heads": 1, "rope_theta": 500.0, "rms_norm_eps": 1e-2},
        {"rope_theta": None, "rope_parameters": {"rope_theta": 700.0, "rope_type": "default"}, "head_dim": 32},
    ],
)
def test_logits_equal_transformers(make_folder: Callable[..., Path], changes: dict[str, object]) -> None:
    folder = make_folder(**changes)
    checkpoint = open_checkpoint(folder)
    ids = random_ids(3, 50)
    ours = decoder.forward(checkpoint.architecture, checkpoint, ids)
    theirs = transformers_logits(ids, folder)
    assert theirs.std() > 0.5  # the fixture's logits say something
    assert float((ours - theirs).abs().max()) < 1e-4


def test_gguf_and_folder_agree_up_to_rounding(tiny_gguf: Path, tiny_model: Path) -> None:
    ids = random_ids(2, 40)
    packed, plain = (
        decoder.forward(checkpoint.architecture, checkpoint, ids)
        for checkpoint in (open_checkpoint(tiny_gguf), open_checkpoint(tiny_model))
    )
    # Rounding to 4 bits leaves 0.94; q's and k's rows in the file's order would leave 0.46.
    assert float(torch.corrcoef(torch.stack([packed.flatten(), plain.flatten()]))[0, 1]) > 0.9


@pytest.mark.model
def test_real_model_equals_transformers(real_gguf: Path) -> None:
    checkpoint = open_checkpoint(real_gguf)
    prompt = Tokenizer.from_str(checkpoint.tokenizer_json()).encode("The capital of France is Paris. 2 + 2 =")
    ids = torch.tensor([prompt.ids])
    theirs = transformers_logits(ids, real_gguf.parent, gguf_file=real_gguf.name)
    assert float((decoder.forward(checkpoint.architecture, checkpoint, ids) - theirs).abs().max()) < 1e-3


@torch.no_grad()
@pytest.mark.parametrize("cuts", [[1] * 12, [5, 1, 4, 2]])
def test_a_cache_gives_what_the_whole_sequence_gives(tiny_model: Path, cuts: list[int]) -> None:
    checkpoint = open_checkpoint(tiny_model)
    arch = checkpoint.architecture
    block = decoder.load_block(arch, checkpoint, 0)
    x = torch.randn(2, 12, 64, generator=torch.Generator().manual_seed(1))
    whole = decoder.block_forward(arch, 0, block, x)
    cache = decoder.KeyValue(torch.zeros(2, 2, 20, 16), torch.zeros(2, 2, 20, 16))
    pieces, start = [], 0
    for cut in cuts:
        pieces.append(decoder.block_forward(arch, 0, block, x[:, start : start + cut], cache=cache))
        start += cut
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole)


@torch.no_grad()
def test_attention_is_causal(tiny_model: Path) -> None:
    checkpoint = open_checkpoint(tiny_model)
    arch = checkpoint.architecture
    block = decoder.load_block(arch, checkpoint, 1)
    x = torch.randn(1, 10, 64, generator=torch.Generator().manual_seed(2))
    y = decoder.block_forward(arch, 1, block, x)
    changed = x.clone()
    changed[:, 7:] += 1
    torch.testing.assert_close(decoder.block_forward(arch, 1, block, changed)[:, :7], y[:, :7])


def test_keys_and_values_can_be_held_in_half_precision(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the device's cache holds them: rotated keys and values are rounded, queries are not."""
    checkpoint = open_checkpoint(tiny_model)
    arch, ids = checkpoint.architecture, [torch.arange(1, 20)[None]]
    got = decoder.hidden_states(arch, checkpoint, ids, kv_bits=16)[0]
    exact, attend = decoder.hidden_states(arch, checkpoint, ids)[0], decoder.attend

    def rounded(arch, layer, query, key, value, start):  # type: ignore[no-untyped-def]
        return attend(arch, layer, query, key.half().float(), value.half().float(), start)

    monkeypatch.setattr(decoder, "attend", rounded)
    assert torch.equal(got, decoder.hidden_states(arch, checkpoint, ids)[0])
    assert not torch.equal(got, exact)
    torch.testing.assert_close(got, exact, atol=2e-3, rtol=2e-2)


def test_record_sees_the_inputs_of_the_four_kinds(tiny_model: Path) -> None:
    checkpoint = open_checkpoint(tiny_model)
    seen: dict[str, tuple[int, ...]] = {}
    decoder.propagate(
        checkpoint.architecture,
        0,
        decoder.load_block(checkpoint.architecture, checkpoint, 0),
        torch.randn(2, 3, 64),
        record=lambda role, x: seen.update({role: tuple(x.shape)}),
    )
    assert seen == {"q": (2, 3, 64), "o": (2, 3, 64), "gate": (2, 3, 64), "down": (2, 3, 128)}


@pytest.mark.parametrize(("length", "window"), [(100, 32), (96, 32), (97, 32), (20, 32), (600, 300)])
def test_perplexity_scores_all_but_the_first_of_every_window(tiny_model: Path, length: int, window: int) -> None:
    checkpoint = open_checkpoint(tiny_model)
    arch, ids = checkpoint.architecture, random_ids(length)
    total, count = 0.0, 0
    for part in ids.split(window):
        if len(part) > 1:
            logs = decoder.forward(arch, checkpoint, part[None])[0].log_softmax(-1)
            total -= float(logs[torch.arange(len(part) - 1), part[1:]].double().sum())
            count += len(part) - 1
    assert math.isclose(decoder.perplexity(arch, checkpoint, ids, window), math.exp(total / count), rel_tol=1e-5)
    assert decoder.window_losses(arch, checkpoint, ids, window)[1].sum() == count


def test_perplexity_reads_every_block_once(tiny_model: Path) -> None:
    checkpoint = open_checkpoint(tiny_model)
    read: list[str] = []

    class Counting:
        def matrix(self, name: str, rows: slice | None = None) -> torch.Tensor:
            read.append(name)
            return checkpoint.matrix(name, rows)

        vector = matrix

    decoder.perplexity(checkpoint.architecture, Counting(), random_ids(200), 16)
    layers = [name for name in read if name.startswith("layers")]
    assert len(layers) == len(set(layers)) == 18


def test_perplexity_of_nothing_is_nan(tiny_model: Path) -> None:
    checkpoint = open_checkpoint(tiny_model)
    assert math.isnan(decoder.perplexity(checkpoint.architecture, checkpoint, random_ids(1), 8))
