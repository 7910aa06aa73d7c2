"""Refusing what cannot fit before any work is done, and saying what would: every option is estimated first."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgellm.devices.memory import available_bytes, peak_rss_bytes
from edgellm.devices.profile import HOST, load, names
from edgellm.export.checkpoint import Checkpoint
from edgellm.export.config import ExportConfig, usual_recovery
from edgellm.export.estimate import Estimate, estimate
from edgellm.export.level import Sparsity
from edgellm.export.prune import SWEPT
from edgellm.runtime.errors import EdgellmError
from edgellm.runtime.kv_policy import SINKS

OPTIONS = 3
AT_4_BITS = 0.58  # bytes a weight, with scales and a head at 8 bits
STEP = 64  # tokens: budgets are offered in multiples of it
# From what costs the least quality to what costs the most; a cache of N tokens is tried with each.
RECIPES: tuple[dict[str, Any], ...] = (
    {},
    {"recover": SWEPT},
    {"kv_bits": 8},
    {"bits": 4},
    {"bits": 4, "head_bits": 4},
    {"bits": 4, "sparsity": Sparsity("dass", 2, 4)},
    {"bits": 4, "head_bits": 4, "sparsity": Sparsity("dass", 2, 4), "scope": "all"},
)


@dataclass(frozen=True)
class Room:
    """Bytes there are: of the device's memory for a model, of this machine's memory for the export, of the disk.

    None: not known, and nothing is refused for it.
    """

    device: int | None
    host: int | None
    disk: int | None

    @staticmethod
    def of(config: ExportConfig, written: int = 0) -> Room:
        """What there is now; what this process, and a killed export's files, already have counts as free for it."""
        free = available_bytes()
        host = None if free is None else free + peak_rss_bytes()
        disk = _free_disk(config.out)
        return Room(config.device.usable_bytes, host, None if disk is None else disk + written)

    def short(self, expected: Estimate) -> str | None:
        """The first of "device", "disk" and "host" that is too small for an export, or None."""
        for name in ("device", "disk", "host"):
            has = getattr(self, name)
            if has is not None and need(expected, name) > has:
                return name
        return None


def need(expected: Estimate, name: str) -> int:
    """Bytes of Room.name that an export takes. Mapped files give way on this machine, where they are read once; on the
    device every token reads them all."""
    return {
        "device": expected.device_bytes,
        "disk": expected.bundle_bytes + expected.work_bytes,
        "host": expected.host_bytes - expected.host_mapped_bytes,
    }[name]


def refuse_unfit(checkpoint: Checkpoint, config: ExportConfig, expected: Estimate, written: int = 0) -> None:
    """Raise EdgellmError with what is needed, what there is, and up to three options that were estimated to fit.

    written: bytes on the disk that a killed export to the same place left.
    """
    room = Room.of(config, written)
    short = room.short(expected)
    if short is None:
        return
    needs, has = size(need(expected, short)), size(getattr(room, short))
    where = {
        "device": f"{_title(config)} has {has} of memory for a model, and this one needs {needs}: "
                  f"weights {size(expected.weight_bytes)}, KV cache {size(expected.kv_bytes)} ({expected.kv})",
        "disk": f"the disk of {config.out} has {has} free, and the export needs {needs}",
        "host": f"this machine has {has} of memory free, and the export needs {needs}",
    }[short]  # fmt: skip
    found = [*_options(checkpoint, config, room, short), *_otherwise(checkpoint, config, expected, room, short)]
    raise EdgellmError(where, f"What would fit: {'; '.join(found[:OPTIONS])}.")


def size(count: int) -> str:
    """Bytes for people: "141 kB", "98 MB", "7.3 GB" (powers of 1000)."""
    if count >= 1e9:
        return f"{count / 1e9:.1f} GB"
    return f"{count / 1e6:.0f} MB" if count >= 1e6 else f"{count / 1e3:.0f} kB"


def _options(checkpoint: Checkpoint, config: ExportConfig, room: Room, short: str) -> Iterator[str]:
    """Other settings of this export that fit everywhere, one a recipe, with what they need of what is short."""
    file = Path("FILE")
    text = {"calibration": file, "recover": usual_recovery(file)}
    for changes in (*RECIPES, text, {"sparsity": Sparsity()}):
        if changes and all(getattr(config, key) == value for key, value in changes.items()):
            continue
        for attempt in _with_caches(checkpoint, replace(config, **changes), room):
            expected = _try(checkpoint, attempt)
            if attempt != config and expected and room.short(expected) is None:
                yield f"{_flags(config, attempt)} ({size(need(expected, short))})"
                break


def _with_caches(checkpoint: Checkpoint, config: ExportConfig, room: Room) -> Iterator[ExportConfig]:
    """The config with its own cache, and with the largest window that fits the device."""
    yield config
    expected = _try(checkpoint, config)
    if expected is None or room.device is None or expected.device_bytes <= room.device:
        return
    policy = config.policy(checkpoint.architecture.context)
    smallest = _try(checkpoint, replace(config, kv=f"window:{SINKS + 1}"))
    if smallest is not None and policy.budget > SINKS + 1:
        slot = (expected.kv_bytes - smallest.kv_bytes) // (policy.budget - SINKS - 1)
        budget = (SINKS + 1 + (room.device - smallest.device_bytes) // slot) // STEP * STEP
        if SINKS < budget < policy.budget:
            yield replace(config, kv=f"window:{budget}")


def _otherwise(
    checkpoint: Checkpoint, config: ExportConfig, expected: Estimate, room: Room, short: str
) -> Iterator[str]:
    """What helps besides settings."""
    has = getattr(room, short)
    needs = size(need(expected, short))
    if short == "disk":
        yield f"an OUT on a disk with {needs} free"
    elif short == "host":
        yield f"a machine with {needs} of memory free"
    else:
        boards = sorted((load(name) for name in names()), key=lambda board: board.usable_bytes or 0)
        for attempt in (replace(config, device=board) for board in boards):
            other = _try(checkpoint, attempt)
            if other and other.device_bytes <= (attempt.device.usable_bytes or 0):
                yield f"--device {attempt.device.name} ({size(other.device_bytes)})"
    rest = expected.device_bytes - expected.weight_bytes - expected.kv_bytes if short == "device" else 0
    most = (
        (has - rest) / AT_4_BITS
        if short != "host"
        else checkpoint.architecture.parameters * has / need(expected, short)
    )
    yield f"a model of up to about {most / 1e9:.{most < 1e10:d}f} B parameters" if most > 5e7 else "a smaller model"


def _try(checkpoint: Checkpoint, config: ExportConfig) -> Estimate | None:
    """The estimate, or None for settings this model cannot have."""
    try:
        config.check(checkpoint.architecture)
        return estimate(checkpoint, config)
    except EdgellmError:
        return None


def _flags(config: ExportConfig, other: ExportConfig) -> str:
    names = ("bits", "head_bits", "sparsity", "scope", "kv", "kv_bits", "calibration", "recover")
    changed = [name for name in names if getattr(other, name) != getattr(config, name)]
    return " ".join(f"--{name.replace('_', '-')} {getattr(other, name)}" for name in changed)


def _title(config: ExportConfig) -> str:
    return "this machine" if config.device.name == HOST else config.device.name


def _free_disk(out: Path) -> int | None:
    folder = next((path for path in (out.absolute(), *out.absolute().parents) if path.exists()), None)
    try:
        return shutil.disk_usage(folder).free if folder else None
    except OSError:
        return None
