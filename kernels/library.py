"""The native library: where it lies, what it runs on this processor, and whether it works."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

LOWEST_ORT_API = 17
"""The lowest ONNX Runtime API version that has every entry the library uses (kernels/ort/abi.h)."""

_NAME = "libedgellm_ort.so"
OPERATORS = 2
"""Version of the ONNX domain `edgellm`: another one where an operator or the order of a tile changed."""


def library_path() -> Path:
    """Where the operators' library lies. Raises FileNotFoundError when this build has none (a pure-Python wheel)."""
    import edgellm.kernels

    # An editable install keeps Python here and CMake's output in site-packages: __path__ has both.
    for folder in edgellm.kernels.__path__:
        path = Path(folder) / _NAME
        if path.is_file():
            return path
    raise FileNotFoundError(f"{_NAME} is not in {', '.join(edgellm.kernels.__path__)}")


@cache
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(str(library_path()))
    library.edgellm_instruction_set.restype = ctypes.c_char_p
    library.edgellm_use_instruction_set.argtypes = [ctypes.c_char_p]
    return library


def instruction_set() -> str:
    """The name of the micro-kernels in use: "avx2", "portable", …"""
    return str(_library().edgellm_instruction_set().decode())


def use_instruction_set(name: str) -> bool:
    """Switch to other micro-kernels, for comparing them; False when this processor or build has none of that name."""
    return bool(_library().edgellm_use_instruction_set(name.encode()))
