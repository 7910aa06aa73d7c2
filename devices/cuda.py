"""NVIDIA's driver, asked through its C API: is there a GPU, and of which compute capability."""

from __future__ import annotations

import ctypes
from functools import cache

LIBRARY = "libcuda.so.1"


@cache
def driver() -> ctypes.CDLL | None:
    """libcuda, initialised; None where there is no driver or it finds no GPU."""
    try:
        cuda = ctypes.CDLL(LIBRARY)
    except OSError:
        return None
    return cuda if cuda.cuInit(0) == 0 else None


def device_capability(number: int = 0) -> str | None:
    """Compute capability of a GPU, "8.7"; None where there is none."""
    cuda = driver()
    if cuda is None:
        return None
    parts = []
    for attribute in (75, 76):  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR
        value = ctypes.c_int()
        if cuda.cuDeviceGetAttribute(ctypes.byref(value), attribute, number) != 0:
            return None
        parts.append(str(value.value))
    return ".".join(parts)
