"""Writing a bundle: under a name that does not load, renamed when complete. A kill leaves nothing that loads."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from edgellm.devices.memory import forget
from edgellm.export.journal import Journal
from edgellm.export.nodes import DATA, Placed
from edgellm.kernels.layout import Format
from edgellm.runtime.errors import EdgellmError
from edgellm.runtime.manifest import NAME, dump, file_facts, seal

ALIGNMENT = 4096  # bytes: a page, so that a mapped tensor starts on one


class PartialBundle:
    """A bundle being written, in `.OUT.partial/bundle.partial` beside OUT, and what a later export may go on from.

    key: what the contents depend on (journal.fingerprint). begin() finds what a killed export with the same key
    finished: `journal`, its tensors and texts. Leaving by an error that says what to do, or of the disk, deletes
    everything; a kill, Ctrl-C or a fault of ours keeps it: hours of work may lie behind it.
    Raises EdgellmError when OUT exists (and not `force`), its parent cannot be written to, or another export to the
    same OUT is running.
    """

    def __init__(self, out: Path, force: bool = False) -> None:
        self.out = out
        self.work = out.parent / f".{out.name}.partial"
        self.folder = self.work / "bundle.partial"
        self._force = force
        self._end = 0
        if out.exists() and not force:
            raise EdgellmError(f"{out} already exists", "Give another folder, or --force to replace it.")
        if out.exists() and not (out.is_dir() and ((out / NAME).is_file() or not any(out.iterdir()))):
            raise EdgellmError(f"{out} exists and is no bundle, so --force does not replace it", "Delete it yourself.")

    @property
    def nbytes(self) -> int:
        """Bytes on the disk that a killed export left and this one may use or will delete."""
        return sum(file.stat().st_size for file in self.work.rglob("*") if file.is_file())

    def begin(self, key: str) -> PartialBundle:
        """What `key` may go on from is kept, everything else deleted; then use this as a context."""
        self.work.mkdir(parents=True, exist_ok=True)
        self._lock = _locked(self.work, self.out)
        self.journal = Journal(self.work, key)
        if not self.journal.placed and not self.journal.texts:
            for path in self.work.glob("*.partial"):
                shutil.rmtree(path, ignore_errors=True)
        self.folder.mkdir(exist_ok=True)
        self._end = max((at.offset + at.nbytes for at in self.journal.placed.values()), default=0)
        self._data = open(self.folder / DATA, "ab")  # noqa: SIM115  closed on leaving
        self._data.truncate(self._end)
        return self

    def __enter__(self) -> PartialBundle:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._data.close()
        if kind is None or issubclass(kind, (EdgellmError, OSError)):
            shutil.rmtree(self.work, ignore_errors=True)
        self._lock.close()

    def append(self, name: str, pieces: Iterable[NDArray[Any]], format: Format | None = None) -> Placed:
        """Append a tensor to the data file, page-aligned: packed tiles (uint8, with their format), in any number of
        pieces, or one float32 vector."""
        gap = -self._end % ALIGNMENT
        self._data.write(b"\0" * gap)
        offset = self._end + gap
        length, dtype = 0, np.dtype(np.uint8)
        for piece in pieces:
            self._data.write(np.ascontiguousarray(piece).data)
            length, dtype = length + piece.nbytes, piece.dtype
        self._end = offset + length
        self.journal.placed[name] = Placed(offset, length, (length // dtype.itemsize,), format)
        return self.journal.placed[name]

    def replace(self, name: str, content: NDArray[np.uint8]) -> None:
        """Other bytes, as many, for a tensor that was placed."""
        at = self.journal.placed[name]
        if content.nbytes != at.nbytes:
            raise ValueError(f"{name} has {at.nbytes} bytes, not {content.nbytes}")
        self._data.flush()
        with open(self.folder / DATA, "r+b") as data:
            data.seek(at.offset)
            data.write(np.ascontiguousarray(content).data)

    def keep(self) -> None:
        """From here on a killed export need not do again what was appended so far."""
        self._data.flush()
        os.fsync(self._data.fileno())
        self.journal.save()

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
        forget(self.folder / DATA)
        _flush(self.folder)
        old = self.work / "old.partial"
        if self.out.exists():
            os.replace(self.out, old)
        os.replace(self.folder, self.out)
        _flush(self.out.parent)


def _locked(work: Path, out: Path) -> IO[bytes]:
    """Held until closed, or until this process dies."""
    lock = open(work / "lock", "wb")  # noqa: SIM115  held
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        raise EdgellmError(f"another export to {out} is running", "Wait for it, or give another folder.") from None
    return lock


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
