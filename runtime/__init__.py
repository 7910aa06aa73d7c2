"""The device side: loads a bundle and generates, with onnxruntime, numpy, tokenizers and jinja2, and no torch.

`from edgellm.runtime import load; llm = load("bundle"); for piece in llm.stream("Once upon a time"): …`
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgellm.runtime.schema import Manifest
    from edgellm.runtime.session import Session

__all__ = ["load"]

# ONNX Runtime's Linux wheels (1.29 and newer) keep a device's id under ~/.cache and upload what was run, unless this is
# set before they are imported. Whoever has set it otherwise is obeyed.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def load(
    path: str | Path,
    kv: str | None = None,
    threads: int | None = None,
    verify: bool = False,
    manifest: Manifest | None = None,
    backend: str = "cpu",
) -> Session:
    """Load a bundle; see edgellm.runtime.loading.load. Importing this module costs nothing until the call."""
    from edgellm.runtime import loading

    return loading.load(path, kv=kv, threads=threads, verify=verify, manifest=manifest, backend=backend)
