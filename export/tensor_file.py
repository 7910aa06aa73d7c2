"""What an export keeps of its work while it runs, as safetensors files."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor


def write(file: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, str] | None = None) -> None:
    """Write tensors by name, and facts beside them, all at once: a kill leaves this file or the one before.

    Raises OSError, which names the file, where it cannot be written: on a full disk safetensors raises an error of its
    own, that nobody would tell a user in a line.
    """
    fresh = file.with_name(f"{file.name}.new")
    try:
        save_file(dict(tensors), fresh, None if facts is None else dict(facts))
        os.replace(fresh, file)
    except SafetensorError as error:
        fresh.unlink(missing_ok=True)
        raise OSError(0, str(error), str(file)) from None
