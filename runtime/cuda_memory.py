"""Device buffers and copies through NVIDIA's driver API: all that running an engine needs of CUDA."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.devices.cuda import driver
from edgellm.runtime.errors import EdgellmError


class Cuda:
    """The primary context of GPU 0 and one stream. Raises EdgellmError where there is no GPU."""

    def __init__(self) -> None:
        found = driver()
        if found is None:
            raise EdgellmError(
                "no NVIDIA GPU can be used here: libcuda.so.1 is missing or finds none",
                "Run the bundle without --backend tensorrt; edgellm doctor and nvidia-smi say more.",
            )
        self._cuda = found
        device, context, stream = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_void_p()
        self._do("cuDeviceGet", ctypes.byref(device), 0)
        self._do("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self._do("cuCtxSetCurrent", context)
        self._do("cuStreamCreate", ctypes.byref(stream), 0)
        self.stream = int(stream.value or 0)

    def allocate(self, nbytes: int) -> int:
        """The address of `nbytes` zeros on the device, kept for the process's life or until `free`."""
        address = ctypes.c_uint64()
        self._do("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(max(nbytes, 1)))
        self._do("cuMemsetD8_v2", address, ctypes.c_ubyte(0), ctypes.c_size_t(nbytes))
        return int(address.value)

    def free(self, address: int) -> None:
        """Give an allocation back."""
        self._do("cuMemFree_v2", ctypes.c_uint64(address))

    def upload(self, array: NDArray[Any], address: int) -> None:
        """Copy a contiguous array to the device, in the stream's order."""
        size = ctypes.c_size_t(array.nbytes)
        self._do(
            "cuMemcpyHtoDAsync_v2", ctypes.c_uint64(address), ctypes.c_void_p(array.ctypes.data), size,
            ctypes.c_void_p(self.stream),
        )  # fmt: skip

    def download(self, address: int, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        """A copy of what lies on the device, once all that was started before is done."""
        array = np.empty(shape, dtype)
        self._do("cuStreamSynchronize", ctypes.c_void_p(self.stream))
        self._do(
            "cuMemcpyDtoH_v2",
            ctypes.c_void_p(array.ctypes.data),
            ctypes.c_uint64(address),
            ctypes.c_size_t(array.nbytes),
        )
        return array

    def _do(self, name: str, *arguments: Any) -> None:
        code = getattr(self._cuda, name)(*arguments)
        if code:
            hint = "Free memory on the GPU, or use a smaller --kv." if code == 2 else "See edgellm doctor."
            raise EdgellmError(f"CUDA: {name} failed with code {code}", hint)
