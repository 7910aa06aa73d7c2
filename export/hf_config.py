"""config.json -> Architecture: a family's keys and switches, rotary settings, and which layers slide."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from edgellm.export.architectures import ACTIVATIONS, Architecture, Layer, check_sizes
from edgellm.export.family import Family
from edgellm.export.rope import Rope, parse_rope
from edgellm.runtime.errors import CheckpointError

_WHERE = "config.json"
_REDO = "Download the folder again (huggingface-cli download MODEL --local-dir FOLDER)."


def architecture(config: Mapping[str, Any], family: Family, name: str) -> Architecture:
    """The facts of a model from its config.json. Raises CheckpointError for what is missing or not implemented."""
    _refuse(config)
    values: dict[str, Any] = {field: config.get(key) for field, key in family.hf_keys.items()}
    values["kv_heads"] = values["kv_heads"] or values["heads"]
    if not values["head_dim"] and isinstance(values["hidden"], int) and isinstance(values["heads"], int):
        values["head_dim"] = values["hidden"] // max(1, values["heads"])
    check_sizes(values, family.hf_keys, _WHERE)
    head_dim, layers = values["head_dim"], values["layers"]
    biases = tuple(family.switch("biases", ()))
    if not biases and config.get(family.switch("bias_key", "")):
        biases = ("q", "k", "v", "o")
    capped = family.switch("softcaps", False)
    return Architecture(
        model_type=str(config["model_type"]),
        name=name,
        **values,
        activation=_activation(config, family),
        tied=bool(config.get("tie_word_embeddings", family.switch("tied", False))),
        attention_scale=float(config.get("query_pre_attn_scalar") or head_dim) ** -0.5,
        layers_as=_layers(config, family, layers, head_dim, values["context"]),
        biases=biases,
        qk_norm=family.switch("qk_norm", False),
        post_norms=family.switch("post_norms", False),
        embedding_scale=math.sqrt(values["hidden"]) if family.switch("scaled_embedding") else 1.0,
        attention_softcap=float((capped and config.get("attn_logit_softcapping")) or 0.0),
        final_softcap=float((capped and config.get("final_logit_softcapping")) or 0.0),
    )


def _layers(config: Mapping[str, Any], family: Family, layers: int, head_dim: int, context: int) -> tuple[Layer, ...]:
    everywhere, local = _ropes(config, family, head_dim, context)
    slides = _sliding(config, family, layers)
    window = int(config.get("sliding_window") or 0)
    turning = config.get("no_rope_layers")  # despite its name, 1 marks a layer that rotates
    if turning is None and (period := family.switch("nope_period")):
        period = int(config.get("no_rope_layer_interval") or period)
        turning = [int((layer + 1) % period != 0) for layer in range(layers)]
    still = Rope(everywhere.theta, everywhere.dims, "none")
    if turning is not None and len(turning) != layers:
        raise CheckpointError(f"{_WHERE}: no_rope_layers names {len(turning)} of {layers} layers", _REDO)
    found = []
    for layer in range(layers):
        rope = local if slides[layer] else everywhere
        found.append(Layer(rope if turning is None or turning[layer] else still, window if slides[layer] else 0))
    return tuple(found)


def _sliding(config: Mapping[str, Any], family: Family, layers: int) -> list[bool]:
    if not config.get("sliding_window") or not family.switch("sliding") or config.get("use_sliding_window") is False:
        return [False] * layers
    listed = config.get("layer_types")
    if listed is not None:
        if len(listed) != layers or not set(listed) <= {"sliding_attention", "full_attention"}:
            raise CheckpointError(f"{_WHERE}: layer_types is {listed!r}, which is not implemented", _REDO)
        return [kind == "sliding_attention" for kind in listed]
    if family.switch("sliding") == "all":
        return [True] * layers
    period = config.get("sliding_window_pattern") or family.switch("period")
    if period:
        return [(layer + 1) % int(period) != 0 for layer in range(layers)]
    first = config.get("max_window_layers")  # Qwen: layers from this one on slide, where use_sliding_window is set
    on = bool(config.get("use_sliding_window")) and first is not None
    return [on and layer >= int(first or 0) for layer in range(layers)]


def _ropes(config: Mapping[str, Any], family: Family, head_dim: int, context: int) -> tuple[Rope, Rope]:
    """(of layers that see everything, of sliding layers), from transformers 4's keys or 5's rope_parameters."""
    given = _object(config, "rope_parameters")
    partial = {key: config[key] for key in ("partial_rotary_factor",) if config.get(key) is not None}
    old = {**partial, "rope_theta": config.get("rope_theta"), **_object(config, "rope_scaling")}
    # The context yarn stretches from, where rope_scaling does not say.
    original = config.get("original_max_position_embeddings") or context
    nested = {key: entry for key, entry in given.items() if isinstance(entry, Mapping)}
    if nested:
        wide = {**partial, **nested.get("full_attention", {})}
        near = {**partial, **nested.get("sliding_attention", wide)}
    else:
        wide = {**old, **given}
        near = wide
        if theta := family.switch("local_theta"):
            near = {**partial, "rope_theta": config.get(family.switch("local_theta_key")) or theta}
    return parse_rope(wide, head_dim, original, _WHERE), parse_rope(near, head_dim, original, _WHERE)


def _activation(config: Mapping[str, Any], family: Family) -> str:
    named = str(config.get("hidden_activation") or config.get("hidden_act") or family.switch("activation", "silu"))
    if named == family.switch("activation") or named in ACTIVATIONS:
        return ACTIVATIONS.get(named, named)
    raise CheckpointError(
        f'{_WHERE} has activation "{named}"; supported: {", ".join(sorted(ACTIVATIONS))}',
        "Use a model with one of these.",
    )


def _refuse(config: Mapping[str, Any]) -> None:
    if config.get("quantization_config"):
        raise CheckpointError(f"{_WHERE} has a quantization_config", "Export from the unquantized model.")
    if config.get("mlp_bias"):
        raise CheckpointError(
            f"{_WHERE} has mlp_bias = True; the fused MLP has none", "Use a model without it: it changes the answers."
        )


def _object(config: Mapping[str, Any], key: str) -> dict[str, Any]:
    entry = config.get(key) or {}
    if not isinstance(entry, dict):
        raise CheckpointError(f"{_WHERE}: {key} is {entry!r}; expected an object", _REDO)
    return entry
