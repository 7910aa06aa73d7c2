"""LoRA's updates of q and v: where they begin, in what units they are learned, and what the graph takes of them."""

from __future__ import annotations

import math

import numpy as np

from edgellm.runtime.adapter import RANK, Tensors
from edgellm.runtime.schema import Model

# The unit of up: with it a first step lowers the surprise at a question by what a prefix's does at the same rate,
# 0.26, 0.27 and 0.16 nats for 0.27, 0.28 and 0.14 (SmolLM2, three questions). With 1, LoRA's own, by 3.5 times that.
UP = 0.25


def first_updates(model: Model) -> Tensors:
    """The tensors that LoRA begins with, in multiples of `units`: drawn (always the same) where they go down, zeros
    where they go up again, so that the model is unchanged."""
    rng, found = np.random.default_rng(0), Tensors()
    for role, heads in (("q", model.heads), ("v", model.kv_heads)):
        found[f"{role}.down"] = rng.standard_normal((model.layers, model.hidden, RANK), np.float32)
        found[f"{role}.up"] = np.zeros((model.layers, RANK, heads * model.head_dim), np.float32)
    return found


def units(model: Model) -> dict[str, float]:
    """What 1 stands for in every tensor while it is learned, so that rates and radius mean about what they do for a
    prefix: 1 / sqrt(hidden) down, LoRA's usual start, whose entries are then about 1; UP up."""
    sizes = {"down": 1 / math.sqrt(model.hidden), "up": UP}
    return {f"{role}.{name}": size for role in ("q", "v") for name, size in sizes.items()}


def graph_inputs(tensors: Tensors) -> Tensors:
    """What model-lora.onnx takes: per layer down.L [hidden, 2 RANK] and up.L [2 RANK, width of q, k and v], the updates
    of q and v side by side, and none of k."""
    layers, rank, queries = tensors["q.up"].shape
    values = tensors["v.up"].shape[2]
    down = np.concatenate([tensors["q.down"], tensors["v.down"]], axis=2)
    up = np.zeros((layers, 2 * rank, queries + 2 * values), np.float32)
    up[:, :rank, :queries] = tensors["q.up"]
    up[:, rank:, queries + values :] = tensors["v.up"]
    return {f"{name}.{layer}": part[layer] for name, part in (("down", down), ("up", up)) for layer in range(layers)}
