"""Tasks over long prompts, built from the user's documents: a pass key, several needles, questions, cloze.

Pass keys as Mohtashami & Jaggi (arXiv 2305.16300), needles as RULER (arXiv 2404.06654), questions in the manner of
LongBench (arXiv 2308.14508), answered by token F1; wording and the building from one file are ours.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from edgellm.runtime.errors import UsageError
from edgellm.runtime.evaluation.documents import Document

NAMES = ("Amsterdam", "Bamako", "Caracas", "Dublin", "Edinburgh", "Florence", "Geneva", "Havana", "Jakarta", "Lisbon")
GROUP = 5  # items about one text
SHORT = 12  # words: an answer to be found again word for word in some 32 tokens
BEFORE = 6  # words of a sentence that tell which it is
LONG = 1500  # characters of a passage
SENTENCE = re.compile(r"(?<=[.!?])\s+")
NAMED = re.compile(r"\b(?:\d[\d,.]*\d|[A-Z][\w'-]+(?: [A-Z][\w'-]+)*)")  # a number, or words with capitals

Count = Callable[[str], int]  # tokens of a text
Depths = Sequence[float]


@dataclass(frozen=True)
class Item:
    """text: what the user says; cue: the beginning of the answer, which the model goes on from.

    answers: what should come; words: of the model's answer only so many first ones count (0: all of its first line).
    new_tokens: at most so many are generated.
    """

    text: str
    cue: str
    answers: tuple[str, ...]
    new_tokens: int
    words: int = 0


@dataclass(frozen=True)
class Source:
    """documents; count: tokens of a text; length: of an item's text, about; first: the question goes before it."""

    documents: Sequence[Document]
    count: Count
    length: int
    first: bool = False

    def asked(self, text: str, question: str) -> str:
        """A question before, or after, a text."""
        return f"{question}\n\n{text}" if self.first else f"{text}\n\n{question}"

    def filler(self, rng: np.random.Generator, room: int) -> list[str]:
        """Sentences that follow each other in a document (and the next ones), of `room` tokens together or less."""
        found: list[str] = []
        number = int(rng.integers(len(self.documents)))
        for _ in range(len(self.documents)):
            for sentence in SENTENCE.split(self.documents[number].text):
                room -= self.count(sentence + " ")
                if room < 0:
                    return found
                found.append(sentence)
            number = (number + 1) % len(self.documents)
        raise UsageError(f"the documents have fewer than {self.length} tokens together", "Give more, or less --length.")


def passkey(source: Source, rng: np.random.Generator, depths: Depths) -> list[Item]:
    """One five-digit number in other text, at its depth; every item has a text of its own."""
    question = "What is the pass key that the text mentions?"
    items = []
    for depth in depths:
        key = str(rng.integers(10_000, 100_000))
        text = _hidden(source, rng, [(depth, f"The pass key is {key}. Remember it. {key} is the pass key.")], question)
        items.append(Item(source.asked(text, question), "The pass key is", (key,), 8))
    return items


def needles(source: Source, rng: np.random.Generator, depths: Depths) -> list[Item]:
    """Several names in one text, a five-digit number each; an item asks for one of them."""
    facts = _facts(rng, depths)
    question = "What is the secret number of {} that the text mentions?"
    text = _hidden(source, rng, [(depth, f"{_said(name)} {number}.") for depth, name, number in facts], question)
    return [Item(source.asked(text, question.format(name)), _said(name), (number,), 8) for _, name, number in facts]


def needles_all(source: Source, rng: np.random.Generator, depths: Depths) -> list[Item]:
    """The same, and all are asked for at once, one item; the score is the share of numbers found."""
    facts = _facts(rng, depths)
    names, numbers = zip(*((name, number) for _, name, number in facts), strict=True)
    question = f"List the secret numbers of {', '.join(names)} that the text mentions."
    text = _hidden(source, rng, [(depth, f"{_said(name)} {number}.") for depth, name, number in facts], question)
    return [Item(source.asked(text, question), _said(names[0]), numbers, 80)]


def qa(source: Source, rng: np.random.Generator, depths: Depths) -> list[Item]:
    """Passages, each of which answers a question, among others: their own, or else a gap in one of their sentences."""
    pairs = [d for d in source.documents if d.question and len(d.answer.split()) <= SHORT]
    asked = (_own if pairs else _gap)(pairs or source.documents, rng, len(depths))
    taken = {passage for passage, _ in asked}
    answers = [item.answers[0] for _, item in asked if item.words]
    others = [d.text for d in source.documents if d.text not in taken and not any(one in d.text for one in answers)]
    text = _among(source, rng, list(zip(depths, (passage for passage, _ in asked), strict=True)), others)
    return [replace(item, text=source.asked(text, item.text)) for _, item in asked]


def _own(pairs: Sequence[Document], rng: np.random.Generator, wanted: int) -> list[tuple[str, Item]]:
    """(passage, item whose text is its question) of documents that have a question each, no two the same one."""
    distinct = list({pair.question.lower(): pair for pair in pairs}.values())
    if len(distinct) < wanted:
        raise UsageError(f"{len(distinct)} documents have a short answer; {wanted} are needed", "Give more.")
    chosen = [distinct[number] for number in rng.choice(len(distinct), wanted, replace=False)]
    return [(d.text, Item(f"Answer as the text does: {d.question}", "Answer:", (d.answer,), 32)) for d in chosen]


def _gap(documents: Sequence[Document], rng: np.random.Generator, wanted: int) -> list[tuple[str, Item]]:
    """(passage, item whose text asks to complete one of its sentences, where it goes on with a name or number that the
    passages found so far do not have)."""
    found: list[tuple[str, Item]] = []
    for number in rng.permutation(len(documents)):
        passage = documents[number].text
        sentence = str(rng.choice(SENTENCE.split(passage)))
        for named in NAMED.finditer(sentence):
            before, words = sentence[: named.start()].rstrip(), named.group()
            new = all(words not in other and item.answers[0] not in passage for other, item in found)
            if len(before.split()) >= BEFORE and passage.count(words) == 1 and new and len(passage) < LONG:
                question = f"Complete the sentence as the text does: {before} ..."
                found.append((passage, Item(question, before, (words,), 16, len(words.split()))))
                break
        if len(found) == wanted:
            return found
    raise UsageError(f"the documents have {len(found)} short passages with a name or number to ask for", "Give others.")


def _facts(rng: np.random.Generator, depths: Depths) -> list[tuple[float, str, str]]:
    """(depth, name, number), no two alike."""
    names: list[str] = rng.choice(NAMES, len(depths), replace=False).tolist()
    numbers = [str(number) for number in rng.choice(np.arange(10_000, 100_000), len(depths), replace=False)]
    return list(zip(depths, names, numbers, strict=True))


def _said(name: str) -> str:
    return f"The secret number of {name} is"


def _hidden(source: Source, rng: np.random.Generator, facts: list[tuple[float, str]], question: str) -> str:
    needed = source.count(question) + sum(source.count(f"{fact} ") for _, fact in facts)
    return " ".join(_inserted(source.filler(rng, source.length - needed), facts))


def _among(source: Source, rng: np.random.Generator, passages: list[tuple[float, str]], others: Sequence[str]) -> str:
    room, found = source.length - sum(source.count(passage) for _, passage in passages), list[str]()
    for number in rng.permutation(len(others)):
        size = source.count(others[number] + "\n\n")
        if size <= room:
            found.append(others[number])
            room -= size
        if room < 50:
            break
    return "\n\n".join(_inserted(found, passages))


def _inserted(parts: list[str], ours: list[tuple[float, str]]) -> list[str]:
    places = sorted(((round(depth * len(parts)), part) for depth, part in ours), reverse=True)
    for place, part in places:
        parts.insert(place, part)
    return parts


TASKS: dict[str, Callable[[Source, np.random.Generator, Depths], list[Item]]] = {
    "passkey": passkey,
    "needles": needles,
    "needles-all": needles_all,
    "qa": qa,
}
"""Each makes a group of items, one a depth (0: the text's beginning, 1: its end), or one for all of them."""
