"""A bundle's standard-operator graph as a session over ONNX Runtime: what the tests of that graph compare."""

from __future__ import annotations

from pathlib import Path

from edgellm.export.checkpoint import open_checkpoint
from edgellm.export.engine import append_only_session, write_graph
from edgellm.export.packed_source import read_placed
from edgellm.runtime.manifest import read_manifest
from edgellm.runtime.session import Session


def standard_session(source: Path, bundle: Path, capacity: int = 128) -> Session:
    """Writes engine.onnx into the bundle and opens it; the source is where the architecture is read from."""
    placed = read_placed(bundle)
    write_graph(open_checkpoint(source).architecture, placed, bundle, capacity)
    return append_only_session(read_manifest(bundle), bundle, placed, capacity, 1)
