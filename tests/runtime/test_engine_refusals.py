"""An engine of another version, GPU, plugin or length is told before TensorRT sees it, with what to run."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path

import pytest

from edgellm.runtime import engine_build, tensorrt_backend, tensorrt_module
from edgellm.runtime.bundle_files import ENGINE
from edgellm.runtime.engine_file import EngineHeader, read_header
from edgellm.runtime.errors import BundleError, EdgellmError
from edgellm.runtime.schema import BuiltEngine, EngineFacts
from edgellm.runtime.tensorrt_backend import refuse_other

VERSION = "1.7.1.116"
FACTS = EngineFacts(
    "tensorrt-rtx", "standard", 64, 0, 256, 8, {"embedding": 0}, None, BuiltEngine(VERSION, ["8.9"], None)
)


def write(
    folder: Path, size: int = 100, said: int | None = None, magic: bytes = b"vtrt", version: str = VERSION
) -> Path:
    head = magic + bytes(12) + struct.pack("<Q", said or size) + bytes(map(int, version.split("."))) + bytes(4)
    (folder / ENGINE).write_bytes(head + bytes(size - len(head)))
    return folder


def test_the_header_is_read(tmp_path: Path) -> None:
    assert read_header(write(tmp_path) / ENGINE) == EngineHeader("tensorrt-rtx", 100, VERSION)
    assert read_header(write(tmp_path, magic=b"ftrt") / ENGINE) == EngineHeader("tensorrt", 100, None)


def test_an_engine_that_fits_is_taken(tmp_path: Path) -> None:
    assert refuse_other(write(tmp_path), FACTS, VERSION, "8.9") == FACTS.built
    jetson = replace(FACTS, kind="tensorrt", built=BuiltEngine("10.3.0", [], None))
    refuse_other(write(tmp_path, magic=b"ftrt"), jetson, "10.3.0", "8.7")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(said=101), "truncated: 100 bytes, its header says 101"),
        (dict(said=99), "damaged: 100 bytes"),
        (dict(magic=b"ELF!"), "is no TensorRT engine"),
        (dict(magic=b"ftrt"), "is a tensorrt engine; the manifest says tensorrt-rtx"),
        (dict(version="1.6.0.9"), r"tensorrt-rtx 1\.6\.0\.9 \(its header\); here is 1\.7\.1\.116"),
    ],
)
def test_another_file_is_refused(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(BundleError, match=message) as refused:
        refuse_other(write(tmp_path, **changes), FACTS, VERSION, "8.9")  # type: ignore[arg-type]
    assert "edgellm build-engine" in refused.value.hint


def test_another_tensorrt_and_another_gpu_are_refused(tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(BundleError, match=r"built by tensorrt-rtx 1\.7\.1\.116 \(the manifest\); here is 1\.8"):
        refuse_other(tmp_path, FACTS, "1.8", "8.9")
    with pytest.raises(BundleError, match=r"is for compute capability 8\.9; this GPU has 12\.0"):
        refuse_other(tmp_path, FACTS, VERSION, "12.0")
    with pytest.raises(EdgellmError, match="no NVIDIA GPU"):
        refuse_other(tmp_path, FACTS, VERSION, None)
    with pytest.raises(BundleError, match="is not built yet"):
        refuse_other(tmp_path, replace(FACTS, built=None), VERSION, "8.9")


def test_a_missing_plugin_and_another_one_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = write(tmp_path) / "libedgellm_tensorrt.so"
    library.write_bytes(b"one build")

    def missing() -> Path:
        raise FileNotFoundError("libedgellm_tensorrt.so is not in kernels")

    built = BuiltEngine(VERSION, ["8.9"], engine_build.file_facts(library).sha256)
    facts = replace(FACTS, operators="plugins", built=built)
    monkeypatch.setattr(tensorrt_backend, "plugin_path", lambda: library)
    refuse_other(tmp_path, facts, VERSION, "8.9")
    library.write_bytes(b"another build")
    with pytest.raises(BundleError, match=r"built with another libedgellm_tensorrt\.so"):
        refuse_other(tmp_path, facts, VERSION, "8.9")
    monkeypatch.setattr(tensorrt_backend, "plugin_path", missing)
    with pytest.raises(BundleError, match="needs our TensorRT plugins"):
        refuse_other(tmp_path, facts, VERSION, "8.9")
    monkeypatch.setattr(engine_build, "plugin_path", missing)
    (tmp_path / "engine.onnx.data").touch()
    with pytest.raises(EdgellmError, match="plugins are not built here"):
        engine_build.build(tmp_path, facts, [])


def test_a_build_is_refused_where_tensorrt_or_memory_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_build, "installed", lambda kind: True)
    monkeypatch.setattr(engine_build, "available_bytes", lambda: 10**9)
    engine_build.refuse_memory("tensorrt", 10**7)
    with pytest.raises(EdgellmError, match=r"takes about 14\.\d GB of memory; 1\.0 GB are free"):
        engine_build.refuse_memory("tensorrt", 4 * 10**9)
    monkeypatch.setattr(engine_build, "installed", lambda kind: False)
    monkeypatch.setitem(tensorrt_module.MODULES, "tensorrt", ("no_such_module", "Install it."))
    with pytest.raises(EdgellmError, match="no_such_module is not installed"):
        engine_build.refuse_memory("tensorrt", 10**7)
