"""Cores and memory, from files of the system's shape."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edgellm.devices import memory
from edgellm.devices.cores import usable_cores


def test_hyper_threads_count_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3, 5}, raising=False)
    for cpu, siblings in {0: "0,4", 1: "1,5", 2: "2,6", 3: "3,7", 5: "1,5"}.items():
        (tmp_path / f"cpu{cpu}" / "topology").mkdir(parents=True)
        (tmp_path / f"cpu{cpu}" / "topology" / "thread_siblings_list").write_text(siblings + "\n")
    quota = tmp_path / "cpu.max"
    assert usable_cores(tmp_path, quota) == 4
    for text, expected in {"max 100000": 4, "150000 100000": 2, "1 100000": 1, "1 0": 4, "": 4}.items():
        quota.write_text(text + "\n")
        assert usable_cores(tmp_path, quota) == expected


def test_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert memory.peak_rss_bytes() > 1 << 20
    assert (memory.available_bytes() or 1) > 0
    for name in ("STATUS", "MEMINFO", "LIMIT", "USED", "STAT"):
        monkeypatch.setattr(memory, name, tmp_path / name)
    assert memory.available_bytes() is None
    assert memory.peak_rss_bytes() > 1 << 20
    (tmp_path / "MEMINFO").write_text("MemTotal: 9 kB\nMemAvailable:   1000 kB\n")
    assert memory.available_bytes() == 1000 * 1024
    (tmp_path / "LIMIT").write_text("max\n")
    assert memory.available_bytes() == 1000 * 1024
    assert memory.total_bytes() == 9 * 1024
    (tmp_path / "LIMIT").write_text("5000\n")
    assert memory.total_bytes() == 5000
    (tmp_path / "USED").write_text("1000\n")
    assert memory.available_bytes() == 4000
    (tmp_path / "STAT").write_text("anon 100\ninactive_file 300\nactive_file 50\n")
    assert memory.available_bytes() == 4300  # what was read from files is given up
