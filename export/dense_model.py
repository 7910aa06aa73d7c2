"""A dense model of transformers': its sizes as the manifest says them, the text it writes, its perplexity."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import onnx
import torch
from torch import Tensor

from edgellm.export.hf_folder import HfFolder
from edgellm.runtime.errors import CheckpointError

# A size -> names it has in config.json; transformers' own aliases cover many, not all.
_NAMES = {
    "hidden": ("hidden_size", "n_embd", "d_model"),
    "heads": ("num_attention_heads", "n_head", "n_heads"),
    "ff": ("intermediate_size", "ffn_dim", "n_inner"),
    "context": ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"),
}


def model_facts(model: torch.nn.Module, graph: onnx.GraphProto, folder: HfFolder) -> dict[str, Any]:
    """The manifest's "model": layers, kv_heads, head_dim and vocabulary from the graph, the rest from config.json.

    Raises CheckpointError for a graph whose cache is not keys and values [1, kv_heads, P, head_dim] alike in every
    layer, a config.json that does not say a size, or positions that depend on the length (longrope).
    """
    settings: Any = model.config
    ropes = (getattr(settings, "rope_scaling", None), getattr(settings, "rope_parameters", None))
    if any("longrope" in str(rope) for rope in ropes):
        raise CheckpointError(
            "config.json has rope scaling longrope: its frequencies depend on the length, which a traced graph forgets",
            "Use a model without it.",
        )
    values = {size: _first(settings, size) for size in _NAMES}
    values["ff"] = values["ff"] or 4 * (values["hidden"] or 0)  # GPT-2's n_inner is null
    absent = next((size for size in _NAMES if not values[size]), None)
    if absent:
        raise CheckpointError(
            f"config.json says no {absent}", f"Add one of {', '.join(_NAMES[absent])} to it: the size is needed."
        )
    caches = {end.name: _shape(end) for end in graph.input if end.name.startswith("past_key_values.")}
    layers = len(caches) // 2
    names = {f"past_key_values.{layer}.{kind}" for layer in range(layers) for kind in ("key", "value")}
    shapes = {(shape[1], shape[3]) if len(shape) == 4 else None for shape in caches.values()}
    one = next(iter(shapes), None)
    if set(caches) != names or len(shapes) != 1 or one is None or None in one:
        said = sorted(f"{name} {shape}" for name, shape in caches.items())[:2]
        raise CheckpointError(
            f"Optimum's graph has a cache this runtime cannot keep: {', '.join(said) or 'none'}",
            "Only keys and values [batch, heads, tokens, head_dim], alike in every layer, will do.",
        )
    logits = next(_shape(end) for end in graph.output if end.name == "logits")
    return {
        "architecture": settings.model_type,
        "name": folder.name,
        "layers": layers,
        "hidden": values["hidden"],
        "heads": values["heads"],
        "kv_heads": one[0],
        "head_dim": one[1],
        "ff": values["ff"],
        "vocabulary": logits[-1] or settings.vocab_size,
        "context": values["context"],
        "parameters": sum(weight.numel() for weight in model.parameters()),
    }


@torch.no_grad()
def write_text(model: torch.nn.Module, tokens: Mapping[str, Any], sequences: int, length: int, seed: int) -> Tensor:
    """Text that the model writes itself, int64 [sequences, length]: at temperature 1 from bos, as self_written.py's."""
    begin = next((token for token in (tokens["bos"], tokens["eos"]) if token is not None), 0)
    generator = torch.Generator().manual_seed(seed)
    ids, past = torch.full((sequences, 1), begin), None
    while ids.shape[1] < length:
        out = model(ids[:, -1:], past_key_values=past, use_cache=True)
        past = out.past_key_values
        chosen = torch.multinomial(out.logits[:, -1].float().softmax(dim=-1), 1, generator=generator)
        ids = torch.cat([ids, chosen], dim=1)
    return ids


@torch.no_grad()
def perplexity(model: torch.nn.Module, text: Tensor) -> float:
    """exp of the mean nats a token of text [N, L], each row on its own, as edgellm.runtime.perplexity's."""
    nats = 0.0
    for row in text:
        logits = model(row[None]).logits[0, :-1].float()
        nats += float(torch.nn.functional.cross_entropy(logits, row[1:], reduction="sum"))
    return math.exp(min(nats / (text.numel() - len(text)), 700.0))


def _first(settings: Any, size: str) -> int | None:
    found = (getattr(settings, name, None) for name in _NAMES[size])
    return next((value for value in found if isinstance(value, int) and value > 0), None)


def _shape(end: onnx.ValueInfoProto) -> list[int | None]:
    """Sizes, None where they are free."""
    return [dim.dim_value or None for dim in end.type.tensor_type.shape.dim]
