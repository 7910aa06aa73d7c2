"""Who is measured beside whom: a name, how it runs, and what it runs."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from edgellm.devices.memory import forget
from tests.benchmarks.peer_files import OUT, PYTHON

BUDGET = 512  # tokens that a peer's cache keeps where it can evict


@dataclass(frozen=True)
class Contender:
    """module: a file of tests/benchmarks/peers. python: whose packages it sees. bits: of most weights; 0: any."""

    name: str
    module: str
    model: Path
    bits: int
    python: Path = PYTHON
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def files(self) -> list[Path]:
        """The model's: one, or all in the folder."""
        return [self.model] if self.model.is_file() else [path for path in self.model.glob("*") if path.is_file()]

    @property
    def model_bytes(self) -> int:
        """Of the file, or of all files in the folder; links are followed."""
        return sum(file.stat().st_size for file in self.files)

    def forget(self) -> None:
        """Out of the page cache with its files, as after a reboot: from the disk they decode a few percent faster."""
        for path in self.files:
            forget(path)

    def missing(self) -> str | None:
        """Why it cannot even be tried, or None."""
        if not self.python.exists():
            return "the peers' environment is not here: make build/peers/.ready"
        return None if self.model.exists() else f"{self.model.name} was not made: python -m tests.benchmarks.peer_files"


def ours(name: str, bundle: Path, kv: str | None = None) -> Contender:
    """kv: a --kv for it; None: all tokens stay."""
    return Contender(name, "ours", bundle, 0, Path(sys.executable), {"kv": kv} if kv else {})


def from_c(one: Contender) -> Contender:
    """The same bundle by the C API, as a C or C++ program runs it."""
    return replace(one, name=f"{one.name}, from C", module="ours_c")


def peers(source: Path) -> list[Contender]:
    """All peers of a model, made by `peer_files` from this GGUF file."""
    folder = OUT / source.stem
    return [
        Contender("llama.cpp Q4_0", "llama_cpp", folder / "llama_cpp-Q4_0.gguf", 4),
        Contender("llama.cpp Q4_1", "llama_cpp", folder / "llama_cpp-Q4_1.gguf", 4),
        Contender("llama.cpp Q8_0", "llama_cpp", folder / "llama_cpp-Q8_0.gguf", 8),
        Contender("ik_llama.cpp Q4_0", "ik_llama", folder / "ik_llama-Q4_0.gguf", 4),
        Contender(
            "ik_llama.cpp Q4_0 repacked", "ik_llama", folder / "ik_llama-Q4_0.gguf", 4, settings={"repack": True}
        ),
        Contender("ONNX Runtime GenAI int4", "ort_genai", folder / "ort_genai-int4", 4),
        Contender("ONNX Runtime GenAI int4, head 8", "ort_genai", folder / "ort_genai-int4-head8", 4),
        Contender("ONNX Runtime GenAI int8", "ort_genai", folder / "ort_genai-int8", 8),
        Contender("OpenVINO GenAI int4", "openvino", folder / "openvino-int4", 4),
        Contender("OpenVINO GenAI int4, evicting", "openvino", folder / "openvino-int4", 4, settings={"evict": BUDGET}),
        Contender("OpenVINO GenAI int8", "openvino", folder / "openvino-int8", 8),
    ]
