"""`edgellm adapters`: the adapters of a folder, and which of them a bundle can use."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import click

from edgellm.runtime.adapter import SUFFIX, read_adapter
from edgellm.runtime.commands.options import bundle_argument, json_option
from edgellm.runtime.commands.output import print_json
from edgellm.runtime.errors import AdapterError, UsageError
from edgellm.runtime.manifest import read_manifest
from edgellm.runtime.schema import Manifest


@click.command("adapters")
@bundle_argument
@click.argument("folder", type=click.Path(path_type=Path))
@json_option
def command(bundle: Path, folder: Path, as_json: bool) -> None:
    """List a folder's *.adapter files, and say whether they fit the bundle. To drop one, delete its file.

    \b
    edgellm adapters bundle adapters/
    """
    manifest = read_manifest(bundle)
    if not folder.is_dir():
        raise UsageError(f"{folder} is no folder", "Give the folder that adapters were saved in.")
    found = [facts(path, manifest) for path in sorted(folder.glob(f"*{SUFFIX}"))]
    if as_json:
        print_json({"adapters": found})
    else:
        show(found, folder)


def facts(path: Path, manifest: Manifest) -> dict[str, Any]:
    """An adapter's keys in --json: "file", "bytes", "written" (local time); "carrier", "objective", "mode" and
    "questions", None where unknown; "fits": whether the bundle can use it, and "why_not"."""
    status = path.stat()
    written = datetime.fromtimestamp(status.st_mtime).astimezone().isoformat(timespec="seconds")
    told: dict[str, Any] = {"file": path.name, "bytes": status.st_size, "written": written, "carrier": None}
    told |= {"objective": None, "mode": None, "questions": None, "fits": False, "why_not": None}
    try:
        adapter = read_adapter(path)
        told["carrier"] = adapter.facts.carrier
        told |= {key: adapter.facts.learned.get(key) for key in ("objective", "mode", "questions")}
        adapter.check(manifest)
    except AdapterError as error:
        return told | {"why_not": error.what}
    return told | {"fits": True}


def show(found: list[dict[str, Any]], folder: Path) -> None:
    """The table for people, on stdout."""
    from rich.console import Console
    from rich.table import Table

    if not found:
        click.echo(f"{folder} has no *{SUFFIX} files")
        return
    table = Table(box=None)
    for title in ("file", "carrier", "learned", "questions", "written", "KiB", "fits"):
        table.add_column(title, justify="right" if title in ("questions", "KiB") else "left", overflow="fold")
    for one in found:
        learned = ", ".join(one[key] for key in ("mode", "objective") if one[key])
        written, size = one["written"][:16].replace("T", " "), f"{one['bytes'] / 1024:.0f}"
        questions = "-" if one["questions"] is None else str(one["questions"])
        row = [one["file"], one["carrier"] or "-", learned or "-", questions, written, size]
        table.add_row(*row, "yes" if one["fits"] else f"no: {one['why_not']}")
    Console(markup=False, emoji=False, highlight=False).print(table)
