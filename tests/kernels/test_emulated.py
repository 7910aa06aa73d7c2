"""x86 instruction sets that this processor may lack: their kernels compiled with SIMDe's plain C++ for intrinsics."""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.kernels.test_native import FLAGS, cases

NAMES = {source.split("/")[0]: source for source in FLAGS["x86_64"]}
BUILD = ["g++", "-std=c++17", f"-I{ROOT}"]

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="x86 kernels")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tests/native/check.cc with all instruction sets of x86, and the cases beside it."""
    if not Path("/usr/include/simde/x86/avx512.h").exists():
        pytest.skip("SIMDe is not installed (Debian: libsimde-dev)")
    folder = tmp_path_factory.mktemp("emulated")
    objects = [str(folder / f"{name}.o") for name in NAMES]
    # SIMDe lets integers wrap, and passes vectors by value.
    emulated = ['-DEDGELLM_INTRINSICS="tests/native/emulated.h"', "-O1", "-fwrapv", "-Wno-psabi"]
    for source, to in zip(NAMES.values(), objects, strict=True):
        subprocess.run([*BUILD, *emulated, "-c", str(ROOT / "kernels/cpu" / source), "-o", to], check=True)
    sources = [str(path) for path in (*sorted((ROOT / "kernels/cpu").glob("*.cc")), ROOT / "tests/native/check.cc")]
    to = str(folder / "check")
    subprocess.run([*BUILD, "-O2", "-DEDGELLM_EMULATED", *sources, *objects, "-o", to], check=True)
    (folder / "cases").write_bytes(cases())
    return folder / "check"


@pytest.mark.parametrize("name", NAMES)
def test_operators(program: Path, name: str) -> None:
    done = subprocess.run([str(program), str(program.parent / "cases"), name], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    said, _, counts = done.stdout.partition(": ")
    assert said == name
    assert "0 failed" in counts
    assert int(counts.split()[0]) > 100


@pytest.mark.parametrize("name", NAMES)
def test_no_code_is_shared(name: str, tmp_path: Path) -> None:
    """Of functions that many files define inline the linker keeps one: it must not be made for a newer processor."""
    if shutil.which("nm") is None:
        pytest.skip("nm is not installed (Debian: binutils)")
    source, to = NAMES[name], tmp_path / "isa.o"
    subprocess.run(
        [*BUILD, "-O2", *FLAGS["x86_64"][source], "-c", str(ROOT / "kernels/cpu" / source), "-o", str(to)], check=True
    )
    symbols = subprocess.run(["nm", "-C", str(to)], capture_output=True, text=True, check=True).stdout.splitlines()
    shared = [line for line in symbols if line[17:18] == "W"]
    assert shared
    assert [line for line in shared if f"edgellm::{name}::" not in line] == []
