"""What a decoder is made of: its sizes, its switches, and every tensor by canonical name.

Canonical names: "embedding", "head" (untied models only), "norm", and in every layer "layers.{i}.{role}" with the roles
q k v o gate up down (matrices [out, in]) and vectors: attention_norm mlp_norm, and where the model has them
post_attention_norm post_mlp_norm [hidden], q_norm k_norm [head_dim], q_bias k_bias v_bias o_bias.
How files spell them: family.py.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from edgellm.export.rope import Rope
from edgellm.runtime.errors import CheckpointError

MATRICES = ("q", "k", "v", "o", "gate", "up", "down")
ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh"}


@dataclass(frozen=True)
class Layer:
    """What differs between layers: rotation, and the sliding window in tokens, itself included (0: all it can see)."""

    rope: Rope
    window: int = 0


@dataclass(frozen=True)
class Architecture:
    """The facts of one model. Sizes count elements; context is the number of positions the model was trained for.

    activation: "silu" | "gelu_tanh", of the gate. tied: the output head is the embedding matrix. attention_scale: of
    q . k before softmax. biases: matrices that have one. qk_norm: RMSNorm over each head of q and k before rotation.
    post_norms: RMSNorm of what attention and MLP add. Softcaps (0: none): cap * tanh(x / cap) of attention's logits and
    of the output's. layers_as: one Layer each.
    """

    model_type: str
    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ff: int
    vocabulary: int
    context: int
    norm_eps: float
    activation: str
    tied: bool
    attention_scale: float
    layers_as: tuple[Layer, ...]
    biases: tuple[str, ...] = ()
    qk_norm: bool = False
    post_norms: bool = False
    embedding_scale: float = 1.0
    attention_softcap: float = 0.0
    final_softcap: float = 0.0

    @property
    def parameters(self) -> int:
        """Number of weights; a tied head counts once."""
        return sum(rows * (columns or 1) for _, (rows, columns) in self.tensors())

    @property
    def vectors(self) -> tuple[str, ...]:
        """The roles of a layer's vectors."""
        names = ["attention_norm", "mlp_norm"]
        names += ["post_attention_norm", "post_mlp_norm"] if self.post_norms else []
        names += ["q_norm", "k_norm"] if self.qk_norm else []
        return (*names, *(f"{matrix}_bias" for matrix in self.biases))

    def shape(self, name: str) -> tuple[int, int]:
        """(out, in) of a matrix, (length, 0) of a vector, by canonical name. Raises KeyError for an unknown name."""
        query, key = self.heads * self.head_dim, self.kv_heads * self.head_dim
        sizes = {
            "embedding": (self.vocabulary, self.hidden),
            "head": (self.vocabulary, self.hidden),
            "q": (query, self.hidden),
            "k": (key, self.hidden),
            "v": (key, self.hidden),
            "o": (self.hidden, query),
            "gate": (self.ff, self.hidden),
            "up": (self.ff, self.hidden),
            "down": (self.hidden, self.ff),
            "q_norm": (self.head_dim, 0),
            "k_norm": (self.head_dim, 0),
        }
        sizes |= dict.fromkeys(("norm", "attention_norm", "mlp_norm"), (self.hidden, 0))
        sizes |= dict.fromkeys(("post_attention_norm", "post_mlp_norm"), (self.hidden, 0))
        sizes |= {f"{matrix}_bias": (sizes[matrix][0], 0) for matrix in ("q", "k", "v", "o")}
        return sizes[role(name)]

    def tensors(self) -> Iterator[tuple[str, tuple[int, int]]]:
        """Every tensor's canonical name with its shape, in the order of a forward pass."""
        names = ["embedding"]
        names += [f"layers.{i}.{part}" for i in range(self.layers) for part in (*MATRICES, *self.vectors)]
        names += ["norm"] if self.tied else ["norm", "head"]
        return ((name, self.shape(name)) for name in names)


def role(name: str) -> str:
    """The last part of a canonical name: "layers.3.gate" -> "gate"."""
    return name.rpartition(".")[2]


def check_sizes(values: Mapping[str, Any], keys: Mapping[str, str], where: str) -> None:
    """Raise CheckpointError unless every size is above 0 and heads fit; keys: field -> the file's own key."""
    kinds: dict[str, tuple[type, ...]] = {"int": (int,), "float": (int, float)}
    for field in dataclasses.fields(Architecture):
        if field.name in values and field.default is dataclasses.MISSING and str(field.type) in kinds:
            value, key = values[field.name], keys.get(field.name, field.name)
            if not (type(value) in kinds[str(field.type)] and 0 < value < math.inf):  # a bool is no number here
                raise CheckpointError(
                    f"{where}: {key} is {value!r}; expected a number above 0", "Convert the model again."
                )
    if values["heads"] % values["kv_heads"] or values["head_dim"] % 2:
        raise CheckpointError(
            f"{where}: {values['heads']} heads of {values['head_dim']} do not fit {values['kv_heads']} key heads",
            "Convert the model again.",
        )
