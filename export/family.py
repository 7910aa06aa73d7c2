"""The table of decoder families: families/*.toml, a file a model_type, holding everything that differs as data."""

from __future__ import annotations

import difflib
import functools
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgellm.export.architectures import Architecture, role
from edgellm.runtime.errors import CheckpointError

_FOLDER = Path(__file__).parent / "families"


@dataclass(frozen=True)
class Family:
    """One file of the table. hf, gguf: role -> tensor name with {i} for the layer, "[q,k,v]" behind a name where one
    tensor holds several matrices. hf_keys, gguf_keys: Architecture field -> config key (GGUF's without the prefix).

    The switches: docs/architectures.md. Fields have the file's names.
    """

    name: str
    model_types: tuple[str, ...]
    gguf_type: str
    hf: Mapping[str, str]
    gguf: Mapping[str, str]
    hf_keys: Mapping[str, str]
    gguf_keys: Mapping[str, str]
    switches: Mapping[str, Any] = field(default_factory=dict)

    def switch(self, name: str, default: Any = None) -> Any:
        """A switch's value, or the default where the file is silent."""
        return self.switches.get(name, default)


@dataclass(frozen=True)
class Location:
    """Where a canonical tensor lies in a file: rows [first, first + rows) of `tensor`, all of it when rows is None."""

    tensor: str
    first: int = 0
    rows: int | None = None


@functools.cache
def families() -> dict[str, Family]:
    """The whole table by file name, bases merged in."""
    raw = {path.stem: tomllib.loads(path.read_text(encoding="utf-8")) for path in sorted(_FOLDER.glob("*.toml"))}
    return {name: _build(name, raw) for name in raw}


def _build(name: str, raw: Mapping[str, dict[str, Any]]) -> Family:
    chain = [raw[name]]
    while "base" in chain[0]:
        chain.insert(0, raw[chain[0]["base"]])
    tables = {
        key: {k: v for part in chain for k, v in part.get(key, {}).items()}
        for key in ("hf", "gguf", "hf_keys", "gguf_keys", "switches")
    }
    return Family(name, tuple(raw[name]["model_types"]), raw[name].get("gguf_type", ""), **tables)


def supported() -> list[str]:
    """Every model_type of config.json in the table."""
    return sorted(kind for one in families().values() for kind in one.model_types)


def family(model_type: str) -> Family:
    """The family of config.json's model_type. Raises CheckpointError listing what is supported and the nearest."""
    for one in families().values():
        if model_type in one.model_types:
            return one
    raise unsupported(model_type, supported())


def gguf_family(architecture: str) -> Family:
    """The family of a GGUF file's general.architecture. Raises CheckpointError as `family` does."""
    for one in families().values():
        if architecture and architecture == one.gguf_type:  # a family without a GGUF name has ""
            return one
    raise unsupported(architecture, sorted(one.gguf_type for one in families().values() if one.gguf_type))


def locate(names: Mapping[str, str], name: str, arch: Architecture) -> Location:
    """A canonical name in a file's spelling (a Family's hf or gguf), with its rows where several share a tensor."""
    parts = name.split(".")
    spelled = names[parts[-1]].replace("{i}", parts[1]) if len(parts) == 3 else names[name]
    tensor, bracket, shared = spelled.rstrip("]").partition("[")
    if not bracket:
        return Location(tensor)
    members = shared.split(",")
    sizes = [arch.shape(member)[0] for member in members]
    place = members.index(role(name))
    return Location(tensor, sum(sizes[:place]), sizes[place])


def expected(names: Mapping[str, str], arch: Architecture) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor a file must hold, [out, in] or [length], by the file's own name."""
    found: dict[str, tuple[int, ...]] = {}
    for name, (rows, columns) in arch.tensors():
        at = locate(names, name, arch)
        total = rows + (found[at.tensor][0] if at.rows is not None and at.tensor in found else 0)
        found[at.tensor] = (total, columns) if columns else (total,)
    return found


def unsupported(model_type: str, known: list[str], why: str = "", otherwise: str = "") -> CheckpointError:
    """The error for an architecture outside the table: what is known, why nothing else helped, what would."""
    nearest = difflib.get_close_matches(model_type, known, n=1, cutoff=0.4)
    hints = [f'The nearest is "{nearest[0]}".' if nearest else "", f"{otherwise}." if otherwise else ""]
    hints.append(
        "Convert a model of a supported architecture, or add a file to export/families (docs/architectures.md)."
    )
    return CheckpointError(
        f'architecture "{model_type}" is not supported{f" ({why})" if why else ""}; supported: {", ".join(known)}',
        " ".join(hint for hint in hints if hint),
    )
