"""Tasks: what is asked is in the text, once, where it should be, and the prompt is as long as asked."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from edgellm.runtime.errors import UsageError
from edgellm.runtime.evaluation.documents import Document, read_documents
from edgellm.runtime.evaluation.tasks import TASKS, Depths, Item, Source

DEPTHS = [0.0, 0.3, 0.6, 1.0]
SPEECH = " ".join(f"In the year of drought number {n} the people of the hills sent word to us." for n in range(400))
PASSAGES = [
    Document(f"The old mill at the river was built in {1500 + n} by Tom Harker{n}. It still stands today, they say.")
    for n in range(80)
]
PAIRS = [
    Document(f"Question: who is {n}?\nAnswer: it is {n * n}", f"who is {n}?", f"it is {n * n}") for n in range(150)
]


def words(text: str) -> int:
    return len(text.split())


def built(
    task: str, documents: list[Document], depths: Depths = DEPTHS, seed: int = 0, first: bool = False
) -> list[Item]:
    source = Source(documents, words, 900, first)
    items = TASKS[task](source, np.random.default_rng(seed), depths)
    assert all(840 <= words(item.text) <= 920 for item in items)
    return items


@pytest.mark.parametrize("task", ["passkey", "needles"])
def test_a_number_is_hidden_at_its_depth(task: str) -> None:
    at = []
    for item in built(task, [Document(SPEECH)]):
        (number,) = item.answers
        assert number not in SPEECH
        assert item.text.count(f"{item.cue} {number}") == 1
        at.append(item.text.index(number) / len(item.text))
    np.testing.assert_allclose(at, [0.0, 0.3, 0.6, 0.97], atol=0.06)


def test_needles_share_a_text_and_pass_keys_do_not() -> None:
    texts = [item.text.rpartition("\n\n")[0] for item in built("needles", [Document(SPEECH)])]
    assert len(set(texts)) == 1
    assert len({item.text for item in built("passkey", [Document(SPEECH)])}) == 4


def test_all_needles_are_asked_for_and_in_the_text() -> None:
    (item,) = built("needles-all", [Document(SPEECH)])
    assert len(set(item.answers)) == len(DEPTHS)
    assert all(item.text.count(number) == 1 for number in item.answers)


def test_the_question_comes_last_or_first() -> None:
    last, first = (built("passkey", [Document(SPEECH)], first=first)[0].text for first in (False, True))
    assert last.endswith("mentions?")
    assert first.startswith("What is the pass key")
    assert sorted(last.split()) == sorted(first.split())


def test_other_seeds_are_other_items_and_the_same_one_the_same() -> None:
    assert built("needles", [Document(SPEECH)]) == built("needles", [Document(SPEECH)])
    assert built("needles", [Document(SPEECH)])[0].answers != built("needles", [Document(SPEECH)], seed=1)[0].answers


def test_a_gap_is_what_only_one_passage_fills() -> None:
    for seed in range(5):
        for item in built("qa", PASSAGES, seed=seed):
            (gap,) = item.answers
            assert item.words == words(gap)
            assert item.text.count(f"{item.cue} {gap}") == 1
            passage = next(d.text for d in PASSAGES if f"{item.cue} {gap}" in d.text)
            assert gap not in item.text.replace(passage, "")


def test_a_documents_own_question_is_asked_among_others() -> None:
    items = built("qa", PAIRS)
    assert len({item.answers for item in items}) == len(DEPTHS)
    for item in items:
        number = int(item.answers[0].removeprefix("it is ")) ** 0.5
        assert f"Question: who is {number:.0f}?\nAnswer: {item.answers[0]}\n\n" in item.text
        assert item.text.endswith(f"who is {number:.0f}?")
        assert item.text.count("Answer:") > 50


def test_documents_that_do_not_serve_are_told() -> None:
    with pytest.raises(UsageError, match="fewer than 900 tokens"):
        built("passkey", [Document("Too short.")])
    with pytest.raises(UsageError, match="have 0 short passages with a name or number"):
        built("qa", [Document("nothing but words of no name here at all.")])
    with pytest.raises(UsageError, match="2 documents have a short answer; 4 are needed"):
        built("qa", PAIRS[:2])


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.txt", "[one]\ntext", [Document("[one]\ntext")]),
        ("a.json", json.dumps(["one", {"text": "two"}, " "]), [Document("one"), Document("two")]),
        ("a.jsonl", '"one"\n\n{"text": "two", "x": 1}\n', [Document("one"), Document("two")]),
        ("a.json", '[{"question": "q ", "answer": "a"}]', [Document("Question: q\nAnswer: a", "q", "a")]),
    ],
)
def test_documents_are_read(tmp_path: Path, name: str, content: str, expected: list[Document]) -> None:
    (tmp_path / name).write_text(content)
    assert read_documents(tmp_path / name) == expected


@pytest.mark.parametrize("content", [b"", b"\xff", b"[1]", b'[{"a": "b"}]', b"{", b"[ ", b'{"question": "q"}', b" \n"])
def test_what_is_no_documents_is_told(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(UsageError, match="holds no documents"):
        read_documents(tmp_path / "a.json")
    with pytest.raises(UsageError, match="cannot be read"):
        read_documents(tmp_path / "b.json")
