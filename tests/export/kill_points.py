"""Kills exports with SIGKILL at every step they take towards the disk; prints what each left behind, as JSON lines.

    python -m tests.export.kill_points SOURCE FOLDER

Run apart from pytest: every export is a fork of this process, which must have started no thread before.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from edgellm.export import write
from edgellm.export.config import ExportConfig
from edgellm.export.pipeline import export
from edgellm.runtime.errors import BundleError
from edgellm.runtime.manifest import read_manifest


def countdown(steps: int) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Wraps functions so that the process dies before their `steps`-th call, counted over all of them."""
    left = [steps]

    def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **named: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **named)

        return counted

    return wrap


def killed_export(config: ExportConfig, steps: int) -> bool:
    """Export in a fork that dies at its `steps`-th step; whether it died rather than finished."""
    child = os.fork()
    if child == 0:
        wrap = countdown(steps)
        for name in ("append", "keep", "write", "facts", "commit"):
            setattr(write.PartialBundle, name, wrap(getattr(write.PartialBundle, name)))
        write._flush = wrap(write._flush)
        write.os.replace = wrap(os.replace)
        write.shutil.rmtree = wrap(write.shutil.rmtree)
        write.Journal.save = wrap(write.Journal.save)
        export(config)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return True
    assert os.WEXITSTATUS(status) == 0, "the export failed by itself"
    return False


def loads(folder: Path) -> bool:
    try:
        read_manifest(folder, verify=True)
        return True
    except BundleError:
        return False


def main(source: Path, folder: Path) -> None:
    torch.set_num_threads(1)
    out, work = folder / "bundle", folder / ".bundle.partial"
    config = ExportConfig(source, out, bits=8, calibration=folder / "calibration.txt")
    steps, died = 0, True
    while died:
        steps += 1
        shutil.rmtree(work, ignore_errors=True)
        died = killed_export(config, steps)
        found = [path for path in (out, work, *work.glob("*")) if path.is_dir()]
        step = {"step": steps, "died": died, "out": out.exists(), "loads": [p.name for p in found if loads(p)]}
        print(json.dumps(step), flush=True)
        if out.exists() and died:
            assert loads(out)
            break  # killed after the rename: the bundle is complete


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
