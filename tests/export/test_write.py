"""Half-written bundles never load: kills at every step, a full disk, leftovers."""

from __future__ import annotations

import ctypes
import errno
import json
import mmap
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from tests.bundles import calibration_file, make_bundle
from tests.conftest import ROOT

from edgellm.devices.memory import forget
from edgellm.export.write import PartialBundle
from edgellm.runtime.cli import main
from edgellm.runtime.errors import BundleError, EdgellmError
from edgellm.runtime.manifest import read_manifest


def test_a_kill_at_any_step_leaves_nothing_that_loads(tiny_model: Path, tmp_path: Path) -> None:
    calibration_file(tmp_path)
    run = [sys.executable, "-m", "tests.export.kill_points", str(tiny_model), str(tmp_path)]
    finished = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert finished.returncode == 0, finished.stderr
    steps = [json.loads(line) for line in finished.stdout.splitlines()]
    assert len(steps) > 30
    assert all(step["loads"] == [] for step in steps if not step["out"])
    assert steps[-1]["loads"] == ["bundle"]


def test_a_full_disk_is_told_and_leaves_nothing(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []

    def full(self: PartialBundle, *arguments: Any) -> None:
        written.append(arguments)
        if len(written) > 5:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(PartialBundle, "append", full)
    text = calibration_file(tmp_path)
    result = CliRunner().invoke(
        main, ["export", str(tiny_model), str(tmp_path / "bundle"), "--calibration", str(text), "--bits", "8"]
    )
    assert result.exit_code == 1
    assert "No space left on device" in result.stderr
    assert "Traceback" not in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["calibration.txt"]


def test_another_export_to_the_same_place_waits(tmp_path: Path) -> None:
    with PartialBundle(tmp_path / "bundle").begin("key"):
        with pytest.raises(EdgellmError, match=r"another export to .*bundle is running"):
            PartialBundle(tmp_path / "bundle").begin("key")
        with pytest.raises(BundleError, match="unfinished export"):
            read_manifest(tmp_path / ".bundle.partial" / "bundle.partial")
    assert list(tmp_path.iterdir()) == []


def test_a_finished_bundles_weights_are_read_from_the_disk(tiny_model: Path, tmp_path: Path) -> None:
    """So that they come back in huge pages (runtime/weights.py)."""
    probe = tmp_path / "probe"
    probe.write_bytes(b"probe")
    forget(probe)
    if cached(probe):
        pytest.skip("this file system lies in memory")
    make_bundle(tiny_model, tmp_path / "bundle", bits=8)
    data = tmp_path / "bundle" / "model.onnx.data"
    assert not cached(data)
    data.read_bytes()
    assert cached(data)


def cached(path: Path) -> bool:
    """Whether a file's first page lies in memory, without reading it; skips where the system cannot tell."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 1, access=mmap.ACCESS_COPY) as mapped:
        first, told = ctypes.c_char.from_buffer(mapped), ctypes.c_ubyte()
        try:
            status = ctypes.CDLL(None).mincore(ctypes.byref(first), ctypes.c_size_t(1), ctypes.byref(told))
        except (AttributeError, TypeError):
            status = -1
        del first  # it holds the mapping
    if status:
        pytest.skip("this system does not tell what lies in memory")
    return bool(told.value & 1)
