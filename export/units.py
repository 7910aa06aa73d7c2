"""What the search chooses a level for: matrices that one node of the graph holds, as they must share a format."""

from __future__ import annotations

from dataclasses import dataclass, replace

from edgellm.export.architectures import Architecture
from edgellm.export.level import Level, Sparsity
from edgellm.export.plan import QKV
from edgellm.kernels.layout import Format

NODES = {"qkv": QKV, "o": ("o",), "gate_up": ("gate", "up"), "down": ("down",)}  # of a layer, in the order of reading
DENSE = (Level(8), Level(4, group=32), Level(4), Level(4, zero="symmetric"))  # 8.25, 5, 4.5, 4.25 bits a weight
KEPT = ((4, 8), (2, 4))  # both 5.25 bits a weight at 8 bits and 3.25 at 4


@dataclass(frozen=True)
class Unit:
    """name: of the packed tensor; members: canonical names of its matrices."""

    name: str
    members: tuple[str, ...]


def units(arch: Architecture) -> list[Unit]:
    """All of a model, in the order of a forward pass: embedding, NODES of each layer, and an untied head."""
    found = [Unit("embedding", ("embedding",))]
    for layer in range(arch.layers):
        at = f"layers.{layer}"
        found += [Unit(f"{at}.{node}", tuple(f"{at}.{part}" for part in parts)) for node, parts in NODES.items()]
    return found if arch.tied else [*found, Unit("head", ("head",))]


def offered(arch: Architecture, unit: Unit, method: str) -> list[Level]:
    """The levels whose format every member can have; embedding and head are not pruned. method: of the masks."""
    sparse = [Level(bits, Sparsity(method, n, m)) for bits in (8, 4) for n, m in KEPT]
    levels = DENSE if unit.name in ("embedding", "head") else (*DENSE, *sparse)
    return [level for level in levels if _formats(arch, unit, level)]


def nbytes(arch: Architecture, unit: Unit, level: Level, page: int = 1) -> int:
    """What the unit takes in the data file, in whole pages of so many bytes."""
    formats = _formats(arch, unit, level)
    whole = replace(formats[0], n_out=sum(form.n_out for form in formats))
    return -(-whole.nbytes // page) * page


def _formats(arch: Architecture, unit: Unit, level: Level) -> list[Format]:
    try:
        return [level.format(name, arch.shape(name)) for name in unit.members]
    except ValueError:
        return []
