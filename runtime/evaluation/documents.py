"""The user's documents: what tasks are built from."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from edgellm.runtime.errors import UsageError

EXPECTED = (
    'Give a text, a JSON list or JSON lines, of strings or of objects with "text", or with "question" and "answer".'
)


@dataclass(frozen=True)
class Document:
    """A text; or a question with its answer, which text then says too."""

    text: str
    question: str = ""
    answer: str = ""


def read_documents(path: Path) -> list[Document]:
    """A UTF-8 file's documents: a *.txt is one, a JSON list or JSON lines have one an entry; empty ones are left out.

    Raises UsageError for a file that cannot be read, is something else, or has none.
    """
    try:
        content = path.read_bytes().decode("utf-8")
        found = [content] if path.suffix == ".txt" else _entries(content)
        documents = [_document(entry) for entry in found]
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}", EXPECTED) from None
    except ValueError as error:  # of UTF-8, JSON, or an entry
        raise UsageError(f"{path} holds no documents: {error}", EXPECTED) from None
    documents = [document for document in documents if document.text]
    if not documents:
        raise UsageError(f"{path} holds no documents: it is empty", EXPECTED)
    return documents


def _entries(content: str) -> list[object]:
    if content.lstrip()[:1] == "[":
        entries: list[object] = json.loads(content)
        return entries
    return [json.loads(line) for line in content.splitlines() if line.strip()]


def _document(entry: object) -> Document:
    if isinstance(entry, str):
        return Document(entry.strip())
    if isinstance(entry, dict):
        question, answer, text = (entry.get(key) for key in ("question", "answer", "text"))
        if isinstance(question, str) and isinstance(answer, str):
            question, answer = question.strip(), answer.strip()
            return Document(f"Question: {question}\nAnswer: {answer}", question, answer)
        if isinstance(text, str):
            return Document(text.strip())
    raise ValueError(f"an entry is {json.dumps(entry)[:60]}")
