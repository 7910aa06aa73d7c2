"""model_type -> tensor names, config keys and switches: everything that differs between decoder families, as data.

Canonical names: "embedding", "head" (untied models only), "norm", and in every layer "layers.{i}.{role}" with the roles
q k v o gate up down (matrices [out, in]) and attention_norm mlp_norm (vectors [hidden]).
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from edgellm.runtime.errors import CheckpointError

MATRICES = ("q", "k", "v", "o", "gate", "up", "down")
NORMS = ("attention_norm", "mlp_norm")


@dataclass(frozen=True)
class Architecture:
    """The facts of one model. Sizes count elements; context is the number of positions the model was trained for.

    activation: "silu" | "gelu_tanh", of the gate. tied: the output head is the embedding matrix.
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
    rope_theta: float
    activation: str
    tied: bool

    @property
    def parameters(self) -> int:
        """Number of weights; a tied head counts once."""
        return sum(rows * (columns or 1) for _, (rows, columns) in self.tensors())

    def shape(self, name: str) -> tuple[int, int]:
        """(out, in) of a matrix, (length, 0) of a vector, by canonical name. Raises KeyError for an unknown name."""
        query, key = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return {
            "embedding": (self.vocabulary, self.hidden),
            "head": (self.vocabulary, self.hidden),
            "norm": (self.hidden, 0),
            "attention_norm": (self.hidden, 0),
            "mlp_norm": (self.hidden, 0),
            "q": (query, self.hidden),
            "k": (key, self.hidden),
            "v": (key, self.hidden),
            "o": (self.hidden, query),
            "gate": (self.ff, self.hidden),
            "up": (self.ff, self.hidden),
            "down": (self.hidden, self.ff),
        }[role(name)]

    def tensors(self) -> Iterator[tuple[str, tuple[int, int]]]:
        """Every tensor's canonical name with its shape, in the order of a forward pass."""
        names = ["embedding"]
        names += [f"layers.{i}.{part}" for i in range(self.layers) for part in (*MATRICES, *NORMS)]
        names += ["norm"] if self.tied else ["norm", "head"]
        return ((name, self.shape(name)) for name in names)


@dataclass(frozen=True)
class Family:
    """One row of the table: how a model_type spells its tensors and settings in Hugging Face folders and GGUF files.

    hf, gguf: role -> tensor name, with {i} for the layer. hf_keys, gguf_keys: Architecture field -> config key; a GGUF
    key is prefixed with the architecture's name in the file. permuted: roles whose rows GGUF stores with the two halves
    of a head interleaved (llama.cpp's rotary order). hf_ignored: name endings that hold no
    weights. hf_refused: config switches, with the only value this version implements.
    """

    hf: Mapping[str, str]
    gguf: Mapping[str, str]
    hf_keys: Mapping[str, str]
    gguf_keys: Mapping[str, str]
    permuted: tuple[str, ...] = ()
    hf_ignored: tuple[str, ...] = ()
    hf_refused: Mapping[str, object] | None = None


_HF_LLAMA = {
    "embedding": "model.embed_tokens.weight",
    "head": "lm_head.weight",
    "norm": "model.norm.weight",
    "q": "model.layers.{i}.self_attn.q_proj.weight",
    "k": "model.layers.{i}.self_attn.k_proj.weight",
    "v": "model.layers.{i}.self_attn.v_proj.weight",
    "o": "model.layers.{i}.self_attn.o_proj.weight",
    "gate": "model.layers.{i}.mlp.gate_proj.weight",
    "up": "model.layers.{i}.mlp.up_proj.weight",
    "down": "model.layers.{i}.mlp.down_proj.weight",
    "attention_norm": "model.layers.{i}.input_layernorm.weight",
    "mlp_norm": "model.layers.{i}.post_attention_layernorm.weight",
}
_GGUF_LLAMA = {
    "embedding": "token_embd.weight",
    "head": "output.weight",
    "norm": "output_norm.weight",
    "q": "blk.{i}.attn_q.weight",
    "k": "blk.{i}.attn_k.weight",
    "v": "blk.{i}.attn_v.weight",
    "o": "blk.{i}.attn_output.weight",
    "gate": "blk.{i}.ffn_gate.weight",
    "up": "blk.{i}.ffn_up.weight",
    "down": "blk.{i}.ffn_down.weight",
    "attention_norm": "blk.{i}.attn_norm.weight",
    "mlp_norm": "blk.{i}.ffn_norm.weight",
}
_HF_KEYS = {
    "layers": "num_hidden_layers",
    "hidden": "hidden_size",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "ff": "intermediate_size",
    "vocabulary": "vocab_size",
    "context": "max_position_embeddings",
    "norm_eps": "rms_norm_eps",
}
_GGUF_KEYS = {
    "layers": "block_count",
    "hidden": "embedding_length",
    "heads": "attention.head_count",
    "kv_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "ff": "feed_forward_length",
    "context": "context_length",
    "norm_eps": "attention.layer_norm_rms_epsilon",
    "rope_theta": "rope.freq_base",
}

FAMILIES: dict[str, Family] = {
    "llama": Family(
        hf=_HF_LLAMA,
        gguf=_GGUF_LLAMA,
        hf_keys=_HF_KEYS,
        gguf_keys=_GGUF_KEYS,
        permuted=("q", "k"),
        hf_ignored=(".rotary_emb.inv_freq",),
        hf_refused={"attention_bias": False, "mlp_bias": False, "partial_rotary_factor": 1.0},
    ),
}

ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh"}


def assemble(keys: Mapping[str, str], where: str, **values: Any) -> Architecture:
    """An Architecture from a file's settings; kv_heads, head_dim and rope_theta may be None (the usual defaults).

    keys: field -> the file's own key, for messages; where: the file's name. Raises CheckpointError for a setting that
    is missing, not a positive number, or contradicts another.
    """
    values["kv_heads"] = values["kv_heads"] or values["heads"]
    values["rope_theta"] = values["rope_theta"] or 10000.0
    if not values["head_dim"] and isinstance(values["hidden"], int) and isinstance(values["heads"], int):
        values["head_dim"] = values["hidden"] // max(1, values["heads"])
    for field in dataclasses.fields(Architecture):
        value, key = values[field.name], keys.get(field.name, field.name)
        kinds: tuple[type, ...] = {"int": (int,), "float": (int, float)}.get(str(field.type), ())
        if kinds and not (type(value) in kinds and 0 < value < math.inf):  # a bool is no number here
            raise CheckpointError(f"{where}: {key} is {value!r}; expected a number above 0", "Convert the model again.")
    if values["heads"] % values["kv_heads"] or values["head_dim"] % 2:
        raise CheckpointError(
            f"{where}: {values['heads']} heads of {values['head_dim']} do not fit {values['kv_heads']} key heads",
            "Convert the model again.",
        )
    return Architecture(**values)


def role(name: str) -> str:
    """The last part of a canonical name: "layers.3.gate" -> "gate"."""
    return name.rpartition(".")[2]


def spell(names: Mapping[str, str], name: str) -> str:
    """A canonical name in a file's own spelling, through a Family's hf or gguf table."""
    parts = name.split(".")
    return names[parts[-1]].replace("{i}", parts[1]) if len(parts) == 3 else names[name]


def family(model_type: str) -> Family:
    """The table's row for a model_type (GGUF: general.architecture).

    Raises CheckpointError that lists what is supported and names the nearest match.
    """
    if model_type in FAMILIES:
        return FAMILIES[model_type]
    nearest = difflib.get_close_matches(model_type, FAMILIES, n=1, cutoff=0.4)
    raise CheckpointError(
        f'architecture "{model_type}" is not supported; supported: {", ".join(sorted(FAMILIES))}',
        (f'The nearest is "{nearest[0]}". ' if nearest else "")
        + "Convert a model of a supported architecture, or add a row to export/architectures.py.",
    )
