"""stdout is the answer; everything else goes to stderr."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import click

from edgellm.runtime.session import Progress


def print_json(data: Mapping[str, Any]) -> None:
    """One object on stdout. NaN and infinity are not JSON: they raise ValueError."""
    click.echo(json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False))


def write(piece: str) -> None:
    """A piece of the answer, at once."""
    click.echo(piece, nl=False)


def note(text: str) -> None:
    """A line on stderr."""
    click.echo(text, err=True)


@contextmanager
def progress_bar(label: str) -> Iterator[Progress]:
    """A bar on stderr, gone when done; nothing where stderr is no terminal."""
    from rich.console import Console
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    with Bar(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(label, total=None)

        def update(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        yield update
