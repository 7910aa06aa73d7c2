"""A bundle's TensorRT engine behind the Backend protocol, once all that can be compared beforehand was.

TensorRT refuses an engine of another version, GPU or plugin late and in its own words: here each is told first, with
what to run.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgellm.devices.cuda import device_capability
from edgellm.kernels.layout import Format
from edgellm.kernels.library import plugin_path
from edgellm.runtime.append_only import AppendOnly
from edgellm.runtime.backend import Backend
from edgellm.runtime.bundle_files import ENGINE, WEIGHTS, file_facts
from edgellm.runtime.cache import CacheLayout
from edgellm.runtime.embedding_rows import EmbeddingRows
from edgellm.runtime.engine_file import read_header
from edgellm.runtime.errors import BundleError, EdgellmError, UsageError
from edgellm.runtime.plugin_backend import PluginBackend
from edgellm.runtime.schema import BuiltEngine, EngineFacts, Manifest, Matrix
from edgellm.runtime.tensorrt_module import tensorrt


def tensorrt_backend(folder: Path, manifest: Manifest, layout: CacheLayout) -> Backend:
    """Open a bundle's engine. Raises UsageError for a bundle exported without one, or a KV policy it cannot have;
    BundleError for an engine that is not built, is damaged or is another TensorRT's, GPU's or plugin's; EdgellmError
    where TensorRT or a GPU is missing."""
    engine = manifest.engine
    if engine is None:
        raise UsageError(
            "this bundle was exported without an engine", "Export it again with --engine, or leave --backend out."
        )
    trt = tensorrt(engine.kind)
    refuse_other(folder, engine, trt.__version__, device_capability())
    from edgellm.runtime.tensorrt_runner import TensorRtRunner

    formats = {entry.name: format_of(entry) for entry in manifest.matrices}
    data, embedding = folder / WEIGHTS, engine.offsets["embedding"]
    rows = EmbeddingRows(data, embedding, formats["embedding"])
    tiles = {
        f"tiles.{name}": np.memmap(data, np.int32, "r", offset, (formats[name].nbytes // 4,))
        for name, offset in engine.offsets.items()
        if engine.operators == "plugins"
    }
    if tiles and not trt.get_plugin_registry().load_library(str(plugin_path())):
        raise BundleError(f"TensorRT cannot load {plugin_path()}", "Build it against this TensorRT's headers.")
    runner = TensorRtRunner(folder / ENGINE, trt, engine, manifest.model.vocabulary, tiles)
    if tiles:
        return PluginBackend(runner, rows, layout, engine.capacity, engine.planes)
    return AppendOnly(runner, rows, layout, engine.capacity, (engine.tokens, engine.rows))


def format_of(entry: Matrix) -> Format:
    """The packed format of one of the manifest's matrices."""
    return Format(entry.n_out, entry.k_in, entry.bits, entry.group, entry.zero, entry.n, entry.m, entry.axis)


def refuse_other(folder: Path, engine: EngineFacts, version: str, capability: str | None) -> BuiltEngine:
    """Raise unless the engine is whole and of this TensorRT, this GPU and this plugin library; nothing is loaded.

    version: of the module here. capability: of the GPU here, "8.7", None where there is none.
    """
    built, again = engine.built, f"Build it again: edgellm build-engine {folder}"
    if built is None:
        raise BundleError(f"{ENGINE} is not built yet", f"Build it on this device: edgellm build-engine {folder}")
    header = read_header(folder / ENGINE)
    if header.kind != engine.kind:
        raise BundleError(f"{ENGINE} is a {header.kind} engine; the manifest says {engine.kind}", again)
    for whose, theirs in (("the manifest", built.version), ("its header", header.version or built.version)):
        if theirs != version:
            raise BundleError(f"{ENGINE} was built by {engine.kind} {theirs} ({whose}); here is {version}", again)
    if built.plugin_sha256 is not None:
        refuse_plugin(built.plugin_sha256, again)
    if capability is None:
        raise EdgellmError(
            "no NVIDIA GPU can be used here: libcuda.so.1 is missing or finds none",
            "Leave --backend out: the bundle runs on the CPU.",
        )
    if built.compute_capabilities and capability not in built.compute_capabilities:
        made = ", ".join(built.compute_capabilities)
        raise BundleError(f"{ENGINE} is for compute capability {made}; this GPU has {capability}", again)
    return built


def refuse_plugin(sha256: str, again: str) -> None:
    """Raise BundleError unless the plugin library here is the one an engine was built with."""
    try:
        path = plugin_path()
    except FileNotFoundError as error:
        raise BundleError(f"the engine needs our TensorRT plugins: {error}", "See docs/tensorrt.md.") from None
    if file_facts(path).sha256 != sha256:
        raise BundleError(f"{ENGINE} was built with another {path.name} than the one here", again)
