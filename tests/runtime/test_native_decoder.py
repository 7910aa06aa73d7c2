"""A graph that the native library runs alone: no ONNX Runtime, any number of threads, refused when damaged."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from edgellm.runtime import load
from edgellm.runtime.cache import cache_layout
from edgellm.runtime.errors import BundleError
from edgellm.runtime.kv_policy import parse_kv
from edgellm.runtime.manifest import read_manifest
from edgellm.runtime.native_decoder import native_decoder
from tests.bundles import make_bundle
from tests.conftest import write_folder

IDS = [(7 * i * i + i) % 317 + 3 for i in range(300)]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("native")
    make_bundle(write_folder(folder / "model", max_position_embeddings=512), folder / "bundle", bits=8)
    return folder / "bundle"


def test_generating_imports_no_onnxruntime(bundle: Path) -> None:
    code = (
        "import sys\nfrom edgellm.runtime import load\n"
        f"assert len(load({str(bundle)!r}).generate('The sea', 8, stop=()).ids) == 8\n"
        "assert 'onnxruntime' not in sys.modules\n"
        "assert 'libonnxruntime' not in open('/proc/self/maps').read()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_threads_change_no_bit(bundle: Path) -> None:
    one = load(bundle, threads=1)
    expected = [one.logits(IDS), *(one.step(token) for token in (5, 6, 7))]
    for threads in (2, 3, 8):
        other = load(bundle, threads=threads)
        for got, wanted in zip([other.logits(IDS), *(other.step(t) for t in (5, 6, 7))], expected, strict=True):
            np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("kv", ["full", "window:64", "vatp:64,sinks=4", "h2o:64,prefill=whole"])
@pytest.mark.parametrize("bits", [16, 8])
def test_every_cache_as_onnx_runtime_keeps_it(bundle: Path, tmp_path: Path, kv: str, bits: int) -> None:
    if bits == 8:
        source = write_folder(tmp_path / "model", max_position_embeddings=512)
        make_bundle(source, bundle := tmp_path / "bundle", bits=8, kv_bits=8)
    native, runtime = load(bundle, kv=kv), load(bundle, kv=kv, backend="onnxruntime")
    got, expected = (one.generate(IDS, 12, stop=()) for one in (native, runtime))
    assert (got.kv_bytes, got.kv_evictions) == (expected.kv_bytes, expected.kv_evictions)
    assert got.ids[:1] == expected.ids[:1]
    wanted = runtime.step(5)
    np.testing.assert_allclose(native.step(5), wanted, atol=5e-2 * np.abs(wanted).max())


def test_kept_logits_are_not_written_again(bundle: Path) -> None:
    session = load(bundle)
    session.logits(IDS[:5])
    first = session.step(5)
    copy = first.copy()
    session.step(6)
    np.testing.assert_array_equal(first, copy)


def change(bundle: Path, tmp_path: Path, edit: Callable[[onnx.ModelProto], object]) -> Path:
    """A folder with the bundle's weights and its graph, changed; native_decoder reads no manifest."""
    folder = tmp_path / "changed"
    folder.mkdir()
    (folder / "model.onnx.data").symlink_to(bundle / "model.onnx.data")
    model = onnx.load(str(bundle / "model.onnx"), load_external_data=False)
    edit(model)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return folder


def external(tensor: onnx.TensorProto, **values: int) -> None:
    for entry in tensor.external_data:
        entry.value = str(values.get(entry.key, entry.value))


def inline(model: onnx.ModelProto) -> None:
    """A norm inside of the graph's own file, which is not kept."""
    norm = next(t for t in model.graph.initializer if t.name == "norm")
    norm.CopyFrom(onnx.numpy_helper.from_array(np.ones(norm.dims[0], np.float32), "norm"))


def matrix(model: onnx.ModelProto) -> onnx.TensorProto:
    return next(t for t in model.graph.initializer if t.name == "layers.0.down")


def opened(folder: Path, bundle: Path, **shape: int) -> object:
    manifest = read_manifest(bundle)
    layout = cache_layout(manifest, parse_kv("full", 512), 64)
    for name, value in shape.items():
        object.__setattr__(layout, name, value)
    return native_decoder(folder, layout, manifest.model.vocabulary, 1)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda m: external(matrix(m), offset=1 << 40), "lies outside"),
        (lambda m: external(matrix(m), length=64), "another size"),
        (lambda m: external(matrix(m), offset=4), "multiple of 64"),
        (inline, "norm of NMMatMul lies outside"),
        (lambda m: m.graph.initializer.remove(matrix(m)), "layers.0.down of DecoderLayer is no weight"),
        (lambda m: setattr(m.graph.node[-2].attribute[0], "name", "odd"), "DecoderLayer lacks"),
    ],
)
def test_a_graph_that_does_not_fit_its_weights_is_refused(
    bundle: Path, tmp_path: Path, edit: Callable[[onnx.ModelProto], object], message: str
) -> None:
    with pytest.raises(BundleError, match=message):
        opened(change(bundle, tmp_path, edit), bundle)


def test_a_graph_of_other_layers_or_heads_is_refused(bundle: Path) -> None:
    assert opened(bundle, bundle)
    for shape in ({"layers": 3}, {"kv_heads": 1}, {"head_dim": 8}):
        with pytest.raises(BundleError, match="does not fit the manifest"):
            opened(bundle, bundle, **shape)


def test_every_cut_of_a_graph_is_refused_or_another_kind(bundle: Path, tmp_path: Path) -> None:
    folder = change(bundle, tmp_path, lambda model: None)
    content = (folder / "model.onnx").read_bytes()
    kinds = set()
    for size in range(0, len(content), 37):
        (folder / "model.onnx").write_bytes(content[:size])
        try:
            kinds.add(opened(folder, bundle))  # None: ONNX Runtime is to tell what is wrong
        except BundleError as error:
            kinds.add(error.what.split(":")[0])
    assert kinds == {None, "model.onnx is damaged"}


def test_graphs_of_another_kind_are_left_to_onnx_runtime(bundle: Path, tmp_path: Path) -> None:
    def newer(model: onnx.ModelProto) -> None:
        model.opset_import[1].version += 1

    assert opened(change(bundle, tmp_path, newer), bundle) is None
