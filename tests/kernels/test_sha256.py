"""The library's SHA-256, portable and by the processor's instructions, beside hashlib's."""

from __future__ import annotations

import hashlib
import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.kernels.test_native import COMPILERS

FLAG = {"x86_64": "sha_ni", "aarch64": "sha2"}  # what Linux calls a processor's instructions


def program(target: str, folder: Path) -> str:
    """tests/native/sha256.cc for a target."""
    if shutil.which(COMPILERS[target]) is None:
        pytest.skip(f"{COMPILERS[target]} is not installed")
    names = ("kernels/engine/sha256_portable.cc", "kernels/engine/sha256_hardware.cc", "tests/native/sha256.cc")
    sources = [str(ROOT / name) for name in names]
    command = [COMPILERS[target], "-std=c++17", "-O2", "-static", f"-I{ROOT}", *sources, "-o", str(folder / "sha256")]
    subprocess.run(command, check=True)
    return str(folder / "sha256")


def check(command: list[str], ways: int) -> None:
    """Compare with hashlib at sizes around a block's; so many ways of hashing are there."""
    for size in (0, 1, 55, 56, 63, 64, 65, 119, 120, 128, 1000, 4096):
        content = bytes(7 * index % 251 for index in range(size))
        lines = subprocess.run(command, input=content, capture_output=True, check=True).stdout.decode().split()
        assert set(lines) == {hashlib.sha256(content).hexdigest()}
        assert len(lines) == ways


def test_on_this_machine(tmp_path: Path) -> None:
    has = FLAG.get(platform.machine(), "none of ours") in Path("/proc/cpuinfo").read_text().split()
    check([program("host", tmp_path)], 2 if has else 1)


def test_on_arm(tmp_path: Path) -> None:
    """qemu's "max" has the instructions."""
    emulator = shutil.which("qemu-aarch64-static")
    if emulator is None:
        pytest.skip("qemu-aarch64-static is not installed (Debian: qemu-user-static)")
    built = program("aarch64", tmp_path)
    check([emulator, "-cpu", "max", built], 2)
