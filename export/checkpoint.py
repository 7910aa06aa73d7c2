"""Checkpoints: a GGUF file or a Hugging Face folder behind one face, tensors read from mapped files on demand."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import torch

from edgellm.export.architectures import Architecture
from edgellm.export.gguf_source import GgufSource
from edgellm.export.safetensors_source import SafetensorsSource
from edgellm.kernels.layout import Format, Quantized
from edgellm.runtime.errors import CheckpointError


class Source(Protocol):
    """Whatever gives weights by canonical name (architectures.py): a checkpoint, a packed bundle, a test's dict."""

    def matrix(self, name: str, rows: slice | None = None) -> torch.Tensor:
        """float32 [out, in], or these rows of it."""

    def vector(self, name: str) -> torch.Tensor:
        """float32 [length]."""


class _File(Protocol):
    architecture: Architecture
    name: str
    tokens: dict[str, Any]
    chat_template: str | None

    def tokenizer_json(self) -> str: ...
    def read(self, name: str, rows: slice | None = None) -> torch.Tensor: ...
    def stored(self, name: str, rows: slice | None = None) -> Quantized | None: ...
    def stored_format(self, name: str) -> Format | None: ...


class Checkpoint:
    """An opened model. Rows of q and k are always in Hugging Face's rotate-half order.

    architecture; tokens: the manifest's "tokens" entry {"bos", "add_bos", "stop", "eos"}; chat_template: Jinja text or
    None; name: the model's; source_name: the file's or folder's.
    """

    def __init__(self, file: _File, source_name: str) -> None:
        self._file = file
        self.architecture = file.architecture
        self.tokens = file.tokens
        self.chat_template = file.chat_template
        self.name = file.name
        self.source_name = source_name

    def tokenizer_json(self) -> str:
        """tokenizer.json's text. Raises CheckpointError for a GGUF vocabulary that cannot be rebuilt."""
        return self._file.tokenizer_json()

    def matrix(self, name: str, rows: slice | None = None) -> torch.Tensor:
        """A matrix by canonical name, float32 [out, in] or these rows of it, a fresh copy.

        Raises CheckpointError for NaN or infinities.
        """
        return self._finite(name, rows)

    def vector(self, name: str) -> torch.Tensor:
        """A vector by canonical name, float32 [length], a fresh copy. Raises CheckpointError for NaN or infinities."""
        return self._finite(name)

    def stored(self, name: str, rows: slice | None = None) -> Quantized | None:
        """The file's own Q4_0, Q4_1 or Q8_0 blocks (groups of 32) without loss: dequantizing gives `matrix` exactly.

        None where the file holds something else. Raises CheckpointError for NaN or infinite scales.
        """
        found = self._file.stored(name, rows)
        if found is not None:
            for halves in (found.scale, found.minimum):
                if halves is not None and not torch.isfinite(torch.from_numpy(halves)).all():
                    raise _not_finite(self.source_name, name)
        return found

    def stored_format(self, name: str) -> Format | None:
        """The format that `stored` would give, without reading the tensor."""
        return self._file.stored_format(name)

    def _finite(self, name: str, rows: slice | None = None) -> torch.Tensor:
        weight = self._file.read(name, rows)
        if not torch.isfinite(weight).all():
            raise _not_finite(self.source_name, name)
        return weight


def open_checkpoint(source: Path) -> Checkpoint:
    """Open a .gguf file or a Hugging Face folder; every tensor's presence, shape and extent are checked here.

    Raises CheckpointError, saying what to do: not found, a pickle, a missing shard or tokenizer, truncated, an
    architecture or a switch that is not supported, a shape that contradicts the settings.
    """
    path = Path(source)
    if path.is_dir():
        folder = SafetensorsSource(path)
        return Checkpoint(folder, path.resolve().name)
    if not path.exists():
        raise CheckpointError(f"{path} does not exist", "Give a Hugging Face folder or a .gguf file.")
    if path.suffix in (".bin", ".pt", ".pth", ".ckpt", ".pkl"):
        raise CheckpointError(
            f"{path.name} is a pickle, which can run any code when loaded",
            "Give the model's folder with model.safetensors in it, or a .gguf file.",
        )
    if path.suffix == ".safetensors":
        raise CheckpointError(f"{path.name} holds weights only", f"Give its folder: {path.parent}")
    return Checkpoint(GgufSource(path), path.name)


def _not_finite(source_name: str, name: str) -> CheckpointError:
    return CheckpointError(f"{source_name}: {name} holds NaN or infinite weights", "Download or convert it again.")
