"""The engine's own threads, under ThreadSanitizer where the compiler has it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT

SOURCES = ("kernels/engine/threads.cc", "tests/native/threads.cc")


@pytest.mark.parametrize("sanitizer", ["thread", "address,undefined"])
def test_threads(tmp_path: Path, sanitizer: str) -> None:
    if shutil.which("g++") is None:
        pytest.skip("no g++ here")
    command = ["g++", "-std=c++17", "-O1", "-g", "-pthread", f"-fsanitize={sanitizer}", f"-I{ROOT}"]
    built = subprocess.run(
        [*command, *(str(ROOT / name) for name in SOURCES), "-o", str(tmp_path / "threads")],
        capture_output=True,
        text=True,
    )
    if "cannot find" in built.stderr:
        pytest.skip(f"g++ has no -fsanitize={sanitizer} here")
    assert built.returncode == 0, built.stderr
    found = subprocess.run([tmp_path / "threads"], capture_output=True, text=True)
    assert (found.returncode, found.stdout, found.stderr) == (0, "", "")
