"""What a bundle will hold, from the checkpoint's header alone: every tensor's format and size before any is read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from edgellm.export.checkpoint import Checkpoint
from edgellm.export.config import ExportConfig
from edgellm.export.key_shift import shifts_keys
from edgellm.export.nodes import Placed
from edgellm.export.pack import interleave, stack
from edgellm.export.write import ALIGNMENT
from edgellm.kernels.layout import Format, Quantized

QKV = ("q", "k", "v")


def planned(config: ExportConfig, checkpoint: Checkpoint) -> dict[str, Placed]:
    """Canonical name -> what the pipeline will place, gate and up as "gate_up", q, k and v of one format as "qkv".

    Formats and sizes are exact; offsets are those of the order of Architecture.tensors. Raises EdgellmError for a size
    no tile holds.
    """
    placed: dict[str, Placed] = {}
    end, arch = 0, checkpoint.architecture
    shifted = range(arch.layers if shifts_keys(arch, config.kv_bits) else 0)
    ours = ((f"layers.{layer}.k_shift", (arch.kv_heads * arch.head_dim, 0)) for layer in shifted)
    for name, (rows, columns) in (*arch.tensors(), *ours):
        form = planned_format(config, checkpoint, name) if columns else None
        at, nbytes, shape = name, 4 * rows, (rows,)
        layer, _, part = name.rpartition(".")
        joined = part[:1] in QKV and part[1:] in ("", "_bias") and _joins(config, checkpoint, layer)
        if part == "up" or (joined and part[0] != "q"):
            continue  # with its gate, or with q
        if joined:
            more = sum(arch.shape(f"{layer}.{other}{part[1:]}")[0] for other in QKV[1:])
            at, nbytes, shape = f"{layer}.qkv{part[1:]}", nbytes + 4 * more, (rows + more,)
            form = form and replace(form, n_out=rows + more)
        if part == "gate" and form is not None:
            at, form = f"{layer}.gate_up", replace(form, n_out=2 * form.n_out)
        if form is not None:
            nbytes, shape = form.nbytes, (form.nbytes,)
        end += -end % ALIGNMENT
        placed[at] = Placed(end, nbytes, shape, form)
        end += nbytes
    return placed


def planned_format(config: ExportConfig, checkpoint: Checkpoint, name: str) -> Format:
    """The format that compress.compress_layer will give this matrix."""
    chosen = _alone(config, checkpoint, name)
    layer, _, part = name.rpartition(".")
    if part in ("gate", "up") and len({_alone(config, checkpoint, f"{layer}.{p}") for p in ("gate", "up")}) > 1:
        return config.format(name, checkpoint.architecture.shape(name))  # the fused kernel wants one format
    return chosen


def joined(found: Mapping[str, Quantized]) -> dict[str, Quantized]:
    """A layer's matrices by role as they are placed: q, k, v of one format as "qkv", gate and up as "gate_up".

    In the order of a token's reading: kernels prefetch what lies behind.
    """
    placed = {"qkv": stack([found[role] for role in QKV])} if one_format(found[role].format for role in QKV) else {}
    placed = placed or {role: found[role] for role in QKV}
    return placed | {"o": found["o"], "gate_up": interleave(found["gate"], found["up"]), "down": found["down"]}


def one_format(formats: Iterable[Format]) -> bool:
    """Whether matrices differ in nothing but their outputs, so that they can be stacked."""
    return len({replace(form, n_out=16) for form in formats}) == 1


def _joins(config: ExportConfig, checkpoint: Checkpoint, layer: str) -> bool:
    return one_format(planned_format(config, checkpoint, f"{layer}.{part}") for part in QKV)


def _alone(config: ExportConfig, checkpoint: Checkpoint, name: str) -> Format:
    stored = None if config.prunes(name) or config.width(name) else checkpoint.stored_format(name)
    return stored or config.format(name, checkpoint.architecture.shape(name))
