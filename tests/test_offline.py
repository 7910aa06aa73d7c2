"""Nothing calls out: every verb runs where opening a socket ends the process, without any environment switch."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bundles import TEXT, calibration_file, make_bundle
from tests.conftest import ROOT

SWITCHES = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK")

# What switches ONNX Runtime's telemetry off, the names of machines of continuous integration too, and moves its files.
OFF = ("ORT_", "CI", "GITHUB_", "GITLAB_", "TF_BUILD", "JENKINS", "BUILD", "TEAMCITY", "TRAVIS", "XDG_")


def run(*arguments: object, stdin: str = "") -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if name not in SWITCHES}
    clean.setdefault("USER", "nobody")  # torch asks who runs it: without the variable, of a daemon of this machine's
    command = [sys.executable, "-m", "tests.offline", *map(str, arguments)]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, cwd=ROOT, env=clean)


@pytest.fixture(scope="module")
def bundle(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("offline") / "bundle"
    make_bundle(tiny_model, out, bits=4)
    return out


def test_the_guard_sees_a_socket_of_python_and_of_native_code() -> None:
    python = run("--probe", "python")
    assert python.returncode == 99
    assert "socket.__new__" in python.stderr
    native = run("--probe", "native")
    if native.returncode == 98:
        pytest.skip("this system has no seccomp: only Python's own sockets are watched")
    assert native.returncode == -signal.SIGSYS


def test_onnxruntime_keeps_nothing_about_the_device(bundle: Path, tmp_path: Path) -> None:
    """Its telemetry begins with files in the home folder; sockets follow later than any verb here runs."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(OFF)} | {"HOME": str(tmp_path)}
    command = [sys.executable, "-m", "tests.offline", "generate", str(bundle), "-p", "The sea", "-n", "2"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=clean)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("verb", ["generate", "chat", "eval", "cache-prompt", "bench", "inspect", "doctor"])
def test_the_runtime_opens_no_socket(bundle: Path, tmp_path: Path, verb: str) -> None:
    (tmp_path / "text").write_text(TEXT, encoding="utf-8")
    threads = ["--threads", "1"]
    arguments = {
        "generate": ["--chat", "-p", "The sea", "-n", "4", *threads],
        "chat": ["-n", "4", *threads],
        "eval": ["--text", tmp_path / "text", "--window", "32", *threads],
        "cache-prompt": ["-p", "The sea", "-o", tmp_path / "cache", *threads],
        "bench": ["--prompt-tokens", "8", "--new-tokens", "2", "--runs", "1", *threads],
        "inspect": ["--verify"],
        "doctor": [],
    }[verb]
    where = [] if verb == "doctor" else [bundle]
    done = run(verb, *where, *arguments, "--json", stdin="Hello\nAgain\n")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)


@pytest.mark.parametrize("source", ["tiny_model", "tiny_gguf"])
def test_export_of_a_local_checkpoint_opens_no_socket(
    request: pytest.FixtureRequest, tmp_path: Path, source: str
) -> None:
    checkpoint = request.getfixturevalue(source)
    recipe = ["--sparsity", "dass:2:4", "--bits", "4", "--calibration", calibration_file(tmp_path)]
    done = run("export", checkpoint, tmp_path / "bundle", *recipe)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "bundle" / "edgellm.json").is_file()
