"""TensorRT's Python modules: TensorRT-RTX on a PC, `tensorrt` where JetPack or pip brings it. One API serves both."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

from edgellm.runtime.errors import EdgellmError

MODULES = {
    "tensorrt-rtx": ("tensorrt_rtx", 'Install it: pip install "edgellm[tensorrt]" (tensorrt-rtx-cu13).'),
    "tensorrt": ("tensorrt", "On a Jetson: sudo apt install tensorrt python3-libnvinfer (JetPack). "
                             "Elsewhere: pip install tensorrt."),
}  # fmt: skip
"""Value of --engine -> (module, what to do where it is missing)."""


def installed(kind: str) -> bool:
    """Whether the module can be found; nothing is imported."""
    return find_spec(MODULES[kind][0]) is not None


def tensorrt(kind: str) -> Any:
    """The module. Raises EdgellmError where it is not installed or its libraries cannot be loaded."""
    name, remedy = MODULES[kind]
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != name:
            raise
        raise EdgellmError(f"the Python module {name} is not installed", remedy) from None
    except OSError as error:
        raise EdgellmError(f"{name} is installed but cannot be loaded: {error}", remedy) from None
