"""A bundle with an engine of a TensorRT of a few rules (tests/native/fake_tensorrt.cc), and the same rules in NumPy."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.runtime.append_only import AppendOnly
from edgellm.runtime.backend import Backend
from edgellm.runtime.bundle_files import ENGINE, TABLES, WEIGHTS, file_facts
from edgellm.runtime.cache import cache_layout
from edgellm.runtime.embedding_rows import EmbeddingRows
from edgellm.runtime.engine_stamp import engine_facts, stamp
from edgellm.runtime.kv_policy import parse_kv
from edgellm.runtime.manifest import read_manifest
from edgellm.runtime.plugin_backend import PluginBackend
from edgellm.runtime.schema import BuiltEngine, EngineFacts
from edgellm.runtime.session import Session
from edgellm.runtime.tensorrt_backend import format_of
from edgellm.runtime.tokenizer import read_tokenizer
from tests.conftest import ROOT

HEADERS = ROOT / "build" / "tensorrt" / "include"
VERSION = "10.14.1.48"  # of the headers; the fake calls itself so
FLOAT, HALF, INT32, INT64 = 0, 1, 3, 8  # nvinfer1::DataType
TOKENS = 48  # the most of one run


def compile_library(source: Path, out: Path, *options: str) -> None:
    """A shared library that sees TensorRT's headers, but none of CUDA's."""
    command = ["g++", "-std=c++17", "-Wall", "-Wextra", "-Werror", "-fvisibility=hidden", "-fPIC", "-shared", *options]
    command += [f"-I{ROOT}", "-isystem", str(HEADERS), "-idirafter", str(ROOT / "kernels/tensorrt/without_cuda")]
    subprocess.run([*command, str(source), "-o", str(out)], check=True)


class World:
    """A bundle with the fake's engine in it, and the process that opens it."""

    def __init__(self, libraries: Path, fakes: Path, bundle: Path) -> None:
        self.libraries, self.fakes, self.bundle = libraries, fakes, bundle

    def ask(
        self, *calls: Any, path: Path | None = None, variables: dict[str, str] | None = None, **options: str
    ) -> dict[str, Any]:
        """What tests.engine_door answers; options: of edgellm_options."""
        asked = {"library": str(self.libraries / "libedgellm.so"), "bundle": str(path or self.bundle), "calls": calls}
        asked["options"] = {"backend": "tensorrt"} | options
        there = {"LD_LIBRARY_PATH": str(self.fakes), "FAKE_TENSORRT": VERSION, "EDGELLM_TENSORRT": ""}
        environment = os.environ | there | (variables or {})
        command = [sys.executable, "-m", "tests.engine_door"]
        done = subprocess.run(
            command, input=json.dumps(asked), capture_output=True, text=True, cwd=ROOT, env=environment
        )
        assert done.returncode == 0, done.stderr
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    @property
    def facts(self) -> EngineFacts:
        return engine_facts(self.bundle)

    def build(self, *wrong: str, drop: str = "", version: str = VERSION, **changes: Any) -> None:
        """Write an engine, as one that TensorRT built for the GPU here, and its stamp."""
        facts = replace(self.facts, kind="tensorrt-rtx", **{"tokens": TOKENS, **changes})
        lines = [f"most {facts.tokens}", *wrong]
        lines += [
            f"{way} {name} {kind} {len(shape)} {' '.join(map(str, shape))}"
            for way, name, kind, shape in ends(self.bundle, facts)
            if name != drop
        ]
        body = "\n".join(lines).encode()
        head = b"vtrt" + bytes(12) + struct.pack("<Q", 32 + len(body)) + bytes(map(int, version.split("."))) + bytes(4)
        (self.bundle / ENGINE).write_bytes(head + body)
        plugin = file_facts(self.libraries / "libedgellm_tensorrt.so").sha256 if facts.operators == "plugins" else None
        stamp(self.bundle, facts, BuiltEngine(version, ["8.6", "8.9"], plugin))

    def session(self, kv: str) -> Session:
        """The Python runtime over the same rule."""
        manifest, facts = read_manifest(self.bundle), self.facts
        policy = parse_kv(kv, manifest.model.context)
        layout = cache_layout(manifest, policy, 256)
        formats = {entry.name: format_of(entry) for entry in manifest.matrices}
        rows = EmbeddingRows(self.bundle / WEIGHTS, facts.offsets["embedding"], formats["embedding"])
        rule = Rule(self.bundle, facts)
        backend: Backend
        if facts.operators == "plugins":
            backend = PluginBackend(rule, rows, layout, facts.capacity, facts.planes)
        else:
            backend = AppendOnly(rule, rows, layout, facts.capacity, (facts.tokens, facts.rows))
        tokenizer = read_tokenizer(self.bundle, manifest.model.vocabulary, TABLES in manifest.files)
        return Session(manifest, tokenizer, backend, policy, layout.staging)


def ends(bundle: Path, facts: EngineFacts) -> list[tuple[str, str, int, list[int]]]:
    """(input or output, name, type, shape) as export/standard_dialect.py and plugin_dialect.py have them."""
    manifest = read_manifest(bundle, without=(ENGINE,))
    model, formats = manifest.model, {entry.name: format_of(entry) for entry in manifest.matrices}
    found = [("input", "embedded", FLOAT, [-1, formats["embedding"].k_in]), ("input", "positions", INT64, [-1])]
    found += [("input", "rows", INT64, [-1]), ("output", "logits", FLOAT, [-1, model.vocabulary])]
    narrow = [model.kv_heads, facts.capacity]
    if facts.operators == "plugins":
        found += [("input", "control", INT64, [model.layers, 13])]
        found += [("input", f"tiles.{name}", INT32, [formats[name].nbytes // 4]) for name in facts.offsets]
        caches = {"key": (HALF, [*narrow, model.head_dim]), "value": (HALF, [*narrow, model.head_dim])}
        caches |= {"position": (INT32, narrow), "score": (FLOAT, [*narrow, facts.planes])}
    else:
        found += [("input", "start", INT64, [1])]
        caches = {name: (HALF, [1, *narrow, model.head_dim]) for name in ("key", "value")}
    for layer in range(model.layers):
        for name, (kind, shape) in caches.items():
            found += [("input", f"{name}.{layer}", kind, shape), ("output", f"{name}.{layer}.out", kind, shape)]
    return found


class Rule:
    """runtime.append_only.Runner by the rule of tests/native/fake_tensorrt.cc: whole numbers of all that is fed."""

    def __init__(self, bundle: Path, facts: EngineFacts) -> None:
        manifest = read_manifest(bundle)
        self.model = manifest.model
        self.shape = (self.model.layers, self.model.kv_heads, facts.capacity, self.model.head_dim)
        self.key, self.value = np.zeros(self.shape, np.int64), np.zeros(self.shape, np.int64)
        self.tiles, weights = 0, np.fromfile(bundle / WEIGHTS, np.uint8)
        for entry in manifest.matrices:
            if facts.operators == "plugins":
                begin = facts.offsets[entry.name]
                self.tiles += int(weights[begin : begin + format_of(entry).nbytes].sum(dtype=np.int64))
        self.kv_bytes = 2 * 2 * self.key.size
        if facts.operators == "plugins":
            self.kv_bytes += 4 * (1 + facts.planes) * self.key.size // self.model.head_dim

    def run(self, feed: dict[str, NDArray[Any]]) -> NDArray[np.float32]:
        embedded, positions = feed["embedded"].astype(np.float64), feed["positions"]
        mix = self.tiles
        if "control" in feed:
            base = int(feed["control"][0, 2])
            mix += int((feed["control"].ravel() * np.arange(1, feed["control"].size + 1)).sum())
        else:
            base = int(feed["start"][0])
        end = base + len(positions)
        felt = (np.abs(embedded) * 64 * (np.arange(embedded.shape[1]) % 7 + 1)).sum(1).astype(np.int64)
        layer, head, _, size = np.ogrid[tuple(slice(n) for n in self.shape)]
        self.key[:, :, base:end] = (positions[:, None] + layer + 2 * head + size) % 251
        self.value[:, :, base:end] = (felt[:, None] + 3 * layer + 5 * head + 7 * size) % 251
        sums = (self.value + 2 * self.key).sum((0, 1, 3))
        totals = [mix + int((sums[: base + row + 1] * np.arange(1, base + row + 2)).sum()) for row in feed["rows"]]
        places = np.arange(1, self.model.vocabulary + 1)
        return np.array([total % 99991 * places % 997 for total in totals], np.float32)

    def read(self, name: str) -> NDArray[Any]:
        assert name.startswith("score."), name  # what a result's coverage is counted from
        return np.zeros((self.model.kv_heads, self.shape[2], 1), np.float32)

    def write(self, name: str, values: NDArray[Any]) -> None:
        raise AssertionError("nothing writes the cache here")
