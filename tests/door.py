"""libedgellm.so, the C API, called from Python: what its tests compare with the Python runtime."""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Sequence
from ctypes import POINTER, byref, c_char_p, c_double, c_int32, c_int64, c_size_t, c_void_p
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.kernels.library import library_path

FAILED, USAGE, BUNDLE, CONTEXT, END = 1, 2, 3, 4, 5


class Options(ctypes.Structure):
    _fields_ = (
        ("size", c_size_t),
        ("kv", c_char_p),
        ("threads", c_int32),
        ("verify", c_int32),
        ("onnxruntime", c_char_p),
        ("backend", c_char_p),
    )


class Sampling(ctypes.Structure):
    _fields_ = (
        ("size", c_size_t),
        ("temperature", c_double),
        ("top_k", c_int64),
        ("top_p", c_double),
        ("min_p", c_double),
        ("repetition_penalty", c_double),
        ("seed", c_int64),
    )


class Facts(ctypes.Structure):
    _fields_ = (
        ("name", c_char_p),
        ("architecture", c_char_p),
        ("kv", c_char_p),
        ("onnxruntime", c_char_p),
        *((name, c_int32) for name in ("vocabulary", "context", "limit", "bos", "eos")),
        ("kv_bytes", c_size_t),
    )


class State(ctypes.Structure):
    _fields_ = (
        *((name, c_int32) for name in ("prompt_tokens", "reused_tokens", "new_tokens", "evictions")),
        ("prefill_s", c_double),
        ("decode_s", c_double),
        ("stop_reason", c_char_p),
    )


Callback = ctypes.CFUNCTYPE(ctypes.c_int, c_char_p, c_size_t, c_void_p)


class DoorError(Exception):
    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


def library_file() -> Path:
    """libedgellm.so of this build. Raises FileNotFoundError."""
    path = library_path().with_name("libedgellm.so")
    if not path.is_file():
        raise FileNotFoundError(path)
    return path


def onnxruntime_file() -> Path:
    """libonnxruntime.so of the installed package. Raises FileNotFoundError."""
    found = importlib.util.find_spec("onnxruntime")
    folder = Path(found.origin or "").parent / "capi" if found else Path()
    paths = sorted(folder.glob("libonnxruntime.so.*"))
    if not paths:
        raise FileNotFoundError(f"libonnxruntime.so is not in {folder}")
    return paths[0]


def door(library: Path | None = None) -> ctypes.CDLL:
    loaded = ctypes.CDLL(str(library or library_file()))
    loaded.edgellm_message.restype = loaded.edgellm_version.restype = c_char_p
    return loaded


class Door:
    """A session of the C API; every failure is a DoorError. library: another libedgellm.so than this build's."""

    def __init__(self, bundle: Path, library: Path | None = None, **options: Any) -> None:
        self.library = door(library)
        options.setdefault("onnxruntime", str(onnxruntime_file()).encode())
        self.session = c_void_p()
        given = Options(size=ctypes.sizeof(Options), **options)
        self.check(self.library.edgellm_open(str(bundle).encode(), byref(given), byref(self.session)))

    def __del__(self) -> None:
        self.library.edgellm_close(self.session)

    def check(self, status: int) -> None:
        if status:
            raise DoorError(status, self.library.edgellm_message().decode())

    def call(self, name: str, *arguments: Any) -> None:
        self.check(getattr(self.library, name)(self.session, *arguments))

    def facts(self) -> Facts:
        found = Facts()
        self.call("edgellm_describe", byref(found))
        return found

    def state(self) -> State:
        found = State()
        self.call("edgellm_progress", byref(found))
        return found

    def encode(self, text: str | bytes, begin: bool = False) -> list[int]:
        raw = text.encode() if isinstance(text, str) else text
        ids, count = POINTER(c_int32)(), c_size_t()
        self.call("edgellm_encode", raw, c_size_t(len(raw)), int(begin), byref(ids), byref(count))
        return ids[: count.value]

    def decode(self, ids: Sequence[int], special: bool = False) -> str:
        text, size = c_char_p(), c_size_t()
        self.call("edgellm_decode", array(ids), c_size_t(len(ids)), int(special), byref(text), byref(size))
        return ctypes.string_at(text, size.value).decode()

    def sample(self, **settings: float) -> None:
        self.call("edgellm_set_sampling", byref(Sampling(**{"size": ctypes.sizeof(Sampling), "seed": -1, **settings})))

    def prompt(self, prompt: str | Sequence[int], keep: bool = False) -> None:
        if isinstance(prompt, str):
            raw = prompt.encode()
            self.call("edgellm_prompt", raw, c_size_t(len(raw)), int(keep))
        else:
            self.call("edgellm_prompt_ids", array(prompt), c_size_t(len(prompt)), int(keep))

    def stream(self, most: int, stop_after: int | None = None) -> list[str]:
        """The pieces; stop_after: so many."""
        pieces: list[str] = []

        def take(piece: bytes, size: int, user: object) -> int:
            pieces.append(piece[:size].decode())
            return int(len(pieces) == stop_after)

        self.call("edgellm_stream", most, Callback(take), None)
        return pieces

    def ids(self) -> list[int]:
        ids, count = POINTER(c_int32)(), c_size_t()
        self.call("edgellm_ids", byref(ids), byref(count))
        return ids[: count.value]

    def text(self) -> str:
        text, size = c_char_p(), c_size_t()
        self.call("edgellm_text", byref(text), byref(size))
        return ctypes.string_at(text, size.value).decode()

    def logits(self) -> NDArray[np.float32]:
        row, count = POINTER(ctypes.c_float)(), c_size_t()
        self.call("edgellm_logits", byref(row), byref(count))
        return np.ctypeslib.as_array(row, (count.value,)).copy()

    def generate(self, prompt: str | Sequence[int], most: int, keep: bool = False) -> list[int]:
        self.prompt(prompt, keep)
        self.stream(most)
        return self.ids()


def array(ids: Sequence[int]) -> Any:
    return (c_int32 * len(ids))(*ids)
