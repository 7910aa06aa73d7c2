"""SmolLM2-135M-Instruct from checkpoint to answer. Slow parts are kept small; tests/benchmarks has the full tables."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file
from tokenizers import Tokenizer

from edgellm.export.checkpoint import open_checkpoint
from edgellm.export.config import ExportConfig
from edgellm.export.estimate import estimate
from edgellm.export.family import families, locate
from edgellm.export.packed_source import PackedSource, read_placed
from edgellm.export.verify import parity
from edgellm.export.vocabulary import embed
from edgellm.runtime import load
from edgellm.runtime.cli import main
from tests.bundles import make_bundle
from tests.export.adapt_reference import double_losses
from tests.export.standard import standard_session
from tests.export.test_adapt_graph import LOSSES, example, off, run
from tests.prompts import PROMPTS

pytestmark = pytest.mark.model


@pytest.fixture(scope="module", autouse=True)
def both_cores() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def as_stored(real_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("real") / "bundle"
    make_bundle(real_gguf, out)
    return out


def test_the_files_own_weights_arrive_bit_for_bit(real_gguf: Path, as_stored: Path) -> None:
    checkpoint = open_checkpoint(real_gguf)
    packed = PackedSource(as_stored / "model.onnx.data", read_placed(as_stored))
    for layer in (0, 29):
        for role in ("q", "k", "v", "o", "gate", "up", "down"):
            name = f"layers.{layer}.{role}"
            assert torch.equal(packed.matrix(name), checkpoint.matrix(name)), name
    assert torch.equal(packed.matrix("embedding"), checkpoint.matrix("embedding"))


def test_the_bundles_size_was_known_before(real_gguf: Path, as_stored: Path) -> None:
    """Bar: within 2 %; memory and time are measured by tests/benchmarks/estimates.py."""
    expected = estimate(open_checkpoint(real_gguf), ExportConfig(real_gguf, as_stored))
    assert expected.weight_bytes == (as_stored / "model.onnx.data").stat().st_size
    assert expected.bundle_bytes == pytest.approx(sum(file.stat().st_size for file in as_stored.iterdir()), rel=1e-3)


@pytest.mark.filterwarnings("ignore")
def test_gradients_are_as_exact_as_float32_is(real_gguf: Path, as_stored: Path, tmp_path: Path) -> None:
    """Where soft prompt, prefix and LoRA are while they adapt; torch's own, in float32, are off by 5e-5 to 2e-4."""
    folder = shutil.copytree(as_stored, tmp_path / "bundle", copy_function=os.link)
    checkpoint, packed = open_checkpoint(real_gguf), PackedSource(folder / "model.onnx.data", read_placed(folder))
    arch, rng = checkpoint.architecture, np.random.default_rng(0)
    tokenizer = Tokenizer.from_str(checkpoint.tokenizer_json())
    ids = np.array(tokenizer.encode("Cassava leaves curl because of a virus that whiteflies carry from one plant").ids)
    made: dict[str, Any] = {}
    for carrier in ("soft", "prefix", "lora"):
        given = example(arch, carrier, tokens=len(ids)) | {"ids": ids}
        if carrier == "soft":
            given["soft"] = 1.1 * embed(arch, packed, torch.from_numpy(ids[:5])).numpy()
        for name in ("key", "value") if carrier == "prefix" else ():
            given[name] = made[name] * (1 + rng.normal(0, 0.05, made[name].shape)).astype(np.float32)
        for name in [name for name in given if name.endswith((".down", ".up"))]:
            size = arch.hidden**-0.5 if name.endswith("down") else 0.01
            given[name] = rng.normal(0, size, given[name].shape).astype(np.float32)
        made = run(folder, arch, carrier, given)
        losses, gradients = double_losses(arch, packed, given)
        np.testing.assert_allclose([made[name] for name in LOSSES], losses, rtol=1e-5)
        for name, expected in gradients.items():
            assert off(made[f"{name}.gradient"], expected.numpy()) < 1e-5, (carrier, name)


def test_it_answers(as_stored: Path) -> None:
    result = CliRunner().invoke(
        main, ["generate", str(as_stored), "--chat", "-p", "What is the capital of France?", "--json"]
    )
    assert result.exit_code == 0
    answer = json.loads(result.stdout)
    assert "Paris" in answer["text"]
    assert answer["stop_reason"] == "stop token"


def test_greedy_texts_are_torchs(real_gguf: Path, as_stored: Path) -> None:
    """Bar: at least 18 of 20 for 16 tokens; here on 6 prompts, all of them."""
    session = load(as_stored)
    chats = [session.encode_chat([{"role": "user", "content": prompt}]) for prompt in PROMPTS[:6]]
    found = parity(open_checkpoint(real_gguf).architecture, open_checkpoint(real_gguf), session, chats, 16)
    assert found.logit_error < 5e-3
    assert found.greedy_agreement == 6


def test_in_standard_operators_it_says_the_same(real_gguf: Path, as_stored: Path) -> None:
    """The graph that a TensorRT engine is built from, in ONNX Runtime: torch's logits at half precision, its text."""
    session = standard_session(real_gguf, as_stored, 256)
    chats = [session.encode(prompt) for prompt in PROMPTS[:4]]
    packed = PackedSource(as_stored / "model.onnx.data", read_placed(as_stored))
    found = parity(open_checkpoint(real_gguf).architecture, packed, session, chats, 12)
    assert found.logit_error < 3e-3
    assert found.greedy_agreement + found.near_ties == 4
    ours, theirs = (one.generate(chats[0], 24).text for one in (session, load(as_stored)))
    assert ours == theirs


def test_a_hugging_face_folder_gives_the_same_bundle_as_the_gguf(real_gguf: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(real_gguf)
    arch, names = checkpoint.architecture, families()["llama"].hf
    folder = tmp_path / "hf"
    folder.mkdir()
    tensors = {}
    for name, shape in arch.tensors():
        tensors[locate(names, name, arch).tensor] = checkpoint.matrix(name) if shape[1] else checkpoint.vector(name)
    save_file(tensors, folder / "model.safetensors")
    config = {
        "model_type": "llama", "num_hidden_layers": arch.layers, "hidden_size": arch.hidden,
        "num_attention_heads": arch.heads, "num_key_value_heads": arch.kv_heads, "head_dim": arch.head_dim,
        "intermediate_size": arch.ff, "vocab_size": arch.vocabulary, "max_position_embeddings": arch.context,
        "rms_norm_eps": arch.norm_eps, "rope_theta": arch.layers_as[0].rope.theta, "hidden_act": "silu",
        "tie_word_embeddings": True, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(checkpoint.tokenizer_json(), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": checkpoint.chat_template}))
    ours = make_bundle(folder, tmp_path / "from_hf", bits=8)
    theirs = make_bundle(real_gguf, tmp_path / "from_gguf", bits=8)
    assert ours["files"]["model.onnx.data"] == theirs["files"]["model.onnx.data"]
    assert ours["chat"] == theirs["chat"]
    assert ours["tokens"]["stop"] == theirs["tokens"]["stop"] == [2]


def test_long_prompts_and_windows(as_stored: Path) -> None:
    """A window's budget bounds memory whatever the prompt; with nothing evicted it equals a full cache."""
    full, window = load(as_stored, kv="full"), load(as_stored, kv="window:256")
    ids = np.random.default_rng(0).integers(100, 40_000, 700).tolist()
    assert window.kv_bytes < full.kv_bytes / 10
    np.testing.assert_array_equal(window.prefill(ids[:256]), full.prefill(ids[:256]))
    assert np.isfinite(window.prefill(ids[256:])).all()


def test_the_second_turn_and_a_restored_cache_prefill_only_what_is_new(as_stored: Path, tmp_path: Path) -> None:
    session, other = load(as_stored), load(as_stored)
    messages = [{"role": "system", "content": "Answer in one sentence."}]
    messages.append({"role": "user", "content": "What is the capital of France?"})
    first = session.generate(session.encode_chat(messages), 32, keep=True)
    assert first.stop_reason == "stop token"
    session.save_cache(tmp_path / "cache")
    messages += [{"role": "assistant", "content": first.text}, {"role": "user", "content": "And of Italy?"}]
    ids = session.encode_chat(messages)
    expected = other.prefill(ids)
    assert other.restore_cache(tmp_path / "cache") == len(session.tokens)
    for each in (session, other):
        got = each.extend(ids, keep=True)
        assert each.reused_tokens == first.prompt_tokens + first.new_tokens  # the whole first turn, answer and all
        assert np.linalg.norm(got - expected) < 1e-5 * np.linalg.norm(expected)
