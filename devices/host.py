"""The machine this runs on, as a Device: a known board by its name, else what the system tells."""

from __future__ import annotations

import platform
from pathlib import Path

from edgellm.devices.cores import usable_cores
from edgellm.devices.memory import total_bytes
from edgellm.devices.profile import HOST, Device, load, names

CPUINFO = Path("/proc/cpuinfo")
BOARD = (Path("/proc/device-tree/model"), Path("/sys/class/dmi/id/product_name"))
SHARE = 0.8  # an assumption: the rest is the system's and other programs'
# Kernel's flag -> the name of what our kernels could use of it, best first.
X86 = {"avx512_vnni": "avx512-vnni", "avx_vnni": "avx2-vnni", "avx2": "avx2"}
ARM = {"i8mm": "armv8.6-a+i8mm", "asimddp": "armv8.2-a+dotprod", "asimd": "armv8-a"}


def detect() -> Device:
    """This machine. Its bandwidth is not known: measuring takes seconds of all cores (`edgellm bench` does it).

    A board that a profile names is that profile, if its memory is of that size too (boards of one name have several).
    """
    memory, board = total_bytes(), _board()
    for profile in (load(name) for name in names()):
        size = profile.memory_bytes or 0
        # Firmware and GPU keep a part for themselves, so the system sees less than was soldered.
        if any(known in board for known in profile.boards) and 0.75 * size < (memory or 0) <= size:
            return profile
    told = "read from this system"
    return Device(
        name=HOST,
        title=f"this machine ({board or platform.machine() or 'unknown'})",
        memory_bytes=memory,
        usable_share=SHARE,
        bandwidth_gb_s=None,
        cores=usable_cores(),
        instruction_set=instruction_set(),
        sources={
            "memory_bytes": told,
            "usable_share": "assumption: the rest is for the system and other programs",
            "cores": told,
            "instruction_set": told,
        },
    )


def instruction_set(cpuinfo: Path = CPUINFO) -> str:
    """The best instruction set of this processor that matters to weights of 4 and 8 bits; else the machine's name."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith(("flags", "Features"))), [])
    known = ARM if platform.machine() in ("aarch64", "arm64") else X86
    return next((name for flag, name in known.items() if flag in flags), platform.machine() or "unknown")


def _board() -> str:
    for path in BOARD:
        try:
            return path.read_text(encoding="utf-8", errors="replace").strip("\0\n ")
        except OSError:
            pass
    return ""
