"""What the manifest says of a bundle's engine: read before one is built, and written once it is."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from edgellm.runtime.bundle_files import ENGINE, ENGINE_GRAPH, NAME, file_facts
from edgellm.runtime.errors import UsageError
from edgellm.runtime.manifest import dump, read_manifest, read_manifest_object, seal
from edgellm.runtime.schema import BuiltEngine, EngineFacts


def engine_facts(folder: Path, kind: str | None = None) -> EngineFacts:
    """The manifest's, for TensorRT `kind` if given. Raises BundleError as read_manifest does, UsageError for a bundle
    that was exported without --engine."""
    engine = read_manifest(folder, without=(ENGINE,)).engine
    if engine is None:
        raise UsageError(
            f"{folder} has no {ENGINE_GRAPH} to build an engine from", "Export it again with --engine tensorrt."
        )
    return engine if kind is None else replace(engine, kind=kind)


def stamp(folder: Path, engine: EngineFacts, built: BuiltEngine) -> EngineFacts:
    """Write into the manifest that model.engine is what `built` says; returns what it says now. Raises OSError."""
    now = replace(engine, built=built)
    data = read_manifest_object(folder)
    files = {**data["files"], ENGINE: vars(file_facts(folder / ENGINE))}
    _write(folder, {**data, "engine": asdict(now), "files": files})
    return now


def _write(folder: Path, data: Mapping[str, Any]) -> None:
    fresh = folder / f"{NAME}.partial"
    fresh.write_bytes(dump(seal(data)))
    os.replace(fresh, folder / NAME)
