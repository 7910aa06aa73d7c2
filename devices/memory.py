"""What this process took of the memory, and what is left; what lies there of a file."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

STATUS = Path("/proc/self/status")
MEMINFO = Path("/proc/meminfo")
LIMIT = Path("/sys/fs/cgroup/memory.max")
USED = Path("/sys/fs/cgroup/memory.current")
STAT = Path("/sys/fs/cgroup/memory.stat")


def peak_rss_bytes() -> int:
    """The most bytes this process had resident, mapped weights included. 0 where the system does not tell."""
    # ru_maxrss survives exec, so a child of a large process would report its parent's peak: VmHWM first.
    high = _field(STATUS, "VmHWM:")
    if high is not None:
        return high
    try:
        import resource
    except ImportError:  # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def give_back() -> None:
    """Give memory that was freed back to the system, where the C library can (glibc)."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # another C library, or Windows
        return
    trim(0)


def forget(path: Path) -> None:
    """Leave a file to the disk: it is out of the page cache then, where nothing has it mapped and the system can do so.

    Just written it lies there in small pages; read again it can come back in huge ones. Raises OSError where it cannot
    be read or written out.
    """
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def available_bytes() -> int | None:
    """Bytes that can be taken without swapping, within a container's limit; None where the system does not tell."""
    free = _field(MEMINFO, "MemAvailable:")
    try:
        left = int(LIMIT.read_text()) - int(USED.read_text()) + _cached()
        return left if free is None else min(free, left)
    except (OSError, ValueError):  # no cgroup, or "max"
        return free


def _cached() -> int:
    """Bytes of files that a container's count holds and gives up when asked: reading a model fills it."""
    try:
        return next(int(line.split()[1]) for line in STAT.read_text().splitlines() if line.startswith("inactive_file "))
    except (OSError, ValueError, IndexError, StopIteration):
        return 0


def total_bytes() -> int | None:
    """Bytes of this machine's memory, or a container's limit if that is lower; None where the system does not tell."""
    total = _field(MEMINFO, "MemTotal:")
    if total is None:
        try:
            total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        except (AttributeError, OSError, ValueError):  # Windows, or a system without these names
            return None
    try:
        return min(total, int(LIMIT.read_text()))
    except (OSError, ValueError):  # no cgroup, or "max"
        return total


def _field(path: Path, name: str) -> int | None:
    try:
        for line in path.read_text().splitlines():
            if line.startswith(name):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return None
