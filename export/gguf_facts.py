"""A GGUF file's metadata -> Architecture. What the format leaves to the loader, families/*.toml says."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgellm.export.architectures import Architecture, Layer, check_sizes
from edgellm.export.family import Family
from edgellm.export.rope import Rope
from edgellm.runtime.errors import CheckpointError

_DAMAGED = "Download or convert the file again."


def architecture(metadata: Mapping[str, Any], tensors: Mapping[str, Any], family: Family, path: Path) -> Architecture:
    """The facts of a model. tensors: gguf's ReaderTensor by name (shapes; rope_freqs' data).

    Raises CheckpointError for what is missing, damaged or not implemented.
    """
    prefix = str(metadata["general.architecture"])
    values: dict[str, Any] = {field: metadata.get(f"{prefix}.{key}") for field, key in family.gguf_keys.items()}
    if family.gguf["embedding"] not in tensors:
        raise CheckpointError(f"{path.name}: tensor {family.gguf['embedding']} is missing", _DAMAGED)
    lists = [key for field, key in family.gguf_keys.items() if isinstance(values[field], list)]
    if lists:
        raise CheckpointError(f"{path.name}: {lists[0]} differs by layer", "Only uniform decoders are implemented.")
    if metadata.get(f"{prefix}.expert_count", 0):
        raise CheckpointError(f"{path.name} is a mixture of experts", "Only dense decoders are implemented.")
    values["kv_heads"] = values["kv_heads"] or values["heads"]
    if not values["head_dim"] and isinstance(values["hidden"], int) and isinstance(values["heads"], int):
        values["head_dim"] = values["hidden"] // max(1, values["heads"])
    values["vocabulary"] = int(tensors[family.gguf["embedding"]].shape[-1])
    check_sizes(values, {field: f"{prefix}.{key}" for field, key in family.gguf_keys.items()}, path.name)
    capped = family.switch("softcaps", False)
    by_heads = values["layers"] == family.switch("wide_scale_layers")
    return Architecture(
        model_type=family.model_types[0],
        name=str(metadata.get("general.name") or path.stem),
        **values,
        activation=family.switch("activation", "silu"),
        tied=family.gguf["head"] not in tensors,
        attention_scale=(values["hidden"] / values["heads"] if by_heads else values["head_dim"]) ** -0.5,
        layers_as=_layers(metadata, tensors, family, path, values),
        biases=tuple(r for r in ("q", "k", "v", "o") if family.gguf[f"{r}_bias"].replace("{i}", "0") in tensors),
        qk_norm=family.switch("qk_norm", False),
        post_norms=family.switch("post_norms", False),
        embedding_scale=math.sqrt(values["hidden"]) if family.switch("scaled_embedding") else 1.0,
        attention_softcap=float(metadata.get(f"{prefix}.attn_logit_softcapping", 50.0)) if capped else 0.0,
        final_softcap=float(metadata.get(f"{prefix}.final_logit_softcapping", 30.0)) if capped else 0.0,
    )


def _layers(
    metadata: Mapping[str, Any], tensors: Mapping[str, Any], family: Family, path: Path, values: Mapping[str, Any]
) -> tuple[Layer, ...]:
    prefix = str(metadata["general.architecture"])
    wide = _rope(metadata, tensors, prefix, path, values["head_dim"], values["context"])
    near = wide
    if theta := family.switch("local_theta"):
        near = Rope(float(metadata.get(f"{prefix}.rope.freq_base_swa") or theta), wide.dims)
    window, period = int(metadata.get(f"{prefix}.attention.sliding_window") or 0), family.switch("period")
    still, nope = Rope(wide.theta, wide.dims, "none"), family.switch("nope_period")
    found = []
    for layer in range(values["layers"]):
        last = period is not None and (layer + 1) % period == 0
        slides = bool(window) and not last and (period is not None or family.switch("sliding") == "all")
        rope = still if nope and (layer + 1) % nope == 0 else near if slides else wide
        found.append(Layer(rope, window if slides else 0))
    return tuple(found)


def _rope(
    metadata: Mapping[str, Any], tensors: Mapping[str, Any], prefix: str, path: Path, head_dim: int, context: int
) -> Rope:
    theta = float(metadata.get(f"{prefix}.rope.freq_base") or 10000.0)
    dims = int(metadata.get(f"{prefix}.rope.dimension_count") or head_dim)
    if not 0 < dims <= head_dim or dims % 2:
        raise CheckpointError(f"{path.name} rotates {dims} of {head_dim} dimensions", _DAMAGED)
    divisors = tensors.get("rope_freqs.weight")
    if divisors is not None and not np.all(divisors.data == 1):
        if divisors.data.size != dims // 2 or not np.all(divisors.data > 0):
            raise CheckpointError(f"{path.name}: rope_freqs.weight does not fit {dims} dimensions", _DAMAGED)
        return Rope(theta, dims, "divisors", {}, tuple(float(d) for d in divisors.data))
    kind = metadata.get(f"{prefix}.rope.scaling.type", "none")
    factor = metadata.get(f"{prefix}.rope.scaling.factor") or metadata.get(f"{prefix}.rope.scale_linear") or 1.0
    if kind == "yarn":
        return Rope(theta, dims, "yarn", _yarn(metadata, f"{prefix}.rope.scaling", context, path))
    if kind not in ("none", "linear"):
        raise CheckpointError(
            f'{path.name} scales its rotary embedding ("{kind}"); linear, yarn and rope_freqs.weight are implemented',
            "Export from the model's Hugging Face folder.",
        )
    return Rope(theta, dims) if float(factor) == 1.0 else Rope(theta, dims, "linear", {"factor": float(factor)})


def _yarn(metadata: Mapping[str, Any], at: str, context: int, path: Path) -> dict[str, float]:
    """yarn's numbers under Hugging Face's names. llama.cpp multiplies attn_factor onto 0.1 ln(factor) + 1."""
    factor = float(metadata.get(f"{at}.factor") or 0)
    if factor <= 0:
        raise CheckpointError(f"{path.name}: yarn rotary scaling lacks {at}.factor", _DAMAGED)
    old = metadata.get(f"{at}.original_context_length")
    settings = {"factor": factor, "original_max_position_embeddings": float(old or context)}
    for ours, theirs in (("beta_fast", "yarn_beta_fast"), ("beta_slow", "yarn_beta_slow")):
        if metadata.get(f"{at}.{theirs}"):
            settings[ours] = float(metadata[f"{at}.{theirs}"])
    by = metadata.get(f"{at}.yarn_attn_factor") or metadata.get(f"{at}.attn_factor")
    if by:
        settings["attention_factor"] = float(by) * max(1.0, 0.1 * math.log(factor) + 1.0)
    return settings
