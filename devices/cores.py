"""How many threads are worth starting here."""

from __future__ import annotations

import os
from pathlib import Path

CPU = Path("/sys/devices/system/cpu")
QUOTA = Path("/sys/fs/cgroup/cpu.max")


def usable_cores(cpu: Path = CPU, quota: Path = QUOTA) -> int:
    """Physical cores this process may run on: its affinity without hyper-threads, within a container's quota.

    Weights stream from memory once a token, so a second thread on the same core only takes its bandwidth.
    """
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    siblings = set()
    for number in allowed:
        try:
            siblings.add((cpu / f"cpu{number}" / "topology" / "thread_siblings_list").read_text().strip())
        except OSError:
            siblings.add(str(number))
    cores = len(siblings)
    try:
        most, period = quota.read_text().split()
        if most != "max":
            cores = min(cores, -(-int(most) // int(period)))
    except (OSError, ValueError, ZeroDivisionError):
        pass  # no quota to honour
    return max(1, cores)
