"""Every model_type of the table against transformers, from folders that transformers wrote, sharded and not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.bundles import make_bundle
from tests.conftest import TEMPLATE, tiny_tokenizer

from edgellm.export.architectures import MATRICES
from edgellm.export.checkpoint import open_checkpoint
from edgellm.export.decoder import forward
from edgellm.export.family import families, supported
from edgellm.export.rope import Rope
from edgellm.runtime import load

transformers = pytest.importorskip("transformers")

SIZES: dict[str, Any] = dict(
    hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
    head_dim=32, vocab_size=320, max_position_embeddings=256, bos_token_id=1, eos_token_id=0, pad_token_id=0,
)  # fmt: skip
# model_type or a name for a variant of one -> its config class and what it adds to SIZES
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", dict(tie_word_embeddings=False)),
    "llama biases": ("LlamaConfig", dict(attention_bias=True)),
    "llama linear": ("LlamaConfig", dict(rope_parameters=dict(rope_type="linear", factor=3.0, rope_theta=5e3))),
    "llama llama3": ("LlamaConfig", dict(rope_parameters=dict(
        rope_type="llama3", rope_theta=5e4, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
        original_max_position_embeddings=64))),
    "llama yarn": ("LlamaConfig", dict(rope_parameters=dict(
        rope_type="yarn", rope_theta=5e4, factor=4.0, original_max_position_embeddings=64))),
    "mistral": ("MistralConfig", dict(sliding_window=16, tie_word_embeddings=False)),
    "mistral full": ("MistralConfig", dict(sliding_window=None)),
    "qwen2": ("Qwen2Config", dict(tie_word_embeddings=True)),
    "qwen2 sliding": ("Qwen2Config", dict(use_sliding_window=True, sliding_window=16, max_window_layers=2)),
    "qwen3": ("Qwen3Config", dict(tie_word_embeddings=True)),
    "gemma2": ("Gemma2Config", dict(sliding_window=16, query_pre_attn_scalar=24)),
    "gemma3_text": ("Gemma3TextConfig", dict(sliding_window=16, num_hidden_layers=7, query_pre_attn_scalar=32)),
    "phi3": ("Phi3Config", dict(sliding_window=16, tie_word_embeddings=False)),
    "phi3 partial": ("Phi3Config", dict(partial_rotary_factor=0.5, tie_word_embeddings=True)),
    "smollm3": ("SmolLM3Config", dict(num_hidden_layers=5)),
}  # fmt: skip


def write_model(name: str, folder: Path, shard: str) -> tuple[Any, Path]:
    kind, changes = MODELS[name]
    torch.manual_seed(sum(map(ord, name)))
    model = transformers.AutoModelForCausalLM.from_config(
        getattr(transformers, kind)(**{**SIZES, **changes}), attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        for label, weight in model.named_parameters():
            weight.normal_(0, 0.3 if weight.ndim == 1 else 2.0 / weight.shape[-1] ** 0.5)
            if weight.ndim == 1 and "bias" not in label and not name.startswith("gemma"):
                weight += 1  # a norm
    model.save_pretrained(folder, max_shard_size=shard)
    tiny_tokenizer().save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    return model, folder


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("shard", ["5GB", "100KB"])
@pytest.mark.parametrize("name", MODELS)
def test_torch_reference_equals_transformers(name: str, shard: str, tmp_path: Path) -> None:
    model, folder = write_model(name, tmp_path / "model", shard)
    assert (len(list(folder.glob("*.safetensors"))) > 1) == (shard == "100KB")
    checkpoint = open_checkpoint(folder)
    ids = torch.randint(3, 320, (2, 48), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model(ids).logits
    got = forward(checkpoint.architecture, checkpoint, ids)
    assert float(expected.std()) > 0.5
    assert float((got - expected).norm() / expected.norm()) < 2e-5


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", MODELS)
def test_bundles_match_torch(name: str, tmp_path: Path) -> None:
    _, folder = write_model(name, tmp_path / "model", "5GB")
    facts = make_bundle(folder, tmp_path / "bundle", bits=8)
    assert facts["parity"]["logit_error"] < 5e-3
    session = load(tmp_path / "bundle")
    ids = np.random.default_rng(0).integers(3, 320, 60).tolist()
    whole = session.logits(ids)
    session.reset()
    session.prefill(ids[:40])
    stepped = [session.step(token) for token in ids[40:]]
    np.testing.assert_allclose(np.stack(stepped), whole[40:], atol=2e-2 * np.abs(whole).max())


def test_every_type_of_the_table_is_tested() -> None:
    assert set(supported()) == {name.split()[0] for name in MODELS}
    always = {"embedding", "head", "norm", *MATRICES, "attention_norm", "mlp_norm"}
    for family in families().values():
        after = {"post_attention_norm", "post_mlp_norm"} if family.switch("post_norms") else set()
        for names in (family.hf, family.gguf):
            assert set(names) >= always | after, family.name


@pytest.mark.parametrize("kind", ["linear", "llama3", "yarn"])
def test_rotary_frequencies_equal_transformers(kind: str) -> None:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    settings = dict(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=1024)
    settings = {"linear": dict(factor=8.0), "llama3": settings}.get(
        kind, dict(factor=8.0, original_max_position_embeddings=1024)
    )
    config = transformers.LlamaConfig(
        hidden_size=512, num_attention_heads=4, max_position_embeddings=8192,
        rope_parameters=dict(rope_type=kind, rope_theta=5e5, **settings),
    )  # fmt: skip
    expected, magnitude = ROPE_INIT_FUNCTIONS[kind](config, device="cpu")
    rope = Rope(5e5, 128, kind, settings)
    np.testing.assert_allclose(rope.frequencies(), expected.numpy(), rtol=1e-5)
    assert rope.magnitude == pytest.approx(magnitude)
