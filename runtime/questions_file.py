"""Reading questions: a JSON list, JSON lines, or plain text, a question a line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from edgellm.runtime.errors import UsageError

KEYS = ("question", "prompt", "text")
FORMS = 'Expected a JSON list or JSON lines of texts or of objects with "question", or plain text, a question a line.'


def read_questions(path: Path) -> list[str]:
    """The questions of a file, without empty ones. Raises UsageError for a file that is none, naming the entry."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}", FORMS) from None
    entries = _entries(text, path)
    found = [_question(entry, f"{path}, entry {number}") for number, entry in enumerate(entries, 1)]
    found = [question.strip() for question in found if question.strip()]
    if not found:
        raise UsageError(f"{path} has no questions", FORMS)
    return found


def _entries(text: str, path: Path) -> list[Any]:
    if text.lstrip()[:1] == "[":
        try:
            entries = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{path} is no JSON list: {error}", FORMS) from None
        assert isinstance(entries, list)
        return entries
    lines = [line for line in text.splitlines() if line.strip()]
    if text.lstrip()[:1] != "{":
        return lines
    try:
        return [json.loads(line) for line in lines]
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is no JSON lines: {error}", FORMS) from None


def _question(entry: Any, where: str) -> str:
    if isinstance(entry, dict):
        entry = next((entry[key] for key in KEYS if key in entry), None)
    if not isinstance(entry, str):
        raise UsageError(f"{where} has no question", FORMS)
    return entry
