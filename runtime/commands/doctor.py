"""`edgellm doctor`: is this machine ready, and if not, what is missing."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.util import find_spec

import click

from edgellm.devices.cores import usable_cores
from edgellm.devices.memory import available_bytes
from edgellm.runtime.cli import tool_version
from edgellm.runtime.commands.options import json_option
from edgellm.runtime.commands.output import print_json
from edgellm.runtime.errors import EdgellmError

COLORS = {"ok": "green", "warn": "yellow", "fail": "red"}
SCARCE = 512 << 20  # bytes: below this even a 135M model at 4 bits leaves little


@dataclass(frozen=True)
class Check:
    """One line: status "ok" | "warn" | "fail"."""

    name: str
    status: str
    detail: str


@click.command("doctor")
@json_option
def command(as_json: bool) -> None:
    """Check this machine and installation; exit code 1 if something fails.

    \b
    edgellm doctor --json
    """
    found = [run(name, check) for name, check in CHECKS.items()]
    failed = any(check.status == "fail" for check in found)
    if as_json:
        print_json({"ok": not failed, "checks": [asdict(check) for check in found]})
    else:
        for check in found:
            click.echo(f"{click.style(f'{check.status:5}', fg=COLORS[check.status])}{check.name}: {check.detail}")
    sys.exit(1 if failed else 0)


def run(name: str, check: Callable[[], tuple[str, str]]) -> Check:
    """Run a check; an exception is a failure, told in its own words."""
    try:
        return Check(name, *check())
    except Exception as error:  # whatever is wrong with this machine
        return Check(name, "fail", " ".join(str(error).split()) or type(error).__name__)


def _python() -> tuple[str, str]:
    detail = f"{platform.python_version()} on {platform.machine()}, edgellm {tool_version()}"
    return ("ok" if sys.version_info >= (3, 11) else "fail"), detail


def _onnxruntime() -> tuple[str, str]:
    from edgellm.kernels.library import library_path
    from edgellm.runtime.onnx_graph import OLDEST, the_onnxruntime

    try:
        onnxruntime = the_onnxruntime()
    except EdgellmError as error:
        return "warn", f"{error.what}: {error.hint}"
    version = str(onnxruntime.__version__)
    new_enough = tuple(int(part) for part in version.split(".")[:2]) >= OLDEST
    if not new_enough:
        return "fail", f"{version}; needs 1.23: pip install -U onnxruntime"
    onnxruntime.SessionOptions().register_custom_ops_library(str(library_path()))  # raises where it takes no operators
    return "ok", f"{version}, takes the operators"


def _library() -> tuple[str, str]:
    from edgellm.kernels.library import engine, library, library_path

    library(), engine()
    return "ok", str(library_path())


def _kernels() -> tuple[str, str]:
    from edgellm.kernels.library import instruction_set
    from edgellm.kernels.self_test import self_test

    name = instruction_set()
    self_test()
    if name == "portable":
        return "warn", "self-test passed, but there is no fast path for this processor"
    return "ok", f"{name}, self-test passed"


def _cpp() -> tuple[str, str]:
    from edgellm.kernels.library import cmake_prefix

    try:
        return "ok", f"for C++ programs, CMAKE_PREFIX_PATH={cmake_prefix()}"
    except FileNotFoundError as error:  # nothing in Python needs it
        return "warn", f"not here: {error}"


def _memory() -> tuple[str, str]:
    free = available_bytes()
    if free is None:
        return "warn", "this system does not tell how much is available"
    return ("warn" if free < SCARCE else "ok"), f"{free / 2**30:.1f} GiB available"


def _cores() -> tuple[str, str]:
    return "ok", f"{usable_cores()} physical cores to use, {os.cpu_count()} processors"


def _export() -> tuple[str, str]:
    missing = [name for name in ("torch", "onnx", "gguf") if find_spec(name) is None]
    lacking = f"not here ({', '.join(missing)} missing; only exporting needs it: pip install edgellm[export])"
    return "ok", lacking if missing else "available"


CHECKS = {
    "python": _python,
    "onnxruntime": _onnxruntime,
    "operator library": _library,
    "kernels": _kernels,
    "C++ library": _cpp,
    "memory": _memory,
    "cores": _cores,
    "export": _export,
}
