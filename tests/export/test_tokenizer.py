from __future__ import annotations

import functools
import json
from pathlib import Path

import gguf
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from edgellm.export import tokenizer
from edgellm.export.checkpoint import open_checkpoint
from edgellm.runtime.errors import CheckpointError

TEXTS = [
    "Hello world, a token is a piece.",
    "naïve café 日本語 🙂👍🏽 Ωμέγα",
    "12345 67.89 1e10 ２３",
    "def f(x):\n\treturn x**2  # ok\n\n\n",
    "  leading and trailing  \n",
    "<|im_start|>user\nHi there<|im_end|>\n<|im_start|>assistant\n",
    "a<|endoftext|>b don't I'll WE'VE",
    "\r\n\t x\u00a0y\u200b",
]


@functools.cache
def metadata(file: Path) -> dict[str, object]:
    return {key: field.contents() for key, field in gguf.GGUFReader(file).fields.items()}


@functools.cache
def both(file: Path, folder: Path) -> tuple[Tokenizer, Tokenizer]:
    rebuilt = Tokenizer.from_str(tokenizer.from_gguf(metadata(file)))
    return rebuilt, Tokenizer.from_file(str(folder / "tokenizer.json"))


@given(text=st.one_of(st.text(max_size=40), st.sampled_from([*TEXTS, " ٣٤ ½"])))
@settings(max_examples=100, deadline=None)
def test_rebuilt_from_gguf_equals_the_original(text: str, tiny_gguf: Path, tiny_model: Path) -> None:
    rebuilt, original = both(tiny_gguf, tiny_model)
    ids = rebuilt.encode(text).ids
    assert ids == original.encode(text).ids
    assert rebuilt.decode(ids, skip_special_tokens=False) == text


def test_control_tokens_are_one_id_and_vanish_when_skipped(tiny_gguf: Path) -> None:
    rebuilt = Tokenizer.from_str(open_checkpoint(tiny_gguf).tokenizer_json())
    ids = rebuilt.encode("<|im_start|>a<|im_end|>").ids
    assert (ids[0], ids[-1], len(ids)) == (1, 2, 3)
    assert rebuilt.decode(ids) == "a"


@pytest.mark.parametrize(
    ("pre", "text", "pieces"),
    [
        ("smollm", "at 1234's end", ["at", "Ġ", "1", "2", "3", "4", "'s", "Ġend"]),
        ("gpt-2", "at 1234's end", ["at", "Ġ1234", "'s", "Ġend"]),
        ("llama-bpe", "AT 1234'S end", ["AT", "Ġ", "123", "4", "'S", "Ġend"]),
        ("qwen2", "at 12'S end\n\n x", ["at", "Ġ", "1", "2", "'S", "Ġend", "ĊĊ", "Ġx"]),
    ],
)
def test_pre_tokenizers_cut_where_the_model_learned_it(pre: str, text: str, pieces: list[str], tiny_gguf: Path) -> None:
    rebuilt = Tokenizer.from_str(tokenizer.from_gguf({**metadata(tiny_gguf), "tokenizer.ggml.pre": pre}))
    assert [piece for piece, _ in rebuilt.pre_tokenizer.pre_tokenize_str(text)] == pieces


def test_llama3_takes_whole_words_and_begins_with_bos(tiny_gguf: Path) -> None:
    facts = {**metadata(tiny_gguf), "tokenizer.ggml.pre": "llama-bpe"}
    assert json.loads(tokenizer.from_gguf(facts))["model"]["ignore_merges"]
    assert tokenizer.gguf_tokens(facts)["add_bos"]
    assert not tokenizer.gguf_tokens({**facts, "tokenizer.ggml.add_bos_token": False})["add_bos"]
    del facts["tokenizer.ggml.bos_token_id"]
    assert not tokenizer.gguf_tokens(facts)["add_bos"]


def test_stop_tokens_come_from_every_entry(tiny_gguf: Path) -> None:
    facts = {**metadata(tiny_gguf), "tokenizer.ggml.eot_token_id": 9, "tokenizer.ggml.eom_token_id": 8}
    assert tokenizer.gguf_tokens(facts)["stop"] == [0, 2, 8, 9]
    facts["tokenizer.chat_template"] = "no end of turn, <|eot_id|> is not in the vocabulary"
    assert tokenizer.gguf_tokens(facts)["stop"] == [0, 8, 9]


def test_user_defined_tokens_match_whole_but_are_text(tiny_gguf: Path) -> None:
    facts = metadata(tiny_gguf)
    tokens, kinds = list(facts["tokenizer.ggml.tokens"]), list(facts["tokenizer.ggml.token_type"])  # type: ignore[call-overload]
    tokens.append("<tool>")
    kinds.append(4)
    rebuilt = Tokenizer.from_str(
        tokenizer.from_gguf({**facts, "tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": kinds})
    )
    ids = rebuilt.encode("a<tool>").ids
    assert ids[-1] == len(tokens) - 1
    assert rebuilt.decode(ids, skip_special_tokens=True) == "a<tool>"


@pytest.mark.parametrize("entry", ["tokens", "merges"])
def test_missing_entries_are_refused(entry: str, tiny_gguf: Path) -> None:
    facts = dict(metadata(tiny_gguf))
    del facts[f"tokenizer.ggml.{entry}"]
    with pytest.raises(CheckpointError, match=f"tokenizer.ggml.{entry}"):
        tokenizer.from_gguf(facts)


@pytest.mark.model
def test_real_tokenizer_agrees_with_transformers(real_gguf: Path) -> None:
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(real_gguf.parent, gguf_file=real_gguf.name)
    checkpoint = open_checkpoint(real_gguf)
    ours = Tokenizer.from_str(checkpoint.tokenizer_json())
    # transformers drops SmolLM's splitting of digits when it reads GGUF, which shows only in digits beyond ASCII.
    for text in TEXTS:
        assert ours.encode(text).ids == theirs(text, add_special_tokens=False).input_ids
    assert checkpoint.tokens == {"bos": 1, "add_bos": False, "stop": [2], "eos": 2}
