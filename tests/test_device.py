"""The device side in an environment of its own: no torch, no transformers, and small."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bundles import make_bundle
from tests.conftest import ROOT
from tests.door import onnxruntime_file

LARGEST_MB = 120


@pytest.fixture(scope="module")
def device_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python that sees only what `make device` makes, as a board would."""
    folder = tmp_path_factory.mktemp("device")
    built = subprocess.run(
        ["make", "device", f"DEVICE={folder / 'site'}", f"PYTHON={sys.executable}"],
        cwd=ROOT, capture_output=True, text=True,
        env=os.environ | {"PIP_NO_BUILD_ISOLATION": "off"},  # off: none. What this environment compiled is taken
    )  # fmt: skip
    if built.returncode and any(word in built.stderr for word in ("connection", "Could not find a version", "network")):
        pytest.skip(f"packages cannot be fetched here: {built.stderr.strip().splitlines()[-1]}")
    assert built.returncode == 0, built.stderr
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    packages = next((folder / "venv" / "lib").glob("python3*")) / "site-packages"
    (packages / "device.pth").write_text(str(folder / "site"))
    return folder / "venv" / "bin" / "python"


def run(python: Path, code: str, *arguments: object) -> str:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    command = [str(python), "-W", "error", "-c", code, *map(str, arguments)]
    finished = subprocess.run(command, capture_output=True, text=True, env=clean, cwd="/")
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def test_it_weighs_under_120_mb(device_python: Path) -> None:
    site = device_python.parents[2] / "site"
    total = sum(path.stat().st_size for path in site.rglob("*") if path.is_file())
    assert 50e6 < total < LARGEST_MB * 1e6


@pytest.mark.parametrize("module", ["torch", "transformers", "onnx", "gguf"])
def test_exports_packages_are_not_there(device_python: Path, module: str) -> None:
    code = f"import importlib.util; print(importlib.util.find_spec({module!r}))"
    assert run(device_python, code).strip() == "None"


def test_it_generates_there_what_it_generates_here(device_python: Path, tiny_model: Path, tmp_path: Path) -> None:
    from edgellm.runtime import load

    bundle = tmp_path / "bundle"
    make_bundle(tiny_model, bundle, "dass:2:4", bits=4)
    here = load(bundle).generate("The sea", max_new_tokens=20, stop=[])
    code = "from edgellm.runtime.cli import main; main()"
    there = json.loads(run(device_python, code, "generate", bundle, "-p", "The sea", "-n", 20, "--verify", "--json"))
    assert here.text.startswith(there["text"])  # the command stops at a stop token, which a random model may say
    assert there["new_tokens"] > 0
    assert set(there) >= {"prompt_tokens", "load_s", "prefill_s", "decode_s", "decode_tokens_per_s", "peak_rss_bytes"}


PROJECT = """cmake_minimum_required(VERSION 3.25)
project(hello LANGUAGES CXX)
find_package(edgellm 0.1 REQUIRED)
add_executable(hello {source})
target_link_libraries(hello edgellm::edgellm)
"""


def test_a_cmake_project_finds_the_c_api_there(device_python: Path, tiny_model: Path, tmp_path: Path) -> None:
    if not shutil.which("cmake") or not shutil.which("c++"):
        pytest.skip("no cmake or no C++ compiler here")
    from edgellm.runtime import load

    prefix = run(device_python, "from edgellm.kernels.library import cmake_prefix; print(cmake_prefix())").strip()
    assert {"libedgellm.so", "libedgellm_ort.so", "include", "lib"} <= {path.name for path in Path(prefix).iterdir()}
    assert not list(Path(prefix).rglob("*.cc")) + list(Path(prefix).rglob("engine/*"))
    (tmp_path / "CMakeLists.txt").write_text(PROJECT.format(source=ROOT / "examples/hello.cc"))
    for command in (
        ["cmake", "-S", ".", "-B", "build", f"-DCMAKE_PREFIX_PATH={prefix}"],
        ["cmake", "--build", "build"],
    ):
        built = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert built.returncode == 0, built.stdout + built.stderr
    make_bundle(tiny_model, tmp_path / "bundle", bits=8)
    expected = load(tmp_path / "bundle").generate("The sea", max_new_tokens=20)
    where = os.environ | {"EDGELLM_ONNXRUNTIME": str(onnxruntime_file())}  # `make device` leaves it out
    told = subprocess.run(
        [tmp_path / "build" / "hello", tmp_path / "bundle", "The sea", "20"], capture_output=True, text=True, env=where
    )
    assert (told.returncode, told.stdout) == (0, expected.text), told.stderr


BLOCKED = "import importlib.util as u, sys; find = u.find_spec; sys.modules['onnxruntime'] = None; "
BLOCKED += "u.find_spec = lambda name, package=None: None if name == 'onnxruntime' else find(name, package); "
BLOCKED += "from edgellm.runtime.cli import main; main()"


def test_without_onnxruntime_a_bundle_runs_and_the_rest_says_so(
    device_python: Path, tiny_model: Path, tmp_path: Path
) -> None:
    make_bundle(tiny_model, tmp_path / "bundle", bits=8)
    asked = "generate", tmp_path / "bundle", "-p", "The sea", "-n", 4, "--json"
    assert json.loads(run(device_python, BLOCKED, *asked))["new_tokens"] > 0
    found = json.loads(run(device_python, BLOCKED, "doctor", "--json"))
    assert found["ok"]
    checks = {check["name"]: check for check in found["checks"]}
    assert checks["onnxruntime"]["status"] == "warn"
    assert "self-test passed" in checks["kernels"]["detail"]
    command = [str(device_python), "-c", BLOCKED, *map(str, asked), "--backend", "onnxruntime"]
    told = subprocess.run(command, capture_output=True, text=True, cwd="/")
    assert (told.returncode, "Traceback" in told.stderr) == (1, False)
    assert "pip install 'onnxruntime>=1.23'" in told.stderr


def test_doctor_passes_there(device_python: Path) -> None:
    code = "from edgellm.runtime.cli import main; main()"
    assert json.loads(run(device_python, code, "doctor", "--json"))["ok"]
