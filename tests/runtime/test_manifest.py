"""The manifest: what it accepts, and that any damage ends in a BundleError."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable
from copy import deepcopy
from functools import reduce
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgellm.runtime import bundle_files
from edgellm.runtime.errors import BundleError
from edgellm.runtime.manifest import checksum, dump, parse, read_manifest, seal
from edgellm.runtime.schema import Manifest
from tests.runtime.fakes import DATA, make_bundle

shared = settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return make_bundle(tmp_path / "bundle")


def rewrite(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Edit the manifest and seal it again, as a forger would."""
    import json

    data = json.loads((bundle / "edgellm.json").read_bytes())
    change(data)
    (bundle / "edgellm.json").write_bytes(dump(seal(data)))


@pytest.mark.parametrize("native", [True, False])
def test_the_hash_is_hashlibs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, native: bool) -> None:
    def missing(content: bytes) -> str:
        raise FileNotFoundError

    if not native:
        monkeypatch.setattr(bundle_files.library, "sha256", missing)
    monkeypatch.setattr(bundle_files, "LITTLE", 1000)
    for size in (0, 1, 55, 56, 63, 64, 65, 999, 1000, 5000):
        content = bytes(index % 251 for index in range(size))
        (tmp_path / "file").write_bytes(content)
        expected = hashlib.sha256(content).hexdigest()
        assert bundle_files.sha256(content) == expected
        assert bundle_files.file_facts(tmp_path / "file") == bundle_files.FileFacts(size, expected)


def test_reads_what_was_written(bundle: Path) -> None:
    manifest = read_manifest(bundle, verify=True)
    assert manifest.model.kv_heads == 2
    assert manifest.recipe.bits == 4
    assert manifest.recipe.head_bits == "as stored"
    assert manifest.quality is not None
    assert manifest.quality.perplexity == 21.5
    assert manifest.matrices[2].axis == "out"
    assert set(manifest.files) == {"model.onnx", "model.onnx.data", "tokenizer.json", "chat_template.jinja"}


def test_checksum_ignores_order_and_itself() -> None:
    assert (
        checksum({"a": 1, "b": 2}) == checksum({"b": 2, "a": 1, "checksum": "x"}) == seal({"b": 2, "a": 1})["checksum"]
    )
    with pytest.raises(ValueError, match="JSON compliant"):
        seal({"a": float("nan")})


@shared
@given(st.data())
def test_any_flipped_byte_is_a_bundle_error(bundle: Path, data: st.DataObject) -> None:
    path = bundle / "edgellm.json"
    good = path.read_bytes()
    bad = bytearray(good)
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(good) - 1))
        bad[place] ^= data.draw(st.integers(1, 255))
    if bytes(bad) == good:
        return
    try:
        path.write_bytes(bytes(bad))
        with pytest.raises(BundleError):
            read_manifest(bundle)
    finally:
        path.write_bytes(good)


@shared
@given(st.data())
def test_truncation_and_insertion_are_bundle_errors(bundle: Path, data: st.DataObject) -> None:
    path = bundle / "edgellm.json"
    good = path.read_bytes()
    place = data.draw(st.integers(0, len(good) - 1))
    bad = good[:place] + data.draw(st.sampled_from([b"", b" " + good[place:], b"[" * 100000, b"9" * 5000]))
    try:
        path.write_bytes(bad)
        with pytest.raises(BundleError):
            read_manifest(bundle)
    finally:
        path.write_bytes(good)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(found for key, item in inner for found in places(item, (*path, key)))]


PLACES = [place for place in places({**DATA, "files": {"model.onnx": {"bytes": 1, "sha256": "0"}}}) if place]
VALUES = [None, True, -1, 0, 10**30, 2**63, 1.5, -0.0, "", "x", "\0", "../x", "\ud800", [], {}, [[]], {"a": None}]


@shared
@given(st.sampled_from(PLACES), st.sampled_from(VALUES))
def test_forged_values_are_read_or_refused(place: tuple[Any, ...], value: Any) -> None:
    """Even with a right checksum a wrong type never gets past parsing."""
    data = deepcopy({**DATA, "files": {"model.onnx": {"bytes": 1, "sha256": "0"}}})
    reduce(lambda at, key: at[key], place[:-1], data)[place[-1]] = value
    with contextlib.suppress(BundleError):
        assert isinstance(parse(data), Manifest)


@pytest.mark.parametrize("place", [p for p in PLACES if len(p) < 3 and not isinstance(p[-1], int)])
def test_a_missing_key_is_named(place: tuple[Any, ...]) -> None:
    data = deepcopy({**DATA, "files": {"model.onnx": {"bytes": 1, "sha256": "0"}}})
    if place == ("files", "model.onnx"):
        return
    del reduce(lambda at, key: at[key], place[:-1], data)[place[-1]]
    with pytest.raises(BundleError, match="is missing") as caught:
        parse(data)
    assert ".".join(map(str, place)) in caught.value.what


@pytest.mark.parametrize("what", ["schema", "operators"])
def test_other_versions_say_both(bundle: Path, what: str) -> None:
    rewrite(bundle, lambda data: data.update({what: 7}))
    with pytest.raises(BundleError, match=f"{what} version 7; this edgellm reads version {DATA[what]}") as caught:
        read_manifest(bundle)
    assert "pip install -U edgellm" in caught.value.hint
    rewrite(bundle, lambda data: data.update({what: 0}))
    with pytest.raises(BundleError) as caught:
        read_manifest(bundle)
    assert "edgellm export" in caught.value.hint


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json", "chat_template.jinja"])
def test_damage_to_files_is_found_at_load(bundle: Path, name: str) -> None:
    path = bundle / name
    good = path.read_bytes()
    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(BundleError, match=f"{name} is damaged or was edited"):
        read_manifest(bundle)
    path.write_bytes(good[:-1])
    with pytest.raises(BundleError, match=f"{name} is truncated"):
        read_manifest(bundle)
    path.unlink()
    with pytest.raises(BundleError, match=f"{name} is missing"):
        read_manifest(bundle)


def test_damage_to_weights_is_found_when_verified(bundle: Path) -> None:
    path = bundle / "model.onnx.data"
    good = path.read_bytes()
    path.write_bytes(good[:-1] + b"!")
    read_manifest(bundle)
    with pytest.raises(BundleError, match=r"model\.onnx\.data is damaged"):
        read_manifest(bundle, verify=True)
    path.write_bytes(good + b"!")
    with pytest.raises(BundleError, match=r"257 bytes, edgellm\.json says 256"):
        read_manifest(bundle)


def test_required_files_must_be_listed(bundle: Path) -> None:
    rewrite(bundle, lambda data: data["files"].pop("tokenizer.json"))
    with pytest.raises(BundleError, match=r"does not list tokenizer\.json"):
        read_manifest(bundle)


def test_paths_that_are_no_bundle(bundle: Path, tmp_path: Path) -> None:
    cases = {
        "does not exist": tmp_path / "nowhere",
        "edgellm.json is missing": tmp_path,
        "unfinished export": bundle.rename(tmp_path / "b.partial"),
        "is a file": tmp_path / "b.partial" / "model.onnx",
    }
    for match, path in cases.items():
        with pytest.raises(BundleError, match=match) as caught:
            read_manifest(path)
        assert "edgellm export" in caught.value.hint
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(BundleError) as caught:
        read_manifest(tmp_path)
    assert "looks like a checkpoint" in caught.value.hint


def test_manifest_that_is_a_folder_or_unreadable(bundle: Path) -> None:
    (bundle / "edgellm.json").unlink()
    (bundle / "edgellm.json").mkdir()
    with pytest.raises(BundleError):
        read_manifest(bundle)
