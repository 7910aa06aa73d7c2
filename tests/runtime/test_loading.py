"""From folder to session: tokenizer, template, samples; and ONNX Runtime on a small standard graph."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgellm.kernels.control import FIELDS
from edgellm.runtime import load
from edgellm.runtime.cache import CacheLayout
from edgellm.runtime.cache_buffers import cache_buffers
from edgellm.runtime.chat import Chat, freeze
from edgellm.runtime.cpu_backend import CpuBackend
from edgellm.runtime.errors import BundleError, EdgellmError, UsageError
from edgellm.runtime.kv_policy import parse_kv
from edgellm.runtime.manifest import parse
from edgellm.runtime.schema import Manifest
from tests.runtime.fakes import CHATML, DATA, VOCABULARY, byte_tokenizer, make_bundle

CLOCK = CHATML + "{{ strftime_now('%Y') }}"


def samples(template: str) -> dict[str, Any]:
    created = parse({**DATA, "files": {}}).created_at
    tokenizer = byte_tokenizer()
    return freeze(Chat(template), lambda text: tokenizer.encode(text, add_special_tokens=False).ids, created)


def graph(layers: int = 2, vocabulary: int = VOCABULARY) -> bytes:
    """The decoder's inputs and outputs around arithmetic: logits = -(v - id - 1)^2, and caches that count runs."""
    onnx = pytest.importorskip("onnx")
    h, t = onnx.helper, onnx.TensorProto
    value = h.make_tensor_value_info
    inputs = [value(name, t.INT64, [size]) for name, size in (("ids", "T"), ("positions", "T"), ("rows", "R"))]
    inputs.append(value("control", t.INT64, [layers, FIELDS]))
    outputs = [value("logits", t.FLOAT, ["R", vocabulary])]
    nodes = [
        h.make_node("Gather", ["ids", "rows"], ["wanted"]),
        h.make_node("Cast", ["wanted"], ["place"], to=t.FLOAT),
        h.make_node("Unsqueeze", ["place", "axis"], ["column"]),
        h.make_node("Sub", ["column", "following"], ["distance"]),
        h.make_node("Mul", ["distance", "distance"], ["squared"]),
        h.make_node("Neg", ["squared"], ["logits"]),
    ]
    following = np.arange(-1, vocabulary - 1, dtype=np.float32)
    constants = [
        onnx.numpy_helper.from_array(np.array([1], np.int64), "axis"),
        onnx.numpy_helper.from_array(following[None], "following"),
        onnx.numpy_helper.from_array(np.array(1, np.float16), "one.16"),
        onnx.numpy_helper.from_array(np.array(1, np.int32), "one.32"),
        onnx.numpy_helper.from_array(np.array(1, np.float32), "one"),
    ]
    for layer in range(layers):
        for name, kind, one, last in (
            ("key", t.FLOAT16, "one.16", [16]),
            ("value", t.FLOAT16, "one.16", [16]),
            ("position", t.INT32, "one.32", []),
            ("score", t.FLOAT, "one", ["planes"]),
        ):
            shape = [2, f"capacity.{layer}", *last]
            inputs.append(value(f"{name}.{layer}", kind, shape))
            outputs.append(value(f"{name}.{layer}.out", kind, shape))
            nodes.append(h.make_node("Add", [f"{name}.{layer}", one], [f"{name}.{layer}.out"]))
    opsets = [h.make_opsetid("", 21)]
    model = h.make_model(h.make_graph(nodes, "g", inputs, outputs, constants), opset_imports=opsets, ir_version=10)
    return bytes(model.SerializeToString())


def unfinished(folder: Path, **changes: Any) -> tuple[Path, Manifest]:
    """A bundle with a graph that runs, and its manifest, which the folder does not have yet."""
    make_bundle(folder, **changes)
    (folder / "model.onnx").write_bytes(graph())
    (folder / "edgellm.json").unlink()
    return folder, parse({**DATA, "files": {"chat_template.jinja": {"bytes": 0, "sha256": ""}}, **changes})


@pytest.fixture
def standard_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgellm.runtime.onnx_decoder.register_operators", lambda options: Path())


@pytest.mark.usefixtures("standard_operators")
def test_loads_and_generates(tmp_path: Path) -> None:
    folder, manifest = unfinished(tmp_path / "b.partial", chat=samples(CHATML))
    llm = load(folder, manifest=manifest, threads=1)
    assert llm.generate("abc", 4, stop=()).ids == [llm.encode("c")[0] + i for i in range(1, 5)]
    assert llm.logits([1, 2, 3]).argmax(axis=1).tolist() == [2, 3, 4]
    assert llm.kv_bytes == CacheLayout(llm.policy, 64, 2, 2, 16).nbytes
    assert load(folder, kv="window:8", manifest=manifest).kv_bytes < llm.kv_bytes


@pytest.mark.usefixtures("standard_operators")
def test_cache_buffers_are_updated_in_place(tmp_path: Path) -> None:
    folder, _ = unfinished(tmp_path / "b")
    layout = CacheLayout(parse_kv("full", 64), 8, 2, 2, 16)
    backend = CpuBackend(folder, layout, VOCABULARY, threads=1)
    one = np.zeros(1, np.int64)
    for _ in range(3):
        backend.step(one, one, one, np.zeros((2, FIELDS), np.int64))
    assert backend.kv_bytes == layout.nbytes
    for buffer in backend._cache.arrays.values():
        assert buffer.ctypes.data % 64 == 0 or not buffer.size
        assert (buffer == 3).all()


@pytest.mark.usefixtures("standard_operators")
def test_graphs_that_do_not_fit(tmp_path: Path) -> None:
    folder, manifest = unfinished(tmp_path / "b")
    model = dict(DATA["model"])
    for change, match in (({"layers": 3}, "lacks key.2"), ({"layers": 1}, "unknown input key.1")):
        other = parse({**DATA, "model": {**model, **change}, "files": {}})
        with pytest.raises(BundleError, match=match):
            load(folder, manifest=other)
    session = load(folder, manifest=parse({**DATA, "model": {**model, "vocabulary": 300}, "files": {}}))
    with pytest.raises(BundleError, match="failed to run"):
        session.generate([1], 1)
    for data in (b"", b"nonsense" * 50, graph()[:-40]):
        (folder / "model.onnx").write_bytes(data)
        with pytest.raises(BundleError, match=r"model\.onnx"):
            load(folder, manifest=manifest)


def test_threads_are_checked(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="0 threads"):
        CpuBackend(tmp_path, CacheLayout(parse_kv("full", 8), 8, 1, 1, 8), 10, threads=0)


def test_a_missing_operator_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgellm.kernels import library

    bundle = make_bundle(tmp_path / "b")

    def missing() -> Path:
        raise FileNotFoundError("libedgellm_ort.so is not in /nowhere")

    monkeypatch.setattr(library, "library_path", missing)
    with pytest.raises(EdgellmError, match=r"operator library is missing: libedgellm_ort\.so"):
        load(bundle, backend="onnxruntime")
    with monkeypatch.context() as without:
        without.setattr("edgellm.runtime.native_decoder.engine", missing)
        with pytest.raises(EdgellmError, match=r"operator library is missing: libedgellm_ort\.so"):
            load(bundle)
    (tmp_path / "wrong.so").write_bytes(b"not a library")
    monkeypatch.setattr(library, "library_path", lambda: tmp_path / "wrong.so")
    with pytest.raises(EdgellmError, match=r"onnxruntime \d.* cannot load .*wrong\.so") as caught:
        load(bundle, backend="onnxruntime")
    assert "API 17" in caught.value.hint


def test_samples_are_rendered_again(tmp_path: Path, standard_operators: None) -> None:
    chat = samples(CLOCK)  # a template with a date: the manifest's, not today's
    folder, manifest = unfinished(tmp_path / "good", template=CLOCK, chat=chat)
    assert load(folder, manifest=manifest).chat is not None
    chat["samples"][1]["ids"][3] += 1
    folder, manifest = unfinished(tmp_path / "b", template=CLOCK, chat=chat)
    session = load(folder, manifest=manifest)  # the template is read when a conversation asks for it
    with pytest.raises(BundleError, match="sample conversation 2 to other token ids"):
        session.encode_chat([{"role": "user", "content": "Hi"}])


def test_wrong_tokenizers(tmp_path: Path) -> None:
    tokens = {"bos": None, "add_bos": False, "stop": [], "eos": None}
    bundle = make_bundle(tmp_path / "small", model={**DATA["model"], "vocabulary": 200}, tokens=tokens)
    with pytest.raises(BundleError, match="259 tokens; the model's vocabulary is 200"):
        load(bundle)
    folder, manifest = unfinished(tmp_path / "b")
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(BundleError, match=r"tokenizer\.json cannot be read"):
        load(folder, manifest=manifest)


@pytest.mark.usefixtures("standard_operators")
def test_wrong_templates_and_policies(tmp_path: Path) -> None:
    folder, manifest = unfinished(tmp_path / "a", template="{% if %}")
    with pytest.raises(BundleError, match="does not compile"):
        load(folder, manifest=manifest).encode_chat([])
    with pytest.raises(BundleError, match=r"edgellm\.json: a KV budget of 65"):
        load(make_bundle(tmp_path / "b", kv={"policy": "full", "budget": 65, "sinks": 4}))
    with pytest.raises(UsageError, match='"snap" is unknown'):
        load(make_bundle(tmp_path / "c"), kv="snap:9")


def test_cache_buffers_are_aligned_zeros_that_do_not_overlap() -> None:
    layout = CacheLayout(parse_kv("full:5", 64), 3, 2, 3, 7)
    buffers = cache_buffers(layout)
    assert {name: (buffer.shape, buffer.dtype) for name, buffer in buffers.items()} == {
        name: (shape, np.dtype(dtype)) for name, shape, dtype in layout.buffers()
    }
    assert all(buffer.ctypes.data % 64 == 0 and not buffer.any() for buffer in buffers.values())
    for number, buffer in enumerate(buffers.values(), 1):
        buffer.fill(number)
    assert all((buffer == number).all() for number, buffer in enumerate(buffers.values(), 1))


def test_an_unused_budget_costs_no_memory() -> None:
    """One token in each of 64 heads of a megabyte: small pages of them, not all that huge pages would back."""
    np.ones(16 << 20, np.uint8)  # freed at once: what the heap has is not clear
    before = resident()
    buffers = cache_buffers(CacheLayout(parse_kv("full:4000", 4096), 96, 1, 64, 128))
    buffers["key.0"][:, 0] = 1
    assert resident() - before < 8 << 20


@pytest.mark.usefixtures("standard_operators")
def test_a_loaded_session_costs_no_memory_for_its_budget(tmp_path: Path) -> None:
    """Positions of 4 million slots in 2 layers of 2 heads are 64 MB."""
    sessions = []
    for context in (64, 4_000_000):
        folder, manifest = unfinished(tmp_path / str(context), model={**DATA["model"], "context": context})
        before = resident()
        sessions.append(load(folder, kv="full", manifest=manifest))
    assert sessions[1].kv_bytes > 64 << 20
    assert resident() - before < 8 << 20


@pytest.mark.usefixtures("standard_operators")
def test_logits_are_the_callers_while_it_keeps_them(tmp_path: Path) -> None:
    """A run writes over the last one's only when nothing refers to them, or to a part, any more."""
    folder, manifest = unfinished(tmp_path / "b.partial")
    session = load(folder, manifest=manifest, threads=1)
    kept = [session.step(token) for token in (10, 20, 30)]
    assert [int(row.argmax()) for row in kept] == [11, 21, 31]
    assert len({row.ctypes.data for row in kept}) == 3
    place = kept[-1].ctypes.data
    kept.clear()
    assert session.step(40).ctypes.data == place
    assert int(session.step(50).argmax()) == 51


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_imports_are_lazy_and_light() -> None:
    """The package costs nothing; all of the runtime costs no torch, transformers or onnx."""
    code = """
import sys, pkgutil, importlib
import edgellm.runtime, edgellm.runtime.cli
assert not {"numpy", "onnxruntime", "tokenizers", "rich"} & set(sys.modules), sys.modules.keys()
for module in pkgutil.walk_packages(edgellm.runtime.__path__, "edgellm.runtime."):
    importlib.import_module(module.name)
assert "onnxruntime" not in sys.modules
import onnxruntime
assert not {"torch", "transformers", "onnx", "edgellm.export"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
