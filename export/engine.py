"""`export --engine`: the bundle's decoder as a TensorRT graph beside the CPU's, checked, and built where it can be."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import TensorProto
from torch import Tensor

from edgellm.devices.memory import give_back
from edgellm.export.architectures import Architecture
from edgellm.export.config import ExportConfig
from edgellm.export.nodes import Placed
from edgellm.export.onnx_runner import OnnxRunner
from edgellm.export.packed_source import PackedSource
from edgellm.export.plugin_dialect import plugin_decoder
from edgellm.export.standard_dialect import standard_decoder
from edgellm.export.verify import parity, prompts_from
from edgellm.export.write import PartialBundle
from edgellm.runtime import load, manifest
from edgellm.runtime.append_only import AppendOnly
from edgellm.runtime.bundle_files import ENGINE_GRAPH, ENGINE_WEIGHTS, TABLES, WEIGHTS
from edgellm.runtime.cache import CacheLayout
from edgellm.runtime.embedding_rows import EmbeddingRows
from edgellm.runtime.engine_build import AHEAD, PORTABLE, TOKENS, build, most_rows, plugins_there, refuse_memory
from edgellm.runtime.errors import UsageError
from edgellm.runtime.kv_policy import parse_kv
from edgellm.runtime.schema import EngineFacts, Manifest, Parity
from edgellm.runtime.session import Session
from edgellm.runtime.tensorrt_module import installed
from edgellm.runtime.tokenizer import read_tokenizer

ALIGNMENT = 64  # bytes
SLOTS = 4096
"""Slots of an engine's cache where --kv does not say: standard operators read all of them at every token."""


def write_graph(arch: Architecture, placed: Mapping[str, Placed], folder: Path, capacity: int, planes: int = 0) -> None:
    """engine.onnx and engine.onnx.data of the packed tensors of model.onnx.data in `folder`. planes: of the scores of a
    graph with our plugins; 0 for one of standard operators."""
    with open(folder / ENGINE_WEIGHTS, "wb") as file:

        def store(name: str, kind: int, dims: tuple[int, ...], data: NDArray[Any]) -> TensorProto:
            file.write(b"\0" * (-file.tell() % ALIGNMENT))
            tensor = TensorProto(name=name, dims=dims, data_type=kind, data_location=TensorProto.EXTERNAL)
            entries = (("location", ENGINE_WEIGHTS), ("offset", file.tell()), ("length", data.nbytes))
            for key, value in entries:
                tensor.external_data.add(key=key, value=str(value))
            file.write(np.ascontiguousarray(data).data)
            return tensor

        tensors, data = dict(placed), folder / WEIGHTS
        if planes:
            graph = plugin_decoder(arch, tensors, data, capacity, planes, store)
        else:
            graph = standard_decoder(arch, tensors, data, capacity, store)
    (folder / ENGINE_GRAPH).write_bytes(graph.SerializeToString())


def append_only_session(
    said: Manifest, folder: Path, placed: Mapping[str, Placed], capacity: int, threads: int | None
) -> Session:
    """engine.onnx in ONNX Runtime on the CPU, behind the session that an engine gets too."""
    model, at = said.model, placed["embedding"]
    assert at.format is not None
    policy = parse_kv(f"full:{capacity}", model.context)
    layout = CacheLayout(policy, min(TOKENS, capacity), model.layers, model.kv_heads, model.head_dim)
    rows = EmbeddingRows(folder / WEIGHTS, at.offset, at.format)
    runner = OnnxRunner(folder / ENGINE_GRAPH, threads)
    backend = AppendOnly(runner, rows, layout, capacity, (TOKENS, most_rows(model.vocabulary)))
    tokenizer = read_tokenizer(folder, model.vocabulary, TABLES in said.files)
    return Session(said, tokenizer, backend, policy, layout.staging)


def refuse_engine(config: ExportConfig, weight_bytes: int) -> None:
    """Raise, before any work, where the engine that was asked for cannot be built: UsageError for a device that no
    TensorRT-RTX engine runs on, EdgellmError where TensorRT-RTX is not installed or memory is short.

    weight_bytes: of all matrices. `tensorrt` need not be here: its engine is built on the device.
    """
    capability = config.device.compute_capability
    if config.engine != "none" and config.kv_bits != 16:
        raise UsageError(
            f"--kv-bits {config.kv_bits} with --engine {config.engine}: engines keep keys and values in half precision",
            "Leave --kv-bits out.",
        )
    if config.engine_operators == "plugins":
        weight_bytes = 0  # outside the engine
        if config.engine != "none" and installed(config.engine):
            plugins_there()
    if config.engine != "tensorrt-rtx":
        return
    if capability is not None and capability not in AHEAD:
        raise UsageError(
            f"{config.device.name} has compute capability {capability}, for which TensorRT-RTX builds nothing ahead of "
            f"time (it does for {', '.join(AHEAD)})",
            "Use --engine tensorrt: the engine is then built on the device, by edgellm build-engine.",
        )
    refuse_memory(config.engine, weight_bytes)


def slots(config: ExportConfig, context: int) -> int:
    """Slots of the engine's cache: the budget of a full KV policy that was asked for; else SLOTS, or the context."""
    policy = config.policy(context)
    return policy.budget if policy.name == "full" and config.kv else min(context, SLOTS)


def write_engine(
    config: ExportConfig,
    arch: Architecture,
    placed: Mapping[str, Placed],
    bundle: PartialBundle,
    facts: dict[str, Any],
    text: Tensor,
    progress: Callable[[str, int, int], None],
) -> dict[str, Any]:
    """The manifest's "engine": the graph written, compared with torch in ONNX Runtime unless it has plugins, and
    model.engine beside it where TensorRT is installed. facts: the manifest so far. text: what prompts are cut from.

    Raises EdgellmError where the graph strays from torch or the build fails.
    """
    folder, capacity, planes, agreed = bundle.folder, slots(config, arch.context), 0, None
    if config.engine_operators == "plugins":
        policy = config.policy(arch.context)
        largest = capacity if policy.name == "full" else max(policy.layer_budgets(arch.layers))
        capacity, planes = largest + TOKENS, max(1, policy.planes)
    progress("engine's graph", 0, 1)
    write_graph(arch, placed, folder, capacity, planes)
    progress("engine's graph", 1, 1)
    if not planes:
        progress("its parity with torch", 0, 1)
        said, threads = manifest.parse(facts), torch.get_num_threads()
        session = append_only_session(said, folder, placed, capacity, threads)
        quicker = load(folder, kv="full", threads=threads, manifest=said)
        agreed = parity(arch, PackedSource(folder / WEIGHTS, placed), session, prompts_from(text), quicker=quicker)
        agreed.check()
        del session, quicker
        progress("its parity with torch", 1, 1)
    fed = [name for name, at in placed.items() if at.format and (planes or name == "embedding")]
    offsets = {name: placed[name].offset for name in fed}
    written = EngineFacts(
        config.engine, config.engine_operators, capacity, planes, TOKENS, most_rows(arch.vocabulary), offsets,
        Parity(**asdict(agreed)) if agreed else None, None,
    )  # fmt: skip
    if installed(config.engine):
        progress("engine", 0, 1)
        give_back()
        capability = config.device.compute_capability
        written = replace(written, built=build(folder, written, [capability] if capability else list(PORTABLE)))
        progress("engine", 1, 1)
    return asdict(written)
