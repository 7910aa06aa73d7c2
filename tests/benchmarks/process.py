"""One request to one contender in a fresh process, and how much of the machine others had meanwhile (Linux)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.benchmarks.contenders import Contender
from tests.benchmarks.peers.protocol import SKIPPED

ROOT = Path(__file__).parents[2]
STAT = Path("/proc/stat")
LIMIT = 900  # seconds a run may take
TICK = os.sysconf("SC_CLK_TCK")


class Failed(Exception):
    """No answer, and why."""


def ask(contender: Contender, request: dict[str, Any], neighbour: int | None = None) -> dict[str, Any]:
    """The contender's answer, with "others": the share of all processors' time that neither this process nor the run
    nor the process `neighbour` had. Raises Failed."""
    asked = {"model": str(contender.model.resolve()), "settings": dict(contender.settings), **request}
    command = [str(contender.python), "-m", f"tests.benchmarks.peers.{contender.module}"]
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "PYTHON"))}
    with tempfile.TemporaryFile("w+") as asking, tempfile.TemporaryFile() as answer, tempfile.TemporaryFile() as log:
        before, begin = _busy(neighbour), time.monotonic()
        json.dump({**asked, "started": begin}, asking)
        asking.seek(0)
        with subprocess.Popen(command, stdin=asking, stdout=answer, stderr=log, cwd=ROOT, env=clean) as child:
            try:
                child.wait(LIMIT)
            except subprocess.TimeoutExpired:
                child.kill()
                raise Failed(f"it took longer than {LIMIT} s") from None
        elapsed, after = time.monotonic() - begin, _busy(neighbour)
        answer.seek(0)
        log.seek(0)
        said = answer.read().decode(errors="replace").strip().splitlines()
        complained = log.read().decode(errors="replace").strip().splitlines()
    found = _parsed(said[-1]) if said else None
    if child.returncode == SKIPPED and found:
        raise Failed(str(found["skipped"]))
    if child.returncode or found is None:
        ended = signal.Signals(-child.returncode).name if child.returncode < 0 else f"exit code {child.returncode}"
        raise Failed(f"{ended}: {complained[-1][:300]}" if complained else ended)
    return {**found, "others": max(0.0, (after - before) / (elapsed * (os.cpu_count() or 1)))}


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _busy(neighbour: int | None) -> float:
    """Seconds that all processors worked so far for others than this process, its ended children and a neighbour."""
    times = [int(value) for value in STAT.read_text().splitlines()[0].split()[1:9]]
    user, nice, system, _idle, _waiting, *interrupts = times
    mine = os.times()
    own = mine.user + mine.system + mine.children_user + mine.children_system
    if neighbour is not None:
        fields = Path(f"/proc/{neighbour}/stat").read_text().rpartition(")")[2].split()
        own += (int(fields[11]) + int(fields[12])) / TICK
    return (user + nice + system + sum(interrupts)) / TICK - own


@contextmanager
def busy_neighbour() -> Iterator[int]:
    """Another process that keeps one core at 100 %, as long as this lasts; its id."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        try:
            yield process.pid
        finally:
            process.kill()
