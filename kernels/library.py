"""The native library: where it lies, what it runs on this processor, and whether it works."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.kernels.layout import Format

LOWEST_ORT_API = 17
"""The lowest ONNX Runtime API version that has every entry the library uses (kernels/ort/abi.h)."""

_NAME = "libedgellm_ort.so"
OPERATORS = 4
"""Version of the ONNX domain `edgellm`: another one where an operator or the order of a tile changed."""


def library_path() -> Path:
    """Where the operators' library lies. Raises FileNotFoundError when this build has none (a pure-Python wheel)."""
    return _installed(_NAME)


def cmake_prefix() -> Path:
    """What CMake's find_package(edgellm) wants in CMAKE_PREFIX_PATH: libedgellm.so lies there, edgellm.h in include/.

    Raises FileNotFoundError where the package was not installed as a wheel.
    """
    return _installed("lib/cmake/edgellm/edgellmConfig.cmake").parents[3]


def plugin_path() -> Path:
    """Where the TensorRT plugins lie. Raises FileNotFoundError: wheels have none, it is compiled against the device's
    TensorRT headers (docs/tensorrt.md)."""
    return _installed("libedgellm_tensorrt.so")


def _installed(name: str) -> Path:
    import edgellm.kernels

    # An editable install keeps Python here and CMake's output in site-packages: __path__ has both.
    for folder in edgellm.kernels.__path__:
        path = Path(folder) / name
        if path.is_file():
            return path
    raise FileNotFoundError(f"{name} is not in {', '.join(edgellm.kernels.__path__)}")


@cache
def library() -> ctypes.CDLL:
    """The library, loaded once; its functions' types are declared here. Raises as library_path does."""
    loaded = ctypes.CDLL(str(library_path()))
    size, real, address = ctypes.c_int64, ctypes.c_double, ctypes.c_void_p
    loaded.edgellm_instruction_set.restype = ctypes.c_char_p
    loaded.edgellm_use_instruction_set.argtypes = [ctypes.c_char_p]
    loaded.edgellm_sample.argtypes = [address, size, real, size, real, real, real, address, size, real]
    loaded.edgellm_sample.restype = size
    loaded.edgellm_uncertainty.argtypes = [address, size, address]
    loaded.edgellm_uncertainty.restype = None
    loaded.edgellm_nm_matmul.argtypes = [address, address, size, address, address]
    loaded.edgellm_read_bytes.argtypes = [address, ctypes.c_size_t]
    loaded.edgellm_read_bytes.restype = ctypes.c_uint64
    return loaded


@cache
def engine() -> ctypes.CDLL:
    """libedgellm.so, for its decoder, tokenizer and hash (edgellm.h), loaded once. Raises as library_path does."""
    loaded = ctypes.CDLL(str(_installed("libedgellm.so")))
    size, number, address = ctypes.c_size_t, ctypes.c_int32, ctypes.c_void_p
    loaded.edgellm_message.restype = ctypes.c_char_p
    loaded.edgellm_sha256.argtypes = [ctypes.c_char_p, size, ctypes.c_char_p]
    loaded.edgellm_tokenizer_open.argtypes = [ctypes.c_char_p, number, address]
    loaded.edgellm_tokenizer_close.argtypes = [address]
    loaded.edgellm_tokenizer_close.restype = None
    loaded.edgellm_tokenizer_encode.argtypes = [address, ctypes.c_char_p, size, address, address]
    loaded.edgellm_tokenizer_decode.argtypes = [address, address, size, ctypes.c_int, address, address]
    loaded.edgellm_tokenizer_token.argtypes = [address, number, address, address]
    loaded.edgellm_decoder_open.argtypes = [ctypes.c_char_p, address, number, address]
    loaded.edgellm_decoder_close.argtypes = [address]
    loaded.edgellm_decoder_close.restype = None
    loaded.edgellm_decoder_run.argtypes = [address, address, address, size, address, size, address, address, address]
    return loaded


def sha256(content: bytes) -> str:
    """SHA-256 in hex, without OpenSSL's 4 MB of a process; as fast where the processor has instructions for it. Raises
    as above."""
    found = ctypes.create_string_buffer(65)
    engine().edgellm_sha256(content, len(content), found)
    return found.value.decode()


def instruction_set() -> str:
    """The name of the micro-kernels in use: "avx2", "portable", …"""
    return str(library().edgellm_instruction_set().decode())


def use_instruction_set(name: str) -> bool:
    """Switch to other micro-kernels, for comparing them; False when this processor or build has none of that name."""
    return bool(library().edgellm_use_instruction_set(name.encode()))


def nm_matmul(x: NDArray[np.float32], tiles: NDArray[np.uint8], f: Format) -> NDArray[np.float32]:
    """NMMatMul's product alone (kernels/reference.py), on this thread: float32 x [T, k_in], uint8 tiles [f.nbytes],
    contiguous both -> float32 [T, n_out]. Raises ValueError for a format that the library does not know."""
    facts = (f.n_out, f.k_in, f.bits, f.group, f.zero == "min", f.n, f.m, f.axis == "out")
    y = np.empty((len(x), f.n_out), np.float32)
    if not library().edgellm_nm_matmul(
        (ctypes.c_int64 * 8)(*facts), x.ctypes.data, len(x), tiles.ctypes.data, y.ctypes.data
    ):
        raise ValueError(f"the library knows no {f}")
    return y


def read_bytes(memory: NDArray[Any]) -> int:
    """Read a contiguous array once, at memory speed; the sum modulo 2**64 of its 64-bit words, and of its last bytes.

    The GIL is free meanwhile, so that threads read side by side.
    """
    if not memory.flags.c_contiguous:
        raise ValueError("read_bytes needs a contiguous array")
    return int(library().edgellm_read_bytes(memory.ctypes.data, memory.nbytes))
