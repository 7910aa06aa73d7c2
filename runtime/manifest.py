"""The bundle's manifest, edgellm.json: how it is sealed, and the checks that run before anything is loaded.

The file must be byte for byte what `dump` writes, so that any flipped or missing byte is found, even in white space.
To write one: (folder / "edgellm.json").write_bytes(dump(seal(data))). The fields are in edgellm.runtime.schema.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from edgellm.kernels.library import OPERATORS
from edgellm.runtime.bundle_files import AGAIN, NAME, FileFacts, check_files, file_facts, read_manifest_bytes, sha256
from edgellm.runtime.errors import BundleError
from edgellm.runtime.schema import Manifest
from edgellm.runtime.typed_json import decode

__all__ = ["SCHEMA", "FileFacts", "Manifest", "checksum", "dump", "file_facts", "parse", "read_manifest"]
__all__ += ["NAME", "seal"]

SCHEMA = 1  # of edgellm.json


def checksum(data: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of the canonical JSON of everything but "checksum". Raises ValueError for NaN and infinity."""
    rest = {key: value for key, value in data.items() if key != "checksum"}
    canonical = json.dumps(rest, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return sha256(canonical.encode("ascii"))


def seal(data: Mapping[str, Any]) -> dict[str, Any]:
    """The same object with its checksum, as the last key."""
    rest = {key: value for key, value in data.items() if key != "checksum"}
    return {**rest, "checksum": checksum(rest)}


def dump(data: Mapping[str, Any]) -> bytes:
    """The only bytes `read_manifest` accepts for a sealed object."""
    return json.dumps(data, indent=1, ensure_ascii=True, allow_nan=False).encode("ascii") + b"\n"


def parse(data: object) -> Manifest:
    """Check an object (sealed or not) against the schema. Raises BundleError naming the field."""
    try:
        return decode(Manifest, data, "")
    except ValueError as error:
        raise BundleError(f"{NAME}: {error}", AGAIN) from None


def read_manifest(folder: Path, verify: bool = False, without: Collection[str] = ()) -> Manifest:
    """Read and check a bundle's manifest and the files it lists, but those named in `without`.

    Always: the manifest's own bytes, schema and operator versions, every file's presence and size, and the SHA-256 of
    files under 64 MiB other than model.onnx.data; with `verify` the SHA-256 of every file. Raises BundleError.
    """
    manifest = parse(read_manifest_object(folder))
    check_files(folder, {name: facts for name, facts in manifest.files.items() if name not in without}, verify)
    return manifest


def read_manifest_object(folder: Path) -> dict[str, Any]:
    """The manifest as JSON has it, its bytes and versions checked but not its fields. Raises BundleError."""
    return _loads(read_manifest_bytes(folder))


def _loads(raw: bytes) -> dict[str, Any]:
    """Decode the manifest's bytes; versions are compared first, since another version may be checked by other rules."""
    try:
        data = json.loads(raw.decode("ascii"))
        if isinstance(data, dict):
            _check_version(data, "schema", SCHEMA)
            _check_version(data, "operators", OPERATORS)
            if raw == dump(data) and data.get("checksum") == checksum(data):
                return data
    except (ValueError, RecursionError):
        pass
    raise BundleError(f"{NAME} is damaged or was edited: its checksum does not match its contents", AGAIN)


def _check_version(data: Mapping[str, Any], what: str, ours: int) -> None:
    theirs = data.get(what)
    if isinstance(theirs, int) and not isinstance(theirs, bool) and theirs != ours:
        hint = "Upgrade this edgellm: pip install -U edgellm" if theirs > ours else AGAIN
        raise BundleError(f"{NAME} has {what} version {theirs}; this edgellm reads version {ours}", hint)
