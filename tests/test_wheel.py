"""One wheel a platform, for every Python, the native library inside."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.conftest import ROOT

LIBRARY = "edgellm/kernels/libedgellm_ort.so"
MACHINES = {"x86_64": 62, "aarch64": 183}  # ELF's e_machine


def contents(wheel: Path) -> tuple[set[str], bytes]:
    with zipfile.ZipFile(wheel) as files:
        return set(files.namelist()), files.read(LIBRARY)


@pytest.mark.parametrize("machine", ["aarch64"])  # x86-64's is built, installed and run by tests/test_device.py
def test_the_wheel_for_another_processor(machine: str) -> None:
    if shutil.which(f"{machine}-linux-gnu-g++") is None:
        pytest.skip(f"no cross-compiler (Debian: g++-{machine}-linux-gnu)")
    if importlib.util.find_spec("pip") is None:
        pytest.skip("this environment has no pip")
    built = subprocess.run(
        ["make", f"wheel-{machine}", f"PYTHON={sys.executable}"], cwd=ROOT, capture_output=True, text=True
    )
    assert built.returncode == 0, built.stderr
    names, library = contents(next((ROOT / "build" / "dist").glob(f"*-py3-none-linux_{machine}.whl")))
    assert int.from_bytes(library[18:20], "little") == MACHINES[machine]
    for room in ("export", "runtime", "kernels", "devices"):
        assert f"edgellm/{room}/py.typed" in names
    assert "edgellm/export/families/llama.toml" in names
    assert not any(name.endswith((".cc", ".o")) for name in names)
