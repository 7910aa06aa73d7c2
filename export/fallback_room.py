"""Whether the fallback's float32 model fits this machine, and its bundle the device: told before any work."""

from __future__ import annotations

import math

from safetensors import SafetensorError, safe_open

from edgellm.export.config import ExportConfig
from edgellm.export.fit import Room, size
from edgellm.export.hf_folder import DAMAGED, HfFolder
from edgellm.runtime.errors import CheckpointError, EdgellmError

HOST, DISK = 11, 5  # bytes a weight at the peak: 10.7 measured with a GPT-NeoX of 665 M; the float32 graph and more


def refuse_room(config: ExportConfig, folder: HfFolder) -> None:
    """Raise EdgellmError where memory or disk here, or the device's memory, is too small; nothing is loaded for that.

    Raises CheckpointError for a safetensors file that is damaged.
    """
    count, room = weights(folder), Room.of(config)
    rounded = count * (config.bits or 8) // 8
    for what, has, needs in (
        ("this machine's free memory", room.host, count * HOST),
        (f"the disk of {config.out}", room.disk, count * DISK),
        (f"the memory of device {config.device.name} for a model", room.device, rounded),
    ):
        if has is not None and needs > has:
            raise EdgellmError(
                f"{what} is {size(has)}, and a model of {count / 1e6:.1f} M weights needs {size(needs)}: Optimum, "
                "which exports what is not in the table, takes it as a whole",
                "Use a larger one, a smaller model, or a supported architecture, which is exported layer by layer.",
            )


def weights(folder: HfFolder) -> int:
    """Weights in the folder's safetensors, from their headers."""
    count = 0
    for file in folder.weight_files():
        try:
            with safe_open(str(file), framework="np") as tensors:
                names = tensors.keys()
                count += sum(math.prod(tensors.get_slice(name).get_shape()) for name in names)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{file.name} is truncated or damaged: {error}", DAMAGED) from None
    return count
