"""What an engine file says of itself before TensorRT sees it, so that a wrong one is told in words.

The first bytes of a plan, as TensorRT-RTX 1.7 writes them (found by looking, not documented): magic "vtrt" (enterprise
TensorRT: "ftrt"), the file's size as uint64 at 16, and the builder's version, one byte a part, at 24.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

from edgellm.runtime.errors import BundleError

MAGIC = {b"vtrt": "tensorrt-rtx", b"ftrt": "tensorrt"}
HEADER = 32  # bytes, of which these are read
REBUILD = "Build it again on this device: edgellm build-engine BUNDLE"


@dataclass(frozen=True)
class EngineHeader:
    """kind: which TensorRT wrote it, a value of --engine. nbytes: of the whole file. version: "1.7.1.116", None where
    the layout is another one's."""

    kind: str
    nbytes: int
    version: str | None


def read_header(path: Path) -> EngineHeader:
    """Read an engine's header. Raises BundleError for a file that is none, or is not whole."""
    try:
        with open(path, "rb") as file:
            raw = file.read(HEADER)
        has = path.stat().st_size
    except OSError as error:
        raise BundleError(f"{path.name} cannot be read: {error.strerror or error}", REBUILD) from None
    if len(raw) < HEADER or raw[:4] not in MAGIC:
        raise BundleError(f"{path.name} is no TensorRT engine: it begins with {raw[:4]!r}", REBUILD)
    kind = MAGIC[raw[:4]]
    (nbytes,) = struct.unpack_from("<Q", raw, 16)
    if kind == "tensorrt-rtx" and nbytes != has:
        what = "truncated" if has < nbytes else "damaged"
        raise BundleError(f"{path.name} is {what}: {has} bytes, its header says {nbytes}", REBUILD)
    return EngineHeader(kind, has, ".".join(map(str, raw[24:28])) if kind == "tensorrt-rtx" else None)
