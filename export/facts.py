"""What the manifest says of an export before anything is measured (the schema: edgellm.runtime.schema)."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any, Protocol

from tokenizers import Tokenizer

from edgellm.export.checkpoint import Checkpoint
from edgellm.export.config import ExportConfig
from edgellm.export.nodes import Placed
from edgellm.kernels.library import OPERATORS
from edgellm.runtime.chat import Chat, freeze
from edgellm.runtime.kv_policy import KVPolicy
from edgellm.runtime.manifest import SCHEMA

SIZES = ("layers", "hidden", "heads", "kv_heads", "head_dim", "ff", "vocabulary", "context", "parameters")


class Spoken(Protocol):
    """What text a model takes and writes: a Checkpoint, or a folder whose weights are read by others."""

    tokens: dict[str, Any]
    chat_template: str | None

    def tokenizer_json(self) -> str:
        """tokenizer.json's text."""


def describe(
    config: ExportConfig,
    checkpoint: Checkpoint,
    placed: Mapping[str, Placed],
    policy: KVPolicy,
    files: Mapping[str, Any],
) -> dict[str, Any]:
    """The manifest with "quality" and "parity" still null."""
    arch = checkpoint.architecture
    model = {"architecture": arch.model_type, "name": checkpoint.name, **{s: getattr(arch, s) for s in SIZES}}
    matrices = [
        {"name": name, **at.format.attributes(), "bytes": at.nbytes, "offset": at.offset}
        for name, at in placed.items()
        if at.format is not None
    ]
    return frame(config, checkpoint, checkpoint.source_name, model, matrices, policy, files)


def frame(
    config: ExportConfig,
    spoken: Spoken,
    source: str,
    model: Mapping[str, Any],
    matrices: list[dict[str, Any]],
    policy: KVPolicy,
    files: Mapping[str, Any],
    graph: str = "edgellm",
) -> dict[str, Any]:
    """The same around any model: "model" and "matrices" as the schema has them, `graph` of edgellm or optimum."""
    created = datetime.now(UTC).replace(microsecond=0)
    return {
        "schema": SCHEMA,
        "tool": version("edgellm"),
        "operators": OPERATORS,
        "created": created.isoformat(),
        "graph": graph,
        "model": dict(model),
        "recipe": {
            "source": source,
            "sparsity": "searched" if config.fit else str(config.sparsity),
            "scope": config.scope,
            "bits": "searched" if config.fit else config.bits or "as stored",
            "head_bits": "searched" if config.fit else config.width("embedding") or "as stored",
            "recover": config.recover if config.updates else "none",
            "calibration": config.calibration.name if config.calibration else None,
            "fit": None if config.fit is None else str(config.fit),
            "levels": {name: str(level) for name, level in config.levels.items()},
        },
        "device": config.device.name,
        "kv": _kv(policy) | {"bits": config.kv_bits},
        "tokens": spoken.tokens,
        "chat": _chat(spoken, created),
        "matrices": matrices,
        "quality": None,
        "parity": None,
        "engine": None,
        "files": dict(files),
    }


def _kv(policy: KVPolicy) -> dict[str, Any]:
    facts: dict[str, Any] = {"policy": policy.name, "budget": policy.budget, "sinks": policy.sinks}
    if policy.name not in ("full", "window"):
        facts |= {name: getattr(policy, name) for name in ("recent", "forget", "queries", "heads", "prefill")}
    facts |= {"layers": policy.layers} if policy.layers != "alike" else {}
    facts |= {"pool": policy.pool} if policy.pool else {}
    return facts | ({"budgets": list(policy.budgets)} if policy.budgets else {})


def _chat(spoken: Spoken, created: datetime) -> dict[str, Any] | None:
    if spoken.chat_template is None:
        return None
    tokenizer = Tokenizer.from_str(spoken.tokenizer_json())
    named = {f"{role}_token": spoken.tokens[role] for role in ("bos", "eos")}
    special = {name: tokenizer.id_to_token(token) or "" for name, token in named.items() if token is not None}
    chat = Chat(spoken.chat_template, special)
    return freeze(chat, lambda text: tokenizer.encode(text, add_special_tokens=False).ids, created)
