"""What the manifest says of an export before anything is measured (the schema: edgellm.runtime.schema)."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from tokenizers import Tokenizer

from edgellm.export.checkpoint import Checkpoint
from edgellm.export.config import ExportConfig
from edgellm.export.graph import OPERATORS, Placed
from edgellm.runtime.cache import KVPolicy
from edgellm.runtime.chat import Chat, freeze
from edgellm.runtime.manifest import SCHEMA

_SIZES = ("layers", "hidden", "heads", "kv_heads", "head_dim", "ff", "vocabulary", "context", "parameters")


def describe(
    config: ExportConfig,
    checkpoint: Checkpoint,
    placed: Mapping[str, Placed],
    policy: KVPolicy,
    files: Mapping[str, Any],
) -> dict[str, Any]:
    """The manifest with "quality" and "parity" still null."""
    arch = checkpoint.architecture
    created = datetime.now(UTC).replace(microsecond=0)
    return {
        "schema": SCHEMA,
        "tool": version("edgellm"),
        "operators": OPERATORS,
        "created": created.isoformat(),
        "model": {"architecture": arch.model_type, "name": checkpoint.name, **{s: getattr(arch, s) for s in _SIZES}},
        "recipe": {
            "source": checkpoint.source_name,
            "sparsity": str(config.sparsity),
            "scope": config.scope,
            "bits": config.bits or "as stored",
            "head_bits": config.width("embedding") or "as stored",
            "calibration": config.calibration.name if config.calibration else None,
        },
        "device": config.device.name,
        "kv": {"policy": policy.name, "budget": policy.budget, "sinks": policy.sinks},
        "tokens": checkpoint.tokens,
        "chat": _chat(checkpoint, created),
        "matrices": [
            {"name": name, **at.format.attributes(), "bytes": at.nbytes}
            for name, at in placed.items()
            if at.format is not None
        ],
        "quality": None,
        "parity": None,
        "files": dict(files),
    }


def _chat(checkpoint: Checkpoint, created: datetime) -> dict[str, Any] | None:
    if checkpoint.chat_template is None:
        return None
    tokenizer = Tokenizer.from_str(checkpoint.tokenizer_json())
    named = {f"{role}_token": checkpoint.tokens[role] for role in ("bos", "eos")}
    special = {name: tokenizer.id_to_token(token) or "" for name, token in named.items() if token is not None}
    chat = Chat(checkpoint.chat_template, special)
    return freeze(chat, lambda text: tokenizer.encode(text, add_special_tokens=False).ids, created)
