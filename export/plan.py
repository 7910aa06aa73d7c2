"""What a bundle will hold, from the checkpoint's header alone: every tensor's format and size before any is read."""

from __future__ import annotations

from edgellm.export.architectures import role
from edgellm.export.checkpoint import Checkpoint
from edgellm.export.config import ExportConfig
from edgellm.export.graph import Placed
from edgellm.export.write import ALIGNMENT
from edgellm.kernels.layout import Format


def planned(config: ExportConfig, checkpoint: Checkpoint) -> dict[str, Placed]:
    """Canonical name -> what the pipeline will place, gate and up as "gate_up".

    Formats and sizes are exact; offsets are those of the order of Architecture.tensors. Raises EdgellmError for a size
    no tile holds.
    """
    placed: dict[str, Placed] = {}
    end = 0
    for name, (rows, columns) in checkpoint.architecture.tensors():
        form = planned_format(config, checkpoint, name) if columns else None
        at, nbytes, shape = name, 4 * rows, (rows,)
        if role(name) == "up":
            continue  # with its gate
        if form is not None:
            if role(name) == "gate":
                at = name.removesuffix("gate") + "gate_up"
                form = Format(**{**form.attributes(), "n_out": 2 * form.n_out})
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


def _alone(config: ExportConfig, checkpoint: Checkpoint, name: str) -> Format:
    stored = None if config.prunes(name) or config.width(name) else checkpoint.stored_format(name)
    return stored or config.format(name, checkpoint.architecture.shape(name))
