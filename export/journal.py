"""What a killed export finished, so that the next one goes on from there: tensors placed, and texts."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from edgellm.export import tensor_file
from edgellm.export.config import ExportConfig
from edgellm.export.nodes import DATA, Placed
from edgellm.kernels.layout import Format

VERSION = 5  # of what an export computes: raise it when the same settings give other bytes
RECORD, TEXTS = "journal.json", "texts.safetensors"
_READ = 1 << 22


def fingerprint(config: ExportConfig) -> str:
    """SHA-256 (hex) of all that the packed weights depend on: source and calibration files, recipe, torch's version.

    Reads the source once, a gigabyte a second or so.
    """
    recipe = {"sparsity": str(config.sparsity), "scope": config.scope, "bits": config.bits, "seed": config.seed}
    recipe |= {"head_bits": config.head_bits, "recover": config.recover, "version": VERSION, "torch": torch.__version__}
    recipe |= {"kv_bits": config.kv_bits, "group": config.group, "symmetric": config.symmetric}
    recipe |= {"references": config.compares, "fit": str(config.fit), "fit_minutes": str(config.fit_minutes)}
    if config.distills:
        recipe |= {"distill": ",".join(config.distill), "minutes": str(config.recover_minutes)}
    digest = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode())
    files = [config.source] if config.source.is_file() else sorted(config.source.glob("*.*"))
    for file in [*files, *([config.calibration] if config.calibration else [])]:
        if file.is_file():
            digest.update(f"\n{file.name} {file.stat().st_size}\n".encode())
            with file.open("rb") as content:
                while piece := content.read(_READ):
                    digest.update(piece)
    return digest.hexdigest()


class Journal:
    """The record in a work folder. placed: tensors by canonical name; texts: token ids int64 by name.

    A record that is missing, damaged, of another key, or that names bytes the data file does not have is none.
    """

    def __init__(self, work: Path, key: str) -> None:
        self._work = work
        self._key = key
        self.placed: dict[str, Placed] = {}
        self.texts: dict[str, Tensor] = {}
        try:
            record = json.loads((work / RECORD).read_text(encoding="utf-8"))
            if record["key"] != key:
                return
            placed = {name: _placed(entry) for name, entry in record["placed"].items()}
            end = max((at.offset + at.nbytes for at in placed.values()), default=0)
            if end and (work / "bundle.partial" / DATA).stat().st_size < end:
                return
            self.texts = load_file(work / TEXTS)
            self.placed = placed
        except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError):
            return

    def keep_texts(self, **texts: Tensor) -> None:
        """Write token ids for the next export, and the record."""
        self.texts = {name: ids.contiguous() for name, ids in texts.items()}
        tensor_file.write(self._work / TEXTS, self.texts)
        self.save()

    def save(self) -> None:
        """Write the record in one step: a kill leaves this one or the one before."""
        record = {"key": self._key, "placed": {name: asdict(at) for name, at in self.placed.items()}}
        fresh = self._work / f"{RECORD}.new"
        with fresh.open("w", encoding="utf-8") as file:
            json.dump(record, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(fresh, self._work / RECORD)


def _placed(entry: dict[str, object]) -> Placed:
    form = entry["format"]
    shape = tuple(int(size) for size in entry["shape"])  # type: ignore[attr-defined]
    whole = None if form is None else Format(**form)  # type: ignore[arg-type]
    return Placed(int(entry["offset"]), int(entry["nbytes"]), shape, whole)  # type: ignore[call-overload]
