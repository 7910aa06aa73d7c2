"""Tasks over long prompts, built from the user's documents: a pass key, several needles, questions, cloze.

Pass keys as Mohtashami & Jaggi (arXiv 2305.16300), needles as RULER (arXiv 2404.06654), questions in the manner of
LongBench (arXiv 2308.14508), answered by token F1; wording and the building from one file are ours.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from edgellm.runtime.errors import UsageError
from edgellm.runtime.evaluation.documents import Document

NAMES = ("Amsterdam", "Bamako", "Caracas", "Dublin", "Edinburgh", "Florence", "Geneva", "Havana", "Jakarta", "Lisbon")
NEEDLES = 4
SHORT = 12  # words: an answer to be found again word for word in some 32 tokens
SENTENCE = re.compile(r"(?<=[.!?])\s+")
NAMED = re.compile(r"\b(?:\d[\d,.]*\d|[A-Z][\w'-]+(?: [A-Z][\w'-]+)*)")  # a number, or words with capitals

Count = Callable[[str], int]  # tokens of a text


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


def passkey(source: Source, rng: np.random.Generator, depth: float) -> Item:
    """One five-digit number in other text, at `depth` (0: its beginning, 1: its end)."""
    key = str(rng.integers(10_000, 100_000))
    needle = f"The pass key is {key}. Remember it. {key} is the pass key."
    question = "What is the pass key that the text mentions?"
    text = _hidden(source, rng, [(depth, needle)], question)
    return Item(source.asked(text, question), "The pass key is", (key,), 10)


def needles(source: Source, rng: np.random.Generator, depth: float) -> Item:
    """Several names with a five-digit number each in other text; one of them, at `depth`, is asked for."""
    names, numbers, facts = _facts(rng, depth)
    question = f"What is the secret number of {names[0]} that the text mentions?"
    text = _hidden(source, rng, facts, question)
    return Item(source.asked(text, question), _cue(names), (numbers[0],), 10)


def needles_all(source: Source, rng: np.random.Generator, depth: float) -> Item:
    """The same, and all are asked for; the score is the share of numbers found."""
    names, numbers, facts = _facts(rng, depth)
    question = f"List the secret numbers of {', '.join(names)} that the text mentions."
    text = _hidden(source, rng, facts, question)
    return Item(source.asked(text, question), _cue(names), tuple(numbers), 80)


def qa(source: Source, rng: np.random.Generator, depth: float) -> Item:
    """A question that one of many passages answers: the document's own, or else a gap in one of its sentences."""
    pairs = [d for d in source.documents if d.question and len(d.answer.split()) <= SHORT]
    return _pair(source, rng, depth, pairs) if pairs else _cloze(source, rng, depth)


def _pair(source: Source, rng: np.random.Generator, depth: float, pairs: Sequence[Document]) -> Item:
    asked = pairs[int(rng.integers(len(pairs)))]
    question = f"Answer as the text does: {asked.question}"
    others = [d.text for d in source.documents if d.question.lower() != asked.question.lower()]
    text = _among(source, rng, depth, asked.text, others, question)
    return Item(source.asked(text, question), "Answer:", (asked.answer,), 32)


def _cloze(source: Source, rng: np.random.Generator, depth: float) -> Item:
    for _ in range(1000):
        document = source.documents[int(rng.integers(len(source.documents)))]
        sentences = SENTENCE.split(document.text)
        sentence = sentences[int(rng.integers(len(sentences)))]
        others = [d.text for d in source.documents if d is not document]
        for named in NAMED.finditer(sentence):
            before, words = sentence[: named.start()].rstrip(), named.group()
            if len(before.split()) >= 6 and document.text.count(words) == 1 and source.count(document.text) < 400:
                question = f"Complete the sentence as the text does: {before} ..."
                clean = [text for text in others if words not in text]
                text = _among(source, rng, depth, document.text, clean, question)
                return Item(source.asked(text, question), before, (words,), 32, len(words.split()))
    raise UsageError("the documents have no sentence with a name or number to ask for", "Give others.")


def _facts(rng: np.random.Generator, depth: float) -> tuple[list[str], list[str], list[tuple[float, str]]]:
    """Names, their numbers, and sentences that say so with the depth of each: the first one's is given."""
    names: list[str] = rng.choice(NAMES, NEEDLES, replace=False).tolist()
    numbers = [str(number) for number in rng.choice(np.arange(10_000, 100_000), NEEDLES, replace=False)]
    facts = [f"The secret number of {name} is {number}." for name, number in zip(names, numbers, strict=True)]
    return names, numbers, list(zip([depth, *rng.random(NEEDLES - 1)], facts, strict=True))


def _cue(names: Sequence[str]) -> str:
    return f"The secret number of {names[0]} is"


def _hidden(source: Source, rng: np.random.Generator, facts: list[tuple[float, str]], question: str) -> str:
    sentences = source.filler(
        rng, source.length - sum(source.count(f"{fact} ") for _, fact in facts) - source.count(question)
    )
    places = [(round(depth * len(sentences)), fact) for depth, fact in facts]
    for place, fact in sorted(places, reverse=True):
        sentences.insert(place, fact)
    return " ".join(sentences)


def _among(
    source: Source, rng: np.random.Generator, depth: float, passage: str, others: Sequence[str], question: str
) -> str:
    room, found = source.length - source.count(passage) - source.count(question), list[str]()
    for number in rng.permutation(len(others)):
        size = source.count(others[number] + "\n\n")
        if size <= room:
            found.append(others[number])
            room -= size
        if room < 50:
            break
    found.insert(round(depth * len(found)), passage)
    return "\n\n".join(found)


TASKS: dict[str, Callable[[Source, np.random.Generator, float], Item]] = {
    "passkey": passkey,
    "needles": needles,
    "needles-all": needles_all,
    "qa": qa,
}
