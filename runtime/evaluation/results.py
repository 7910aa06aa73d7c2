"""Results in a JSON-lines file: an evaluation that was stopped goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgellm.runtime.errors import EdgellmError


@dataclass(frozen=True)
class Row:
    """What one item gave. scores: by cell, 0 to 1, or nats a token of a text; answers: the model's words, by cell."""

    item: int
    prompt_tokens: int
    scores: dict[str, float]
    answers: dict[str, str]


class Results:
    """Rows of one plan, kept in `path` too (None: nowhere) beside those of others; a row may add cells to an earlier
    one's item. Raises EdgellmError for a file that cannot be used."""

    def __init__(self, path: Path | None, plan: Mapping[str, Any]) -> None:
        self._path, self._plan = path, dict(plan)
        self.rows: dict[int, Row] = {}
        for row in self._read():
            self._merge(row)

    def add(self, row: Row) -> None:
        """Keep a row; in the file it is one write."""
        self._merge(row)
        if self._path is not None:
            line = json.dumps({"plan": self._plan, **vars(row)}, ensure_ascii=False) + "\n"
            try:
                with self._path.open("ab") as file:
                    file.write(line.encode())
            except OSError as error:
                raise self._error(error.strerror) from None

    def _merge(self, row: Row) -> None:
        if (old := self.rows.get(row.item)) is not None:
            row = Row(row.item, row.prompt_tokens, old.scores | row.scores, old.answers | row.answers)
        self.rows[row.item] = row

    def _read(self) -> Iterator[Row]:
        if self._path is None or not self._path.exists():
            return
        try:
            with self._path.open("r+b") as file:
                content = file.read()
                whole = content.rfind(b"\n") + 1
                file.truncate(whole)  # a line that was being written when the run was stopped
            for line in content[:whole].splitlines():
                fields = json.loads(line)
                if fields.pop("plan") == self._plan:
                    yield Row(**fields)
        except OSError as error:
            raise self._error(error.strerror) from None
        except (ValueError, KeyError, TypeError, AttributeError):
            raise self._error("it is no results of `edgellm eval`") from None

    def _error(self, what: object) -> EdgellmError:
        return EdgellmError(f"{self._path} cannot be used for results: {what}", "Name another file with --results.")
