"""The C++ tokenizer gives what `tokenizers` gives: every kind of BPE that exports describe in tables, any text."""

from __future__ import annotations

import json
import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from edgellm.export.vocabulary_tables import write_tokenizer
from edgellm.runtime.manifest import dump, file_facts, seal
from tests.bundles import make_bundle
from tests.conftest import ROOT, write_folder
from tests.door import BUNDLE, USAGE, Door, DoorError
from tests.runtime.test_vocabulary import KINDS, TEXTS, byte_level, sentencepiece
from tests.test_door import missing

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())

NASTY = [
    "",
    " ",
    "  ",
    "a  b   c",
    "\n",
    "\r\n\r\n x",
    "\t\t\tx\n\n \n y",
    " leading",
    "trailing ",
    "  \n  x",
    "?!...\n\n\r\n  \n",
    "don't I'LL we'Ve they're it'S 'ſ x'ſ 'K 'D'M '''",
    "12345 1,234.56 ½ ² ٣٤٥ Ⅷ 𝟙𝟚",
    "naïve café e\u0301 o\u0308\u0323 ǆ ﬁ Å Ω",
    "각 ᄀ\u1161\u11a8 \uac00\u11a8",
    "\u0344\u0958 \u2126 \u0300 \u0301x q\u0307\u0323",
    "日本語テスト、中文。한국어",
    "ا٣ عربى עִבְרִית हिन्दी ไทย",
    "👩‍👩‍👧‍👦🏳️‍🌈🇫🇷 ok",
    "<|im_start|>user\nhi<|im_end|>\n",
    "x<|im_end|",
    "<s><s> <|x|>  y  <|x|>",
    "\u00a0\u2003x\u3000y\u200b\u200d",
    "a\x00b\x1c\x1d\x1f\x85c",
    "\ufeffbom",
    "\U0010ffff\ue000",
    "a" * 300,
    "#!/bin/bash\n\tif (x) { return a[i]; }  // ok\n",
    "\u1c89\ua7cb\U00010d40\U000323b0",
    "<unused5><0x0A>\n\n\n\t\t",
    "▁▁ x ▁",
]


def llama3() -> Tokenizer:
    """Digits by threes."""
    tokenizer = byte_level(ignore_merges=True)
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
        r"|\s+(?!\S)|\s+"
    )
    split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    return tokenizer


def smollm(prefix: bool = False) -> Tokenizer:
    tokenizer = byte_level()
    tokenizer.normalizer = None
    digits = pre_tokenizers.Digits(individual_digits=not prefix)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=prefix)])
    return tokenizer


def llama2() -> Tokenizer:
    """A space before the text, and taken away again."""
    tokenizer = sentencepiece()
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    return tokenizer


def gemma() -> Tokenizer:
    """As its Hugging Face folder has it: a split that finds nothing any more."""
    tokenizer = sentencepiece()
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    return tokenizer


ALL: dict[str, Callable[[], Tokenizer]] = {
    **KINDS,
    "llama 3": llama3,
    "smollm": smollm,
    "a space first": lambda: smollm(prefix=True),
    "llama 2": llama2,
    "gemma": gemma,
}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    make_bundle(write_folder(folder / "model", vocab_size=512), folder / "bundle", bits=8)
    return folder / "bundle"


def with_tokenizer(bundle: Path, out: Path, tokenizer: Tokenizer) -> Path:
    """The bundle with another tokenizer, sealed again."""
    shutil.copytree(bundle, out)
    (out / "tokenizer.tables").unlink()
    write_tokenizer(lambda name, content: out.joinpath(name).write_bytes(content) and None, tokenizer.to_str())
    data: dict[str, Any] = json.loads((out / "edgellm.json").read_bytes())
    names = [path.name for path in out.iterdir() if path.name != "edgellm.json"]
    data["files"] = {name: vars(file_facts(out / name)) for name in sorted(names)}
    (out / "edgellm.json").write_bytes(dump(seal(data)))
    return out


@pytest.fixture(scope="module", params=ALL)
def both(
    request: pytest.FixtureRequest, bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Door, Tokenizer]:
    tokenizer = ALL[request.param]()
    return Door(with_tokenizer(bundle, tmp_path_factory.mktemp("kind") / "bundle", tokenizer)), tokenizer


@given(text=TEXTS)
def test_the_same_ids(both: tuple[Door, Tokenizer], text: str) -> None:
    door, tokenizer = both
    assert door.encode(text) == tokenizer.encode(text, add_special_tokens=False).ids


@given(ids=st.lists(st.integers(0, 450), max_size=12), special=st.booleans())
def test_the_same_text(both: tuple[Door, Tokenizer], ids: list[int], special: bool) -> None:
    door, tokenizer = both
    assert door.decode(ids, special) == tokenizer.decode(ids, skip_special_tokens=not special)


def test_nasty_texts(both: tuple[Door, Tokenizer]) -> None:
    door, tokenizer = both
    for text in NASTY:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert door.encode(text) == ids, text
        assert door.decode(ids, True) == tokenizer.decode(ids, skip_special_tokens=False), text


def edges() -> list[str]:
    """Characters beside which Unicode's category or combining class changes, each in its contexts."""
    kinds = [(unicodedata.category(chr(c)), unicodedata.combining(chr(c))) for c in range(0x110000)]
    codes = {c + side for c in range(1, 0x10FFFF) if kinds[c] != kinds[c - 1] for side in (-1, 0)}
    return [f"a {chr(c)}b{chr(c)}'{chr(c)} {chr(c)}\u0301" for c in sorted(codes) if not 0xD800 <= c < 0xE000]


@pytest.mark.parametrize("kind", ["byte level", "smollm"])  # all that asks Unicode: NFC and a pattern, digits
def test_letters_numbers_and_marks_of_all_scripts(bundle: Path, tmp_path: Path, kind: str) -> None:
    tokenizer = ALL[kind]()
    door, texts = Door(with_tokenizer(bundle, tmp_path / "b", tokenizer)), edges()
    for start in range(0, len(texts), 500):
        text = "".join(texts[start : start + 500])
        assert door.encode(text) == tokenizer.encode(text, add_special_tokens=False).ids


def test_what_is_not_read_takes_ids_only(bundle: Path, tmp_path: Path) -> None:
    tokenizer = byte_level()
    split = pre_tokenizers.Split(Regex(r"\w+|[^\w\s]+"), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    door = Door(with_tokenizer(bundle, tmp_path / "pattern", tokenizer))
    with pytest.raises(DoorError, match=r"does not read .* pattern .*\nEncode texts elsewhere") as found:
        door.encode("a")
    assert found.value.code == USAGE
    ids = tokenizer.encode("the cat").ids
    assert door.decode(ids) == tokenizer.decode(ids) == "the cat"
    assert len(door.generate(ids, 5)) == 5
    unigram = Tokenizer(models.Unigram([("a", 0.0), ("b", 0.0)], unk_id=0))
    door = Door(with_tokenizer(bundle, tmp_path / "unigram", unigram))
    assert len(door.generate([0, 1], 5)) == 5
    for refused in (lambda: door.prompt("a"), lambda: door.decode([1])):
        with pytest.raises(DoorError, match="not BPE"):
            refused()


def test_damaged_tables(bundle: Path, tmp_path: Path) -> None:
    """Sealed again, as by someone who means it: an error, or other ids, but no crash."""
    out = with_tokenizer(bundle, tmp_path / "b", byte_level())
    whole = (out / "tokenizer.tables").read_bytes()
    head = whole.index(b"\n") + 1
    facts = json.loads(whole[:head])
    big = json.dumps({**facts, "tables": [[name, kind, count * 9, at] for name, kind, count, at in facts["tables"]]})
    wild = bytearray(whole)
    wild[head + 342 * 8 :] = b"\xfe\x7f\xff\x7f" * ((len(whole) - head) // 4)
    for content in (b"", b"{}\n", b"\n", whole[:-3000], big.encode() + b"\n" + whole[head:], bytes(wild)):
        (out / "tokenizer.tables").write_bytes(content)
        data = json.loads((out / "edgellm.json").read_bytes())
        data["files"]["tokenizer.tables"] = vars(file_facts(out / "tokenizer.tables"))
        (out / "edgellm.json").write_bytes(dump(seal(data)))
        if content == bytes(wild):
            assert Door(out).encode("the cat sat") is not None
            continue
        with pytest.raises(DoorError, match=r"tokenizer\.tables cannot be read") as found:
            Door(out)
        assert found.value.code == BUNDLE


@pytest.mark.model
@pytest.mark.parametrize("name", ["smollm2", "qwen2", "gemma3"])
def test_real_vocabularies(tmp_path: Path, name: str) -> None:
    """All nasty texts, and 100 kB of prose where a WikiText file is at hand."""
    from edgellm.export.checkpoint import open_checkpoint
    from tests.test_more_real_models import FILES

    path = ROOT / "build" / "models" / FILES[name]
    if not path.exists():
        pytest.skip(f"{path.name} is not in build/models; `make models` fetches it")
    tokenizer = Tokenizer.from_str(open_checkpoint(path).tokenizer_json())
    make_bundle(write_folder(tmp_path / "model", vocab_size=tokenizer.get_vocab_size()), tmp_path / "bundle", bits=8)
    door = Door(with_tokenizer(tmp_path / "bundle", tmp_path / "b", tokenizer))
    prose = ROOT / "build" / "wikitext2.txt"
    texts = [*NASTY, prose.read_text(encoding="utf-8")[:100_000]] if prose.exists() else NASTY
    for text in texts:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert door.encode(text) == ids, text[:80]
        assert door.decode(ids) == tokenizer.decode(ids), text[:80]
