"""Hugging Face folders: config.json, tokenizer.json and *.safetensors (one file or shards), weights memory-mapped."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer

from edgellm.export import hf_config
from edgellm.export.architectures import role
from edgellm.export.family import expected, family, locate
from edgellm.export.tokenizer import template_stops, token_table
from edgellm.kernels.layout import Format, Quantized
from edgellm.runtime.errors import CheckpointError

_DAMAGED = "Download the folder again (huggingface-cli download MODEL --local-dir FOLDER)."
_DTYPES = ("F64", "F32", "F16", "BF16")


class SafetensorsSource:
    """One folder. Raises CheckpointError from the constructor for anything but a whole, supported model."""

    def __init__(self, path: Path) -> None:
        self.path = path
        config = _json(path / "config.json")
        self._family = family(str(config.get("model_type", "")))
        self.architecture = hf_config.architecture(config, self._family, path.resolve().name)
        self.name = self.architecture.name
        self._tokenizer, self._vocabulary = _tokenizer(path)
        settings = _json(path / "tokenizer_config.json", optional=True)
        self.chat_template = _template(path, settings)
        self.tokens = self._tokens(config, settings)
        self._files: dict[str, Path] = {}  # tensor name -> its file
        for file in _weight_files(path):
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

    def _tokens(self, config: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
        generation = _json(self.path / "generation_config.json", optional=True)
        named = {key: self._vocabulary.get(_content(settings.get(f"{key}_token"))) for key in ("bos", "eos")}
        ends = [*_ids(generation.get("eos_token_id")), *_ids(config.get("eos_token_id"))]
        first_bos = [*_ids(config.get("bos_token_id")), *_ids(generation.get("bos_token_id"))]
        bos = named["bos"] if named["bos"] is not None else next(iter(first_bos), None)
        eos = named["eos"] if named["eos"] is not None else next(iter(ends), None)
        add_bos = settings.get("add_bos_token")
        if add_bos is None:
            add_bos = bos is not None and Tokenizer.from_str(self._tokenizer).encode("a").ids[:1] == [bos]
        stops = [*ends, named["eos"], *template_stops(self.chat_template, self._vocabulary)]
        return token_table(bos, bool(add_bos), eos, stops)

    def _check_tensors(self) -> None:
        wanted = expected(self._family.hf, self.architecture)
        for name in wanted:
            if name not in self._files:
                raise CheckpointError(f"{self.path.name}: tensor {name} is missing", _DAMAGED)
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
        raise CheckpointError(f"{file.name} is truncated or damaged: {error}", _DAMAGED) from None


def _check_tensor(name: str, view: Any, shape: tuple[int, ...]) -> None:
    found = tuple(view.get_shape())
    if found != shape:
        raise CheckpointError(f"{name} has shape {found}; config.json says {shape}", _DAMAGED)
    if view.get_dtype() not in _DTYPES:
        raise CheckpointError(
            f"{name} is stored as {view.get_dtype()}; expected one of {', '.join(_DTYPES)}",
            "Export from the unquantized model.",
        )


def _weight_files(path: Path) -> list[Path]:
    index, single = path / "model.safetensors.index.json", path / "model.safetensors"
    if index.exists():
        names = sorted(set(_json(index).get("weight_map", {}).values()))
        lost = [name for name in names if not (path / name).exists()]
        if lost:
            raise CheckpointError(f"{path.name}: shard {lost[0]} is missing ({len(lost)} of {len(names)})", _DAMAGED)
        return [path / name for name in names]
    if single.exists():
        return [single]
    if list(path.glob("*.bin")) or list(path.glob("*.pt*")):
        raise CheckpointError(
            f"{path.name} holds its weights as a pickle (*.bin, *.pt), which can run any code when loaded",
            "Convert it where you trust it: AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(NEW).",
        )
    raise CheckpointError(f"{path.name} holds no model.safetensors", _DAMAGED)


def _tokenizer(path: Path) -> tuple[str, dict[str, int]]:
    file = path / "tokenizer.json"
    if not file.exists():
        raise CheckpointError(
            f"{path.name} has no tokenizer.json",
            "Write one: AutoTokenizer.from_pretrained(FOLDER, use_fast=True).save_pretrained(FOLDER).",
        )
    text = file.read_text(encoding="utf-8")
    try:
        return text, dict(Tokenizer.from_str(text).get_vocab(with_added_tokens=True))
    except Exception as error:  # tokenizers raises bare Exception
        raise CheckpointError(f"{path.name}/tokenizer.json does not load: {error}", _DAMAGED) from None


def _template(path: Path, settings: Mapping[str, Any]) -> str | None:
    file, entry = path / "chat_template.jinja", settings.get("chat_template")
    if file.exists():
        return file.read_text(encoding="utf-8")
    if isinstance(entry, list):  # several, by name
        entry = next((one["template"] for one in entry if one.get("name") == "default"), None)
    return None if entry is None else str(entry)


def _json(path: Path, optional: bool = False) -> dict[str, Any]:
    if not path.exists():
        if optional:
            return {}
        raise CheckpointError(f"{path.parent.name} has no {path.name}", _DAMAGED)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path.parent.name}/{path.name} is not JSON: {error}", _DAMAGED) from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path.parent.name}/{path.name} is not a JSON object", _DAMAGED)
    return content


def _ids(entry: object) -> list[int]:
    if entry is None:
        return []
    found: list[Any] = entry if isinstance(entry, list) else [entry]
    if not all(isinstance(one, int) for one in found):
        raise CheckpointError(f"a token id in the folder's settings is {entry!r}; expected a number", _DAMAGED)
    return found


def _content(entry: object) -> str:
    return str(entry.get("content", "")) if isinstance(entry, dict) else str(entry or "")
