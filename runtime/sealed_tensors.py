"""A safetensors file with facts and a checksum over both: what prompt caches and adapters are stored as.

Metadata: format, version, `facts` (JSON) and `sha256` over facts and tensors. The checksum tells damage, no more.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from edgellm.runtime.errors import EdgellmError


def write_sealed(
    path: Path, form: str, version: str, facts: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]]
) -> None:
    """Write the file under another name, flush it to the disk, rename: a kill leaves the old one or the new one.

    Raises EdgellmError where the folder cannot be written to.
    """
    described = json.dumps(facts, sort_keys=True)
    digest = _digest(described, ((name, tensors[name]) for name in sorted(tensors)))
    metadata = {"format": form, "version": version, "facts": described, "sha256": digest}
    partial = path.parent / f".{path.name}.{os.getpid()}.partial"
    try:
        save_file(dict(tensors), partial, metadata)
        with open(partial, "rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    except (OSError, SafetensorError) as error:
        hint = "Check that its folder exists, may be written to, and has room."
        raise EdgellmError(f"{path} cannot be written: {getattr(error, 'strerror', None) or error}", hint) from None
    finally:
        with suppress(OSError):
            partial.unlink()


class SealedTensors:
    """An open file whose contents were verified; tensors are read one at a time.

    form: what its format must be, and noun what such a file is called. complain: makes the error to raise, from what
    comes after the path, where a file is missing, of another format or version, or damaged.
    """

    def __init__(self, path: Path, form: str, version: str, noun: str, complain: Callable[[str], EdgellmError]) -> None:
        try:
            self._file = _open(path)
            metadata: dict[str, str] = self._file.metadata() or {}
            self.names: list[str] = sorted(self._file.keys())
        except (OSError, SafetensorError) as error:
            told = "there is no such file" if isinstance(error, FileNotFoundError) else error
            raise complain(f"cannot be read as {noun}: {told}") from None
        if metadata.get("format") != form:
            raise complain(f"is no {noun.partition(' ')[2]}")
        if (given := metadata.get("version")) != version:
            raise complain(f"has format version {given}; this edgellm reads version {version}")
        found = self._facts(metadata)
        if found is None:
            raise complain("is damaged or was edited: its checksum does not match its contents")
        self.facts: Any = found

    def tensor(self, name: str) -> NDArray[Any]:
        """One tensor."""
        values: NDArray[Any] = self._file.get_tensor(name)
        return values

    def shape(self, name: str) -> tuple[int, ...]:
        """One tensor's shape, unread."""
        return tuple(self._file.get_slice(name).get_shape())

    def _facts(self, metadata: Mapping[str, str]) -> Any:
        """The facts, or None where the checksum does not match."""
        try:
            described = metadata["facts"]
            digest = _digest(described, ((name, self.tensor(name)) for name in self.names))
            return json.loads(described) if metadata["sha256"] == digest else None
        except (OSError, SafetensorError, KeyError, ValueError):
            return None


def _open(path: Path) -> Any:
    return safe_open(str(path), framework="np")


def _digest(described: str, tensors: Iterable[tuple[str, NDArray[Any]]]) -> str:
    digest = hashlib.sha256(described.encode())
    for name, tensor in tensors:
        digest.update(f"\n{name} {tensor.dtype} {tensor.shape}\n".encode())
        digest.update(np.ascontiguousarray(tensor).data)
    return digest.hexdigest()
