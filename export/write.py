"""Writing a bundle: under a name that does not load, renamed when complete: a kill leaves nothing that loads."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.export.graph import DATA, Placed
from edgellm.kernels.layout import Format
from edgellm.runtime.errors import EdgellmError
from edgellm.runtime.manifest import NAME, dump, file_facts, seal

ALIGNMENT = 4096  # bytes: a page, so that a mapped tensor starts on one


class PartialBundle:
    """A bundle being written, in `.OUT.PID.partial` beside OUT. Leaving the `with` without commit() deletes it.

    Raises EdgellmError when OUT exists (and not `force`) or its parent cannot be written to.
    """

    def __init__(self, out: Path, force: bool = False) -> None:
        self.out = out
        self.folder = out.parent / f".{out.name}.{os.getpid()}.partial"
        self._force = force
        self._end = 0
        if out.exists() and not force:
            raise EdgellmError(f"{out} already exists", "Give another folder, or --force to replace it.")
        if out.exists() and not (out.is_dir() and ((out / NAME).is_file() or not any(out.iterdir()))):
            raise EdgellmError(f"{out} exists and is no bundle, so --force does not replace it", "Delete it yourself.")

    def __enter__(self) -> PartialBundle:
        _remove_leftovers(self.out)
        self.folder.mkdir(parents=True)
        self._data = open(self.folder / DATA, "wb")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._data.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def append(self, array: NDArray[Any], format: Format | None = None) -> Placed:
        """Append packed tiles (uint8, with their format) or a float32 vector to the data file, page-aligned."""
        gap = -self._end % ALIGNMENT
        self._data.write(b"\0" * gap)
        offset = self._end + gap
        self._data.write(np.ascontiguousarray(array).data)
        self._end = offset + array.nbytes
        return Placed(offset, array.nbytes, array.shape, format)

    def write(self, name: str, content: bytes) -> None:
        """Write another file of the bundle."""
        (self.folder / name).write_bytes(content)

    def facts(self) -> dict[str, dict[str, Any]]:
        """Size and SHA-256 of every file so far, for the manifest."""
        self._data.flush()
        return {path.name: vars(file_facts(path)) for path in sorted(self.folder.iterdir())}

    def commit(self, manifest: Mapping[str, Any]) -> None:
        """Write the manifest last, flush everything to the disk, and rename: from here on the bundle exists."""
        self._data.close()
        self.write(NAME, dump(seal(manifest)))
        for path in self.folder.iterdir():
            _flush(path)
        _flush(self.folder)
        old = self.folder.with_suffix(".old.partial")
        if self.out.exists():
            os.replace(self.out, old)
        os.replace(self.folder, self.out)
        _flush(self.out.parent)
        shutil.rmtree(old, ignore_errors=True)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove_leftovers(out: Path) -> None:
    """Delete what killed exports to the same folder left; one that still runs is left alone."""
    for path in out.parent.glob(f".{out.name}.*.partial"):
        pid = path.name[len(out.name) + 2 :].split(".")[0]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists():
            shutil.rmtree(path, ignore_errors=True)
