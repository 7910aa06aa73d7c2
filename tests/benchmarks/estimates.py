"""How far the estimate of an export is from what happens: bundle, memory here and on the device, time.

    python -m tests.benchmarks.estimates MODEL [--export OPTIONS] [--out FOLDER]

The export and a generation run in processes of their own; memory is what the system says of them when they end.
The bundle gets a window of 256 tokens and a prompt that fills it, so that the device's peak is reached.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click

CLI = [sys.executable, "-c", "from edgellm.runtime.cli import main; main()"]
PROMPT = "The lighthouse keeper counts ships and writes letters that nobody reads. " * 30


def run(*arguments: object) -> tuple[dict[str, Any], int, float]:
    """(the verb's JSON, peak resident bytes, seconds) of one edgellm command."""
    started = time.perf_counter()
    with tempfile.TemporaryFile() as answer:
        child = subprocess.Popen([*CLI, *map(str, arguments), "--json"], stdout=answer)
        # This process is smaller than any it starts, so the peak a child inherits does not show.
        _, status, usage = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - started
        if status:
            sys.exit(os.waitstatus_to_exitcode(status))
        answer.seek(0)
        return json.load(answer), usage.ru_maxrss * 1024, seconds


@click.command()
@click.argument("model", type=Path)
@click.option("--export", "options", default="", help="Options of edgellm export, as one string.")
@click.option("--out", type=Path, help="Keep the bundle there.")
def main(model: Path, options: str, out: Path | None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        bundle = out or Path(folder) / "bundle"
        facts, host, seconds = run("export", model, bundle, "--kv", "window:256", "--force", *shlex.split(options))
        answer, device, _ = run("generate", bundle, "-p", PROMPT, "-n", 4)
        expected = facts["estimate"]
        size = sum(file.stat().st_size for file in bundle.iterdir())
        rows = {
            "bundle_bytes": (expected["bundle_bytes"], size),
            "host_bytes": (expected["host_bytes"], host),
            "seconds": (expected["seconds"], seconds),
            "device_bytes": (expected["device_bytes"], device),
            "kv_bytes": (expected["kv_bytes"], answer["kv_bytes"]),
        }
        for name, (guess, measured) in rows.items():
            click.echo(f"{name:13} estimated {guess:14,.0f}  measured {measured:14,.0f}  {guess / measured - 1:+.1%}")


if __name__ == "__main__":
    main()
