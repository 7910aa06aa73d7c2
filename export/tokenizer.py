"""Tokenizers: tokenizer.json's text from GGUF metadata, and the token ids every generation needs (bos, eos, stops)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from edgellm.export.sentencepiece_bpe import sentencepiece_bpe
from edgellm.runtime.errors import CheckpointError

# End-of-turn tokens in use; one that a chat template writes is a reason to stop.
END_OF_TURN = (
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<end_of_turn>",
    "<|end|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|eot|>",
    "<|return|>",
    "</s>",
)
_CONTROL, _USER_DEFINED = 3, 4  # llama.cpp's token types; both are matched before any splitting


@dataclass(frozen=True)
class _PreTokenizer:
    """One value of tokenizer.ggml.pre: how text is cut before merging, and what the model adds by default."""

    split: Callable[[], pre_tokenizers.PreTokenizer]
    ignore_merges: bool = False
    nfc: bool = False
    add_bos: bool = False


def _gpt2() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


def _smollm() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _gpt2()])


def _pattern(digits: str) -> Callable[[], pre_tokenizers.PreTokenizer]:
    regex = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
        + digits
        + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    return lambda: pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(regex), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


_PRE_TOKENIZERS = {
    "default": _PreTokenizer(_gpt2),
    "gpt-2": _PreTokenizer(_gpt2),
    "smollm": _PreTokenizer(_smollm),
    "llama-bpe": _PreTokenizer(_pattern(r"\p{N}{1,3}"), ignore_merges=True, add_bos=True),
    "qwen2": _PreTokenizer(_pattern(r"\p{N}"), nfc=True),
}


def from_gguf(metadata: Mapping[str, Any]) -> str:
    """tokenizer.json's text from a GGUF file's tokenizer.ggml.* entries: byte-level BPE ("gpt2"), or SentencePiece's
    BPE ("llama").

    It has no post-processor: whoever encodes adds bos where `gguf_tokens` says so.
    Raises CheckpointError for another kind of vocabulary, an unknown pre-tokenizer, or entries that are missing.
    """
    tokens = _entry(metadata, "tokens")
    try:
        built = sentencepiece_bpe(metadata, tokens) if _is_sentencepiece(metadata) else _byte_level(metadata, tokens)
    except CheckpointError:
        raise
    except Exception as error:  # tokenizers raises bare Exception
        raise CheckpointError(f"the file's tokenizer does not build: {error}", "Convert the model again.") from None
    kinds = metadata.get("tokenizer.ggml.token_type") or [1] * len(tokens)
    typed = list(zip(tokens, kinds, strict=False))
    # In order of id, so that none is given a new one; normalized=False matches them in the raw text.
    built.add_tokens(
        [
            AddedToken(token, special=kind == _CONTROL, normalized=False)
            for token, kind in typed
            if kind in (_CONTROL, _USER_DEFINED)
        ]
    )
    return str(built.to_str())


def _byte_level(metadata: Mapping[str, Any], tokens: list[str]) -> Tokenizer:
    rules, merges = _rules(metadata), _entry(metadata, "merges")
    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    built = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs, ignore_merges=rules.ignore_merges))
    if rules.nfc:
        built.normalizer = normalizers.NFC()
    built.pre_tokenizer = rules.split()
    built.decoder = decoders.ByteLevel()
    return built


def gguf_tokens(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest's "tokens" entry from a GGUF file: bos, add_bos, stop (sorted), eos."""
    default = True if _is_sentencepiece(metadata) else _rules(metadata).add_bos
    vocabulary = {token: index for index, token in enumerate(_entry(metadata, "tokens"))}
    ids = {name: metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos", "eot", "eom")}
    stops = [ids["eos"], ids["eot"], ids["eom"]]
    stops += template_stops(metadata.get("tokenizer.chat_template"), vocabulary)
    add_bos = bool(metadata.get("tokenizer.ggml.add_bos_token", default))
    return token_table(ids["bos"], add_bos, ids["eos"], stops)


def token_table(bos: int | None, add_bos: bool, eos: int | None, stops: Iterable[int | None]) -> dict[str, Any]:
    """The manifest's "tokens" entry. add_bos: plain text begins with bos; a chat template writes its own."""
    found = sorted({int(stop) for stop in stops if stop is not None})
    return {"bos": bos, "add_bos": add_bos and bos is not None, "stop": found, "eos": eos}


def template_stops(template: str | None, vocabulary: Mapping[str, int]) -> list[int]:
    """Ids of the known end-of-turn tokens that a chat template writes and the vocabulary has."""
    return [vocabulary[token] for token in END_OF_TURN if template and token in template and token in vocabulary]


def _is_sentencepiece(metadata: Mapping[str, Any]) -> bool:
    return metadata.get("tokenizer.ggml.model") == "llama"


def _rules(metadata: Mapping[str, Any]) -> _PreTokenizer:
    kind = metadata.get("tokenizer.ggml.model")
    if kind != "gpt2":
        raise CheckpointError(
            f'the file\'s tokenizer is "{kind}"; this version rebuilds byte-level BPE ("gpt2") only',
            "Export from the model's Hugging Face folder, whose tokenizer.json is used as it is.",
        )
    pre = metadata.get("tokenizer.ggml.pre", "default")
    if pre not in _PRE_TOKENIZERS:
        raise CheckpointError(
            f'the file\'s pre-tokenizer "{pre}" is not known; known: {", ".join(sorted(_PRE_TOKENIZERS))}',
            "Export from the model's Hugging Face folder, whose tokenizer.json is used as it is.",
        )
    return _PRE_TOKENIZERS[pre]


def _entry(metadata: Mapping[str, Any], name: str) -> list[str]:
    entry = metadata.get(f"tokenizer.ggml.{name}")
    if not isinstance(entry, list):
        raise CheckpointError(f"the file lacks tokenizer.ggml.{name}", "Convert the model again, with its tokenizer.")
    return entry
