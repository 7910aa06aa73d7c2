"""Hugging Face folders: config.json, tokenizer.json and *.safetensors (one file or shards), weights memory-mapped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from edgellm.export import hf_config
from edgellm.export.architectures import role
from edgellm.export.family import expected, family, locate
from edgellm.export.hf_folder import DAMAGED, HfFolder
from edgellm.kernels.layout import Format, Quantized
from edgellm.runtime.errors import CheckpointError

_DTYPES = ("F64", "F32", "F16", "BF16")


class SafetensorsSource:
    """One folder. Raises CheckpointError from the constructor for anything but a whole, supported model."""

    def __init__(self, path: Path) -> None:
        folder = HfFolder(path)
        self._family = family(str(folder.config.get("model_type", "")))
        self.architecture = hf_config.architecture(folder.config, self._family, folder.name)
        self.path, self.name = path, folder.name
        self.tokens, self.chat_template = folder.tokens, folder.chat_template
        self._tokenizer = folder.tokenizer_json()
        self._files: dict[str, Path] = {}  # tensor name -> its file
        for file in folder.weight_files():
            with _open(file) as handle:
                self._files.update(dict.fromkeys(handle.keys(), file))
        self._check_tensors()

    def tokenizer_json(self) -> str:
        """tokenizer.json's text as it is."""
        return self._tokenizer

    def read(self, name: str, rows: slice | None = None) -> torch.Tensor:
        """A tensor by canonical name, float32 [out, in] or [length], or these rows of it."""
        at = locate(self._family.hf, name, self.architecture)
        part = slice(0, self.architecture.shape(name)[0]) if rows is None else rows
        # Opened anew for every tensor: a map that stays open keeps every page it ever read in this process's memory.
        with _open(self._files[at.tensor]) as file:
            stored = file.get_slice(at.tensor)[at.first + part.start : at.first + part.stop]
            weight: torch.Tensor = stored.to(torch.float32, copy=True)
        # Gemma's files hold a norm's weight less one.
        return weight + self._family.switch("norm_offset", 0) if role(name).endswith("norm") else weight

    def stored(self, name: str, rows: slice | None = None) -> Quantized | None:
        """None: the folder's weights are plain floats."""
        return None

    def stored_format(self, name: str) -> Format | None:
        """None, as `stored`."""
        return None

    def _check_tensors(self) -> None:
        wanted = expected(self._family.hf, self.architecture)
        for name in wanted:
            if name not in self._files:
                raise CheckpointError(f"{self.path.name}: tensor {name} is missing", DAMAGED)
        for file in sorted(set(self._files.values())):
            with _open(file) as handle:
                for name in wanted:
                    if self._files[name] == file:
                        _check_tensor(name, handle.get_slice(name), wanted[name])
        head = self._family.hf["head"]  # some folders store the tied head a second time
        for name in self._files:
            if name not in wanted and name != head and not name.endswith(".rotary_emb.inv_freq"):
                raise CheckpointError(
                    f"{self.path.name}: {self.architecture.model_type} has no tensor {name}",
                    "Merge adapters into the model first; ignoring the tensor would change the model's answers.",
                )


def _open(file: Path) -> Any:
    try:
        return safe_open(str(file), framework="pt")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file.name} is truncated or damaged: {error}", DAMAGED) from None


def _check_tensor(name: str, view: Any, shape: tuple[int, ...]) -> None:
    found = tuple(view.get_shape())
    if found != shape:
        raise CheckpointError(f"{name} has shape {found}; config.json says {shape}", DAMAGED)
    if view.get_dtype() not in _DTYPES:
        raise CheckpointError(
            f"{name} is stored as {view.get_dtype()}; expected one of {', '.join(_DTYPES)}",
            "Export from the unquantized model.",
        )
