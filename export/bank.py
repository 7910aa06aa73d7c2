"""Every unit at every level, compressed once and kept on the disk in half precision: what the search assembles."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from edgellm.export import tensor_file
from edgellm.export.allocate import Choice
from edgellm.export.architectures import Architecture, role
from edgellm.export.calibrate import statistics
from edgellm.export.checkpoint import Checkpoint
from edgellm.export.compress import Read, rounded
from edgellm.export.config import ExportConfig
from edgellm.export.decoder import final_norm, load_block, propagate
from edgellm.export.hessian import Hessians
from edgellm.export.level import Level
from edgellm.export.prune import SWEPT
from edgellm.export.units import NODES, Unit, nbytes, offered, units
from edgellm.export.vocabulary import embed, head_name, slabs
from edgellm.kernels.layout import dequantize

DENSE = -1  # the index, in a choice, of a unit that is as the checkpoint has it


@dataclass(frozen=True)
class Kept:
    """A level that no other beats in bytes and error: where it lies in the unit's file, the bytes it would take in a
    bundle, and ||(W - Q) X||^2 / ||W X||^2 over what the unit reads."""

    level: Level
    index: int
    nbytes: int
    error: float


class Bank:
    """Units in the order of a forward pass, and for each its levels in rising bytes and falling error."""

    def __init__(self, config: ExportConfig, checkpoint: Checkpoint, folder: Path) -> None:
        self.arch: Architecture = checkpoint.architecture
        self.units = units(self.arch)
        self.kept: list[list[Kept]] = []
        self._config = config
        self._checkpoint = checkpoint
        self._folder = folder
        self._open: dict[str, dict[str, Tensor]] = {}
        self._page = config.fit.page if config.fit else 1
        self._method = SWEPT if config.recover != "none" else "wanda"

    @torch.no_grad()
    def fill(self, ids: Tensor, progress: Callable[[int, int], None] = lambda done, total: None) -> None:
        """Compress what is not there yet, by what the dense model reads of the text int64 [N, T], a block at a time."""
        self._folder.mkdir(exist_ok=True)
        if not all(self._file(unit).exists() for unit in self.units):
            self._run(ids, progress)
        self.kept = [self._read(unit) for unit in self.units]
        progress(self.arch.layers + 1, self.arch.layers + 1)

    def _run(self, ids: Tensor, progress: Callable[[int, int], None]) -> None:
        arch, by_name = self.arch, {unit.name: unit for unit in self.units}
        x = embed(arch, self._checkpoint, ids)
        for layer in range(arch.layers):
            progress(layer, arch.layers + 1)
            block = load_block(arch, self._checkpoint, layer)
            mine = [by_name[f"layers.{layer}.{node}"] for node in NODES]
            if not all(self._file(unit).exists() for unit in mine):
                hessians = Hessians()
                read = Read(statistics(arch, layer, block, x, hessians.add), hessians)
                for unit in mine:
                    self._compress(unit, read)
            propagate(arch, layer, block, x)
        progress(arch.layers, arch.layers + 1)
        hessians = Hessians()
        for states in x:
            hessians.add(head_name(arch), final_norm(arch, self._checkpoint, states))
        for name in {"embedding", head_name(arch)}:
            if not self._file(by_name[name]).exists():
                self._compress(by_name[name], Read({}, hessians) if name == head_name(arch) else None)

    def source(self, choice: Choice) -> Assembled:
        """The model with these levels; DENSE where a unit keeps its weights."""
        return Assembled(self, {unit.name: index for unit, index in zip(self.units, choice, strict=True)})

    def levels(self, choice: Choice) -> dict[str, Level]:
        """By canonical name of a matrix."""
        pairs = zip(self.units, self.kept, choice, strict=True)
        return {name: row[index].level for unit, row, index in pairs for name in unit.members}

    def tensor(self, unit: str, index: int, member: str) -> Tensor:
        """float16 [out, in] of a member at a level of the unit, mapped."""
        if unit not in self._open:
            self._open[unit] = load_file(self._folder / f"{unit}.safetensors")
        at = self._place[unit]
        return self._open[unit][f"{'dense' if index == DENSE else self.kept[at][index].index} {member}"]

    def vector(self, name: str) -> Tensor:
        """The checkpoint's."""
        return self._checkpoint.vector(name)

    @property
    def _place(self) -> dict[str, int]:
        return {unit.name: place for place, unit in enumerate(self.units)}

    def _file(self, unit: Unit) -> Path:
        return self._folder / f"{unit.name}.safetensors"

    def _compress(self, unit: Unit, read: Read | None) -> None:
        """All levels of one unit into its file, without those that another beats in bytes and error."""
        levels = offered(self.arch, unit, self._method)
        weights = {name: self._checkpoint.matrix(name) for name in unit.members}
        hessians = None if read is None else read.hessians
        whole = sum(_squares(weight, name, hessians) for name, weight in weights.items())
        found: list[tuple[Kept, dict[str, Tensor]]] = []
        for index, level in sorted(enumerate(levels), key=lambda entry: entry[1].group):  # factors are shared so
            values, off = {}, 0.0
            for name, weight in weights.items():
                values[name] = self._at(level, name, weight, read)
                off += _squares(weight - values[name], name, hessians)
            found.append(
                (Kept(level, index, nbytes(self.arch, unit, level, self._page), off / max(whole, 1e-30)), values)
            )
        best = unbeaten([kept for kept, _ in found])
        tensors = {f"dense {name}": weight.half() for name, weight in weights.items()}
        for kept, values in found:
            if kept in best:
                tensors |= {f"{kept.index} {name}": value.half() for name, value in values.items()}
        facts = {str(kept.level): json.dumps([kept.index, kept.nbytes, kept.error]) for kept in best}
        tensor_file.write(self._file(unit), tensors, facts)

    def _at(self, level: Level, name: str, weight: Tensor, read: Read | None) -> Tensor:
        config = replace(self._config, levels={name: level})
        parts = slabs(self.arch) if role(name) in ("embedding", "head") else [slice(None)]
        return torch.cat([torch.from_numpy(dequantize(rounded(config, name, weight[rows], read))) for rows in parts])

    def _read(self, unit: Unit) -> list[Kept]:
        levels = {str(level): level for level in offered(self.arch, unit, self._method)}
        with safe_open(self._file(unit), "pt") as file:
            facts: Mapping[str, str] = file.metadata()
        rows = [Kept(levels[name], *json.loads(numbers)) for name, numbers in facts.items() if name in levels]
        return sorted(rows, key=lambda kept: kept.nbytes)


class Assembled:
    """A Source of the bank's weights, one level a unit."""

    def __init__(self, bank: Bank, chosen: Mapping[str, int]) -> None:
        self._bank = bank
        self._chosen = chosen
        self._unit = {name: unit.name for unit in bank.units for name in unit.members}

    def matrix(self, name: str, rows: slice | None = None) -> Tensor:
        """float32 [out, in], or these rows of it."""
        unit = self._unit[name]
        whole = self._bank.tensor(unit, self._chosen[unit], name)
        return (whole if rows is None else whole[rows]).float()

    def vector(self, name: str) -> Tensor:
        """float32 [length]."""
        return self._bank.vector(name)


def unbeaten(found: Sequence[Kept]) -> list[Kept]:
    """Those that no other has at most the bytes and less error of, nor less bytes and the same error."""
    best: list[Kept] = []
    for kept in sorted(found, key=lambda entry: (entry.nbytes, entry.error)):
        if not best or kept.error < best[-1].error:
            best.append(kept)
    return best


def _squares(weight: Tensor, name: str, hessians: Hessians | None) -> float:
    """||W X||^2; without X, ||W||^2."""
    return float(weight.square().sum()) if hessians is None else hessians.energy(role(name), weight)
