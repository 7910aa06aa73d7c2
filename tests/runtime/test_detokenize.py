"""Incremental decoding: pieces join to the text, and none holds half a character."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from edgellm.runtime.detokenize import Detokenizer
from tests.runtime.fakes import STOP, byte_tokenizer

TEXT = "naïve café 🌍👩‍👩‍👧 日本語, مرحبا — ½ "
BYTES = byte_tokenizer()


def pieces(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    stream = Detokenizer(lambda part: tokenizer.decode(list(part)))
    return [*(stream.add(token) for token in ids), stream.finish()]


def merged() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([TEXT] * 3, trainer)
    return tokenizer


def sentencepiece() -> Tokenizer:
    """As llama 2: a leading space is dropped, and unknown characters fall back to bytes."""
    vocab = {"<unk>": 0, "▁": 1, "▁a": 2, "b": 3, **{f"<0x{i:02X}>": i + 4 for i in range(256)}}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>", byte_fallback=True))
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(parts)
    return tokenizer


@given(st.text(max_size=60))
def test_pieces_join_to_the_text(text: str) -> None:
    ids = BYTES.encode(text).ids
    found = pieces(BYTES, ids)
    assert "".join(found) == BYTES.decode(ids).rstrip("\ufffd")
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in found)


def test_merged_bytes() -> None:
    tokenizer = merged()
    found = pieces(tokenizer, tokenizer.encode(TEXT).ids)
    assert "".join(found) == TEXT
    assert not any("\ufffd" in piece for piece in found)


@given(st.lists(st.integers(0, 255), max_size=40))
def test_any_bytes_are_the_decoders(ids: list[int]) -> None:
    """A broken sequence in the middle shows as U+FFFD, as in decoding all at once; at the end it is left out."""
    assert "".join(pieces(BYTES, ids)) == BYTES.decode(ids).rstrip("\ufffd")


def test_emoji_comes_out_whole_with_its_last_byte() -> None:
    assert pieces(BYTES, BYTES.encode("a🌍b").ids) == ["a", "", "", "", "🌍", "b", ""]


def test_cut_emoji_is_left_out() -> None:
    assert "".join(pieces(BYTES, BYTES.encode("hi🌍").ids[:-1])) == "hi"


def test_special_tokens_are_silent() -> None:
    assert pieces(BYTES, [*BYTES.encode("a").ids, STOP, *BYTES.encode("b").ids]) == ["a", "", "b", ""]


def test_sentencepiece_spaces_and_byte_fallback() -> None:
    tokenizer = sentencepiece()
    emoji = [byte + 4 for byte in "🌍é".encode()]
    found = pieces(tokenizer, [2, 3, 2, 2, *emoji, 3])
    assert "".join(found) == "ab a a🌍éb"
    assert found[:4] == ["a", "b", " a", " a"]
