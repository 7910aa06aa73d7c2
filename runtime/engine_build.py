"""Building an engine from a bundle's engine.onnx, in a process of its own.

TensorRT ends the whole process where a plugin cannot be loaded, wants its library path set before the start, and keeps
what it allocated: a child has none of that cost. `python -m edgellm.runtime.engine_build` is that child: a request as
JSON on stdin, what was built as JSON on stdout.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from edgellm.devices.memory import available_bytes, peak_rss_bytes
from edgellm.kernels.library import plugin_path
from edgellm.runtime.bundle_files import ENGINE, ENGINE_GRAPH, ENGINE_WEIGHTS, file_facts
from edgellm.runtime.errors import EdgellmError
from edgellm.runtime.schema import BuiltEngine, EngineFacts
from edgellm.runtime.session import LOGITS_AT_ONCE
from edgellm.runtime.tensorrt_module import installed, tensorrt

TOKENS = 256
"""The most tokens of one run: memory for activations is set aside for so many."""
BASE_BYTES, A_BYTE_OF_WEIGHTS = 650_000_000, 3.4
"""What a build takes: the libraries, and so many bytes a byte of weights in the graph (fitted to builds by TensorRT-RTX
1.7: docs/tensorrt.md)."""


AHEAD = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")
"""Compute capabilities that TensorRT-RTX builds for without their GPU; PORTABLE: one engine for all of these."""
PORTABLE = ("8.0", "8.6", "8.9", "12.0")


@dataclass(frozen=True)
class Request:
    """kind: a value of --engine. graph: the ONNX file. out: the engine. plugins: libraries to load first.
    capabilities: compute capabilities for TensorRT-RTX to build for, "8.9"; none: what it takes by itself. rows: the
    most rows of logits of a run."""

    kind: str
    graph: str
    out: str
    plugins: list[str] = field(default_factory=list)
    capabilities: list[str] = field(default_factory=list)
    rows: int = 1


@dataclass(frozen=True)
class Built:
    """version: TensorRT's. inputs, outputs: (name, dtype, shape). layers: how many of each type. seconds and
    peak_rss_bytes are the child's."""

    version: str
    inputs: list[list[Any]]
    outputs: list[list[Any]]
    layers: dict[str, int]
    nbytes: int
    seconds: float
    peak_rss_bytes: int


def build_estimate(weight_bytes: int) -> int:
    """Bytes of memory that a build of a graph with so many bytes of weights in it takes."""
    return BASE_BYTES + int(A_BYTE_OF_WEIGHTS * weight_bytes)


def refuse_build(engine: EngineFacts, weight_bytes: int) -> None:
    """Raise EdgellmError where TensorRT or the plugins it needs are not installed, or there is too little memory.

    weight_bytes: of the constants in the graph.
    """
    if engine.operators == "plugins":
        plugins_there()
    refuse_memory(engine.kind, weight_bytes)


def refuse_memory(kind: str, weight_bytes: int) -> None:
    """Raise EdgellmError where TensorRT is not installed, or memory is too short for a build."""
    if not installed(kind):
        tensorrt(kind)  # which says what to do
    needed, free = build_estimate(weight_bytes), available_bytes()
    if free is not None and needed > free:
        raise EdgellmError(
            f"building the engine takes about {needed / 1e9:.1f} GB of memory; {free / 1e9:.1f} GB are free",
            "Close other programs, add swap, or leave weights outside the engine: --engine-operators plugins.",
        )


def build(folder: Path, engine: EngineFacts, capabilities: list[str]) -> BuiltEngine:
    """Build model.engine of the bundle in `folder` from its engine.onnx; the file is there whole or not at all.

    Raises EdgellmError as refuse_build does, and where TensorRT fails.
    """
    refuse_build(engine, (folder / ENGINE_WEIGHTS).stat().st_size)
    plugins = [plugin_path()] if engine.operators == "plugins" else []
    unfinished, paths = folder / f"{ENGINE}.partial", [str(path) for path in plugins]
    try:
        found = run_build(
            Request(engine.kind, str(folder / ENGINE_GRAPH), str(unfinished), paths, capabilities, engine.rows)
        )
        os.replace(unfinished, folder / ENGINE)
    finally:
        unfinished.unlink(missing_ok=True)
    return BuiltEngine(found.version, capabilities, file_facts(plugins[0]).sha256 if plugins else None)


def plugins_there() -> None:
    """Raise EdgellmError unless the plugin library is installed."""
    try:
        plugin_path()
    except FileNotFoundError as error:
        raise EdgellmError(
            f"our TensorRT plugins are not built here: {error}",
            "Build them against TensorRT's headers: pip install . -C cmake.define.TENSORRT_INCLUDE=FOLDER",
        ) from None


def run_build(request: Request) -> Built:
    """Build in a child process. Raises EdgellmError."""
    with tempfile.TemporaryDirectory() as links:
        environment = {**os.environ, "LD_LIBRARY_PATH": _library_path(request.kind, Path(links))}
        child = subprocess.run(
            [sys.executable, "-m", "edgellm.runtime.engine_build"],
            input=json.dumps(asdict(request)), capture_output=True, text=True, env=environment, check=False,
        )  # fmt: skip
    answer = child.stdout.strip().splitlines()[-1:] or [""]
    try:
        found = json.loads(answer[0])
    except ValueError:
        found = {"error": f"it ended with code {child.returncode}: {_last(child.stderr)}"}
    if "error" in found:
        raise EdgellmError(f"{request.kind} cannot build this engine: {found['error']}", "See docs/tensorrt.md.")
    return Built(**found)


def _library_path(kind: str, links: Path) -> str:
    """LD_LIBRARY_PATH with TensorRT-RTX's library under the name its ONNX parser opens. Wheels ship NAME.so.1 only:
    without NAME.so any plugin node aborts the process."""
    spec = find_spec("tensorrt_rtx_libs") if kind == "tensorrt-rtx" else None
    for folder in spec.submodule_search_locations or [] if spec else []:
        for library in Path(folder).glob("*.so.*"):
            name = library.name.partition(".so.")[0] + ".so"
            if not (links / name).exists():
                (links / name).symlink_to(library)
    return os.pathsep.join([str(links), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])])


def _last(text: str) -> str:
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return lines[-1][:300] if lines else "no message"


def _build(request: Request) -> dict[str, Any]:
    """What the child does; the answer's fields are Built's, or "error"."""
    from time import perf_counter

    started = perf_counter()
    trt = tensorrt(request.kind)
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    for library in request.plugins:
        if trt.get_plugin_registry().load_library(library) is None:
            return {"error": f"the plugin library {library} cannot be loaded"}
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(request.graph):
        return {"error": "; ".join(str(parser.get_error(i)).splitlines()[0] for i in range(parser.num_errors))}
    config = builder.create_builder_config()
    if request.plugins:
        config.set_preview_feature(trt.PreviewFeature.ALIASED_PLUGIN_IO_10_03, True)
    if request.kind == "tensorrt-rtx" and request.capabilities:  # the other builds for the GPU it finds
        config.num_compute_capabilities = len(request.capabilities)
        for number, capability in enumerate(request.capabilities):
            known = getattr(trt.ComputeCapability, "SM" + capability.replace(".", ""), None)
            if known is None:
                return {"error": f"it builds for no compute capability {capability} ahead of time"}
            config.set_compute_capability(known, number)
    config.add_optimization_profile(_profile(builder, network, request.rows))
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        return {"error": "the build failed; its messages are above"}
    Path(request.out).write_bytes(plan)
    kinds = Counter(str(network.get_layer(i).type).rpartition(".")[2] for i in range(network.num_layers))
    return {
        "version": trt.__version__,
        "inputs": [_end(network.get_input(i)) for i in range(network.num_inputs)],
        "outputs": [_end(network.get_output(i)) for i in range(network.num_outputs)],
        "layers": dict(kinds),
        "nbytes": plan.nbytes,
        "seconds": perf_counter() - started,
        "peak_rss_bytes": peak_rss_bytes(),
    }


def most_rows(vocabulary: int) -> int:
    """The most rows of logits that a session asks for in one run."""
    return min(TOKENS, max(1, LOGITS_AT_ONCE // vocabulary))


def _profile(builder: Any, network: Any, rows: int) -> Any:
    """One token to TOKENS, one row of logits to `rows`; a token is what it is tuned for."""
    profile = builder.create_optimization_profile()
    for i in range(network.num_inputs):
        end = network.get_input(i)
        if -1 in tuple(end.shape):
            most = rows if end.name == "rows" else TOKENS
            low, high = ([size if size != -1 else free for size in end.shape] for free in (1, most))
            profile.set_shape(end.name, low, low, high)
    return profile


def _end(tensor: Any) -> list[Any]:
    return [tensor.name, str(tensor.dtype).rpartition(".")[2], list(tensor.shape)]


if __name__ == "__main__":
    real = os.dup(1)
    os.dup2(2, 1)  # TensorRT writes messages to stdout
    try:
        answer = _build(Request(**json.loads(sys.stdin.read())))
    except EdgellmError as error:
        answer = {"error": error.what}
    with os.fdopen(real, "w") as stdout:
        stdout.write(json.dumps(answer) + "\n")
