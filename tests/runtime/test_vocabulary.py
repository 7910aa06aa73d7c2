"""The tables' tokenizer gives what tokenizer.json's gives, for every text and every list of ids."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from edgellm.export.vocabulary_tables import vocabulary_tables, write_tokenizer
from edgellm.kernels.library import engine
from edgellm.runtime import vocabulary
from edgellm.runtime.errors import BundleError, UsageError
from edgellm.runtime.tokenizer import read_tokenizer
from tests.runtime.fakes import VOCABULARY, byte_tokenizer, make_bundle

CORPUS = ["the cat sat on the mat, then the hat.", "naïve café 🌍 日本語 ½", "a  b   c\n\n\td 12345 don't"] * 3
TEXTS = st.lists(
    st.one_of(
        st.sampled_from([*" \n\taethonc1▁Ġéſ", "the", "cat ", "e\u0301", "\u0338", "🌍", "<s>", "<|x|>", "  ", "日本"]),
        st.characters(exclude_categories=["Cs"]),
    ),
    max_size=30,
).map("".join)


def byte_level(ignore_merges: bool = False) -> Tokenizer:
    """As qwen2's and llama 3's: NFC, a regex, bytes; an added token outside the model's vocabulary."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(r"\p{N}| ?\p{L}+|\s+"), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=340, initial_alphabet=alphabet, show_progress=False)
    )
    tokenizer.add_tokens([AddedToken("<s>", special=True), AddedToken("<|x|>", normalized=False, lstrip=True)])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 340)])
    return tokenizer


def sentencepiece() -> Tokenizer:
    """As Gemma's: spaces become signs, nothing splits, what is unknown becomes bytes."""
    options = {"unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True}
    tokenizer = Tokenizer(models.BPE(**options))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(parts)
    added = ["<unk>", "<s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=400, special_tokens=added, show_progress=False)
    )
    stored = json.loads(tokenizer.to_str())
    stored["added_tokens"] = stored["added_tokens"][:2]
    return Tokenizer.from_str(json.dumps(stored))


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "bytes": byte_tokenizer,
    "byte level": byte_level,
    "whole words": lambda: byte_level(ignore_merges=True),
    "sentencepiece": sentencepiece,
}


@pytest.fixture(scope="module", params=KINDS)
def both(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[vocabulary.TableTokenizer, Tokenizer]:
    folder = tmp_path_factory.mktemp("vocabulary")
    whole = KINDS[request.param]()
    write_tokenizer(lambda name, content: folder.joinpath(name).write_bytes(content) and None, whole.to_str())
    tables = read_tokenizer(folder, whole.get_vocab_size(), tables=True)
    assert isinstance(tables, vocabulary.TableTokenizer)
    return tables, whole


@given(text=TEXTS)
def test_the_same_ids(both: tuple[vocabulary.TableTokenizer, Tokenizer], text: str) -> None:
    tables, whole = both
    assert tables.encode(text).ids == whole.encode(text, add_special_tokens=False).ids


@given(ids=st.lists(st.integers(0, 450), max_size=12), skip=st.booleans())
def test_the_same_text(both: tuple[vocabulary.TableTokenizer, Tokenizer], ids: list[int], skip: bool) -> None:
    tables, whole = both
    assert tables.decode(ids, skip_special_tokens=skip) == whole.decode(ids, skip_special_tokens=skip)
    assert [tables.id_to_token(number) for number in ids] == [whole.id_to_token(number) for number in ids]


def test_a_kind_that_the_library_does_not_read_is_left_to_tokenizers(tmp_path: Path) -> None:
    whole = byte_level()
    whole.add_tokens([AddedToken("word", single_word=True)])
    write_tokenizer(lambda name, content: (tmp_path / name).write_bytes(content) and None, whole.to_str())
    assert (tmp_path / "tokenizer.tables").exists()
    found = read_tokenizer(tmp_path, 343, tables=True)
    assert isinstance(found, Tokenizer)
    assert found.encode("a word swords").ids == whole.encode("a word swords").ids


def test_without_the_native_library_tokenizers_reads_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise FileNotFoundError

    monkeypatch.setattr(vocabulary, "engine", missing)
    write_tokenizer(lambda name, content: (tmp_path / name).write_bytes(content) and None, byte_level().to_str())
    assert isinstance(read_tokenizer(tmp_path, 342, tables=True), Tokenizer)


def test_half_of_a_surrogate_pair_is_refused(both: tuple[vocabulary.TableTokenizer, Tokenizer]) -> None:
    with pytest.raises(UsageError, match="not UTF-8"):
        both[0].encode("a\ud800")


def test_threads_share_a_tokenizer(both: tuple[vocabulary.TableTokenizer, Tokenizer]) -> None:
    tables, whole = both
    texts = [f"{text} {number}" for number in range(50) for text in CORPUS]
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda text: tables.encode(text).ids, texts))
    assert found == [whole.encode(text, add_special_tokens=False).ids for text in texts]


def test_what_has_no_tables() -> None:
    assert vocabulary_tables(Tokenizer(models.Unigram([("a", 0.0)], unk_id=0)).to_str()) is None
    assert vocabulary_tables(Tokenizer(models.BPE({"a": 0, "b": 2}, [])).to_str()) is None
    for part, value in (("normalizer", normalizers.Lowercase()), ("pre_tokenizer", pre_tokenizers.BertPreTokenizer())):
        tokenizer = byte_tokenizer()
        setattr(tokenizer, part, value)
        assert vocabulary_tables(tokenizer.to_str()) is None


def test_damaged_tables_and_too_many_tokens(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "b")
    write_tokenizer(lambda name, content: (folder / name).write_bytes(content) and None, byte_tokenizer().to_str())
    with pytest.raises(BundleError, match=r"tokenizer\.tables has 259 tokens; the model's vocabulary is 258"):
        read_tokenizer(folder, VOCABULARY - 1, tables=True)
    for content in (b"", b"{}\n", b"\n", (folder / "tokenizer.tables").read_bytes()[:-3000]):
        (folder / "tokenizer.tables").write_bytes(content)
        with pytest.raises(BundleError, match=r"tokenizer\.tables cannot be read"):
            read_tokenizer(folder, VOCABULARY, tables=True)


def test_null_arguments_of_the_c_functions_are_told() -> None:
    library = engine()
    for refused in (
        lambda: library.edgellm_tokenizer_open(b"bundle", 258, None),
        lambda: library.edgellm_tokenizer_encode(None, b"a", 1, None, None),
        lambda: library.edgellm_tokenizer_decode(None, None, 0, 0, None, None),
        lambda: library.edgellm_tokenizer_token(None, 0, None, None),
        lambda: library.edgellm_sha256(None, 1, None),
    ):
        assert refused() == 2
        assert library.edgellm_message()
    library.edgellm_tokenizer_close(None)
