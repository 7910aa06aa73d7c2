"""The files of a bundle on disk: present, whole, and the ones that were exported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edgellm.kernels import library
from edgellm.runtime.errors import BundleError

NAME = "edgellm.json"
GRAPH = "model.onnx"
WEIGHTS = "model.onnx.data"
TOKENIZER = "tokenizer.json"
TABLES = "tokenizer.tables"  # the same in tables, for the kinds they can describe
ADAPT, SOFT, LORA, HEAD = "adapt.onnx", "soft.onnx", "lora.onnx", "head.onnx"  # of bundles exported with --adapt
LORA_GRAPH = "model-lora.onnx"  # of these too: GRAPH with LoRA's updates as inputs
CHAT_TEMPLATE = "chat_template.jinja"
ENGINE_GRAPH = "engine.onnx"  # what a TensorRT engine is built from
ENGINE_WEIGHTS = "engine.onnx.data"
ENGINE = "model.engine"
REPORT = "report.html"
REQUIRED = (GRAPH, WEIGHTS, TOKENIZER)
LARGEST_MANIFEST = 1 << 26  # bytes; the real ones are under 100 kB
LITTLE = 1 << 22  # bytes
HASHED_ALWAYS = 1 << 26  # files below this size are hashed at every load (64 MiB take about 50 ms)
AGAIN = "Export it again: edgellm export SOURCE OUT"
ADAPT_AGAIN = "Export it again with --adapt."


@dataclass(frozen=True)
class FileFacts:
    """A file's size in bytes and its SHA-256 in hex."""

    bytes: int
    sha256: str


def sha256(content: bytes) -> str:
    """SHA-256 in hex, of little; file_facts is for much."""
    try:
        return library.sha256(content)
    except OSError:  # a wheel without the native library
        import hashlib

        return hashlib.sha256(content).hexdigest()


def file_facts(path: Path) -> FileFacts:
    """Size and SHA-256 of a file, a large one read in pieces of 1 MiB. Raises OSError."""
    if path.stat().st_size < LITTLE:
        content = path.read_bytes()
        return FileFacts(len(content), sha256(content))
    import hashlib  # late: OpenSSL is 4 MB, and small models have no larger file that is hashed at every load

    digest, size = hashlib.sha256(), 0
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
            size += len(piece)
    return FileFacts(size, digest.hexdigest())


def read_manifest_bytes(folder: Path) -> bytes:
    """The manifest's bytes. Raises BundleError for a path that is no finished bundle, saying what it looks like."""
    if not folder.exists():
        hint = f"Check the path, or make one: edgellm export SOURCE {folder}"
        raise BundleError(f"no bundle at {folder}: the folder does not exist", hint)
    if not folder.is_dir():
        raise BundleError(f"{folder} is a file; a bundle is a folder", f"Export it first: edgellm export {folder} OUT")
    if folder.resolve().name.endswith(".partial"):
        raise BundleError(f"{folder} is an unfinished export", f"Delete it. {AGAIN}")
    path = folder / NAME
    if not path.is_file():
        checkpoint = (folder / "config.json").exists()
        hint = f"It looks like a checkpoint; export it first: edgellm export {folder} OUT" if checkpoint else AGAIN
        raise BundleError(f"{folder} is not a bundle: {NAME} is missing", hint)
    try:
        size = path.stat().st_size
        if size > LARGEST_MANIFEST:
            raise BundleError(f"{NAME} is damaged: {size} bytes is larger than any manifest", AGAIN)
        return path.read_bytes()
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror or error}", "Check its permissions.") from None


def check_files(folder: Path, files: Mapping[str, FileFacts], verify: bool) -> None:
    """Compare the files with the manifest. Raises BundleError naming the first wrong file."""
    for name in REQUIRED:
        if name not in files:
            raise BundleError(f"{NAME} does not list {name}, which every bundle has", AGAIN)
    for name, facts in files.items():
        try:
            _check_file(folder / name, name, facts, verify)
        except OSError as error:
            raise BundleError(f"{name} cannot be read: {error.strerror or error}", "Check its permissions.") from None


def _check_file(path: Path, name: str, facts: FileFacts, verify: bool) -> None:
    if not path.is_file():
        raise BundleError(f"{name} is missing from {path.parent}", f"Copy the bundle again. {AGAIN}")
    size = path.stat().st_size
    if size != facts.bytes:
        kind = "truncated" if size < facts.bytes else "damaged"
        raise BundleError(f"{name} is {kind}: {size} bytes, {NAME} says {facts.bytes}", AGAIN)
    # The weights are mapped and read on demand: hashing them at every load would read the whole model.
    if (verify or (name != WEIGHTS and size < HASHED_ALWAYS)) and file_facts(path).sha256 != facts.sha256:
        raise BundleError(f"{name} is damaged or was edited: its SHA-256 is not the one in {NAME}", AGAIN)
