"""Optimum beside the test environment, whose transformers it refuses: fetched by name into build/optimum."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.conftest import ROOT

FOLDER = ROOT / "build" / "optimum"
# What `pip install "edgellm[optimum]"` would bring beyond the test environment, without what that has already.
SPECS = [
    "optimum==2.1.0", "optimum-onnx==0.1.0", "transformers==4.57.6", "huggingface_hub==0.36.2", "tokenizers==0.22.2",
    "onnx-ir==1.1.0",
]  # fmt: skip


def fetched() -> Path:
    """The folder to put first on PYTHONPATH. Skips the test, with pip's reason, where it cannot be fetched."""
    stamp = FOLDER / "specs"
    if not stamp.is_file() or stamp.read_text().split() != SPECS:
        partial = FOLDER.with_suffix(f".{os.getpid()}")
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(partial), *SPECS]
        done = subprocess.run(pip, capture_output=True, text=True)
        if done.returncode:
            shutil.rmtree(partial, ignore_errors=True)
            pytest.skip(f"Optimum cannot be fetched: {(done.stderr.strip().splitlines() or ['pip failed'])[-1]}")
        (partial / "specs").write_text("\n".join(SPECS))
        shutil.rmtree(FOLDER, ignore_errors=True)
        partial.rename(FOLDER)
    return FOLDER


def export(*arguments: object) -> subprocess.CompletedProcess[str]:
    """`edgellm export` with Optimum, where opening a socket ends the process."""
    # Without a name in the environment torch asks the system for the user's, which glibc does by a local socket.
    # One thread each: two beside a busy neighbour mostly wait.
    environment = {**os.environ, "PYTHONPATH": str(fetched()), "LOGNAME": "tester", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.offline", "export", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
