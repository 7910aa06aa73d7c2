"""What a Hugging Face folder says besides its weights: config.json, tokenizer, chat template, stop tokens."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from edgellm.export.tokenizer import template_stops, token_table
from edgellm.runtime.errors import CheckpointError

DAMAGED = "Download the folder again (huggingface-cli download MODEL --local-dir FOLDER)."


class HfFolder:
    """One folder: config, config.json's object; name, the folder's; tokens, the manifest's entry; chat_template.

    Raises CheckpointError for what is missing or does not load. Weights are not looked at.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = read_json(path / "config.json")
        self.name = path.resolve().name
        self._tokenizer, self._vocabulary = _tokenizer(path)
        settings = read_json(path / "tokenizer_config.json", optional=True)
        self.chat_template = _template(path, settings)
        self.tokens = self._tokens(settings)

    def tokenizer_json(self) -> str:
        """tokenizer.json's text as it is."""
        return self._tokenizer

    def weight_files(self) -> list[Path]:
        """The folder's *.safetensors, all there. Raises CheckpointError for a missing shard, or pickles instead."""
        return _weight_files(self.path)

    def _tokens(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        config = self.config
        generation = read_json(self.path / "generation_config.json", optional=True)
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


def _weight_files(path: Path) -> list[Path]:
    index, single = path / "model.safetensors.index.json", path / "model.safetensors"
    if index.exists():
        names = sorted(set(read_json(index).get("weight_map", {}).values()))
        lost = [name for name in names if not (path / name).exists()]
        if lost:
            raise CheckpointError(f"{path.name}: shard {lost[0]} is missing ({len(lost)} of {len(names)})", DAMAGED)
        return [path / name for name in names]
    if single.exists():
        return [single]
    if list(path.glob("*.bin")) or list(path.glob("*.pt*")):
        raise CheckpointError(
            f"{path.name} holds its weights as a pickle (*.bin, *.pt), which can run any code when loaded",
            "Convert it where you trust it: AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(NEW).",
        )
    raise CheckpointError(f"{path.name} holds no model.safetensors", DAMAGED)


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
        raise CheckpointError(f"{path.name}/tokenizer.json does not load: {error}", DAMAGED) from None


def _template(path: Path, settings: Mapping[str, Any]) -> str | None:
    file, entry = path / "chat_template.jinja", settings.get("chat_template")
    if file.exists():
        return file.read_text(encoding="utf-8")
    if isinstance(entry, list):  # several, by name
        entry = next((one["template"] for one in entry if one.get("name") == "default"), None)
    return None if entry is None else str(entry)


def read_json(path: Path, optional: bool = False) -> dict[str, Any]:
    """A JSON object from a file; empty where it is optional and not there. Raises CheckpointError."""
    if not path.exists():
        if optional:
            return {}
        raise CheckpointError(f"{path.parent.name} has no {path.name}", DAMAGED)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path.parent.name}/{path.name} is not JSON: {error}", DAMAGED) from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path.parent.name}/{path.name} is not a JSON object", DAMAGED)
    return content


def _ids(entry: object) -> list[int]:
    if entry is None:
        return []
    found: list[Any] = entry if isinstance(entry, list) else [entry]
    if not all(isinstance(one, int) for one in found):
        raise CheckpointError(f"a token id in the folder's settings is {entry!r}; expected a number", DAMAGED)
    return found


def _content(entry: object) -> str:
    return str(entry.get("content", "")) if isinstance(entry, dict) else str(entry or "")
