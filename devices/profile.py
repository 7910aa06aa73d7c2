"""What is known of a board before a model meets it: one TOML file a device, each figure with its public source."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
HOST = "host"  # the machine this runs on: edgellm.devices.host
ASSUMPTION = "assumption"  # a source that begins so is none


class UnknownDeviceError(LookupError):
    """No profile has this name. `nearest` is the most similar one's, or None."""

    def __init__(self, name: str) -> None:
        super().__init__(f'device "{name}" is unknown; known: {", ".join((HOST, *names()))}')
        close = difflib.get_close_matches(name, (HOST, *names()), n=1, cutoff=0.4)
        self.nearest = close[0] if close else None


@dataclass(frozen=True)
class Recipe:
    """What `edgellm export` does for this device where nothing else is asked.

    bits: 4 | 8, or None for "as stored, else 8". kv: "full" or "POLICY:BUDGET". sparsity: "none" or
    "METHOD:N:M".
    """

    bits: int | None = None
    kv: str = "full"
    sparsity: str = "none"

    def kv_for(self, context: int) -> str:
        """`kv` with the budget cut to a model's context, in tokens."""
        policy, _, rest = self.kv.partition(":")
        budget, comma, settings = rest.partition(",")
        return f"{policy}:{min(int(budget), context)}{comma}{settings}" if budget else policy


@dataclass(frozen=True)
class Device:
    """One device. None: not known, or (GPU and software) not there.

    memory_bytes: what CPU and GPU share; on a PC with a graphics card the card's own. usable_share: the part of it a
    model can have beside the system. bandwidth_gb_s: peak of that memory, 10^9 bytes a second. cores: physical.
    boards: what /proc/device-tree/model or the DMI product name contains there. sources: figure -> public source.
    """

    name: str
    title: str
    memory_bytes: int | None
    usable_share: float
    bandwidth_gb_s: float | None
    cores: int
    instruction_set: str
    compute_capability: str | None = None
    jetpack: str | None = None
    tensorrt: str | None = None
    boards: tuple[str, ...] = ()
    recipe: Recipe = Recipe()
    sources: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 < self.usable_share <= 1:
            raise ValueError(f"{self.name}: usable_share is {self.usable_share}; expected a share above 0, at most 1")
        for name in ("memory_bytes", "bandwidth_gb_s", "cores"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{self.name}: {name} is {value}; expected a number above 0")

    @property
    def usable_bytes(self) -> int | None:
        """Bytes a model may take; None where the memory's size is not known."""
        return None if self.memory_bytes is None else int(self.memory_bytes * self.usable_share)

    def figures(self) -> dict[str, Any]:
        """The facts that a source stands behind, by name, without those that are None."""
        about = ("name", "title", "boards", "recipe", "sources")
        found = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in about}
        return {name: value for name, value in found.items() if value is not None}


def names() -> list[str]:
    """Every profile's name, sorted; the host has none."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load(name: str) -> Device:
    """The profile of a device by name. Raises UnknownDeviceError, and ValueError for a damaged file."""
    if name not in names():
        raise UnknownDeviceError(name)
    try:
        data = tomllib.loads((FOLDER / f"{name}.toml").read_text(encoding="utf-8"))
        recipe, boards = Recipe(**data.pop("recipe")), tuple(data.pop("boards", ()))
        return Device(name=name, boards=boards, recipe=recipe, **data)
    except (tomllib.TOMLDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{name}.toml is damaged: {error}") from None
