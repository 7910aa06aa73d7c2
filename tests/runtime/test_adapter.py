"""Adapter files: what comes back, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgellm.runtime.adapter import Adapter, Facts, load_adapter, nearest, save_adapter, stored_adapters
from edgellm.runtime.errors import AdapterError
from edgellm.runtime.schema import Manifest
from tests.runtime.fakes import make_session


@pytest.fixture
def manifest() -> Manifest:
    return make_session()[0].manifest


@pytest.fixture
def adapter(manifest: Manifest) -> Adapter:
    rng = np.random.default_rng(0)
    tensors = {name: rng.normal(size=(2, 2, 5, 16)).astype(np.float32) for name in ("key", "value")}
    return Adapter(Facts("prefix", manifest.weights_sha256, [1, 2, 3, 4, 5], {"mode": "cohort"}), tensors)


def damaged(raw: bytes) -> bytes:
    return raw[:-3] + bytes([raw[-3] ^ 1]) + raw[-2:]


def test_a_file_comes_back(adapter: Adapter, manifest: Manifest, tmp_path: Path) -> None:
    save_adapter(tmp_path / "one.adapter", adapter)
    read = load_adapter(tmp_path / "one.adapter", manifest)
    assert read.facts == adapter.facts
    for name, tensor in adapter.tensors.items():
        np.testing.assert_array_equal(read.tensors[name], tensor)
    assert [path.name for path in tmp_path.iterdir()] == ["one.adapter"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (damaged, "is damaged or was edited"),
        (lambda raw: raw[: len(raw) // 2], "cannot be read as an adapter"),
        (lambda raw: b"", "cannot be read as an adapter"),
        (lambda raw: raw.replace(b"edgellm adapter", b"edgellm adopter"), "is no adapter"),
    ],
)
def test_a_spoilt_file_is_refused(
    adapter: Adapter, manifest: Manifest, tmp_path: Path, change: Callable[[bytes], bytes], told: str
) -> None:
    path = tmp_path / "one.adapter"
    save_adapter(path, adapter)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(AdapterError, match=told):
        load_adapter(path, manifest)


def test_a_missing_file_is_told(manifest: Manifest, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="there is no such file"):
        load_adapter(tmp_path / "none", manifest)


@pytest.mark.parametrize("kind", ["model", "layers", "nan", "token", "carrier", "nothing"])
def test_an_adapter_of_another_bundle_is_refused(adapter: Adapter, tmp_path: Path, kind: str) -> None:
    facts, tensors = adapter.facts, adapter.tensors
    changed = {
        "model": Adapter(replace(facts, model="0" * 64), tensors),
        "layers": Adapter(facts, {**tensors, "key": tensors["key"][:1]}),
        "nan": Adapter(facts, {**tensors, "key": tensors["key"] * np.float32(np.nan)}),
        "token": Adapter(replace(facts, tokens=[1, 2, 3, 4, 10**6]), tensors),
        "carrier": Adapter(replace(facts, carrier="lora"), tensors),
        "nothing": Adapter(replace(facts, tokens=[]), {name: t[:, :, :0] for name, t in tensors.items()}),
    }[kind]
    session, _ = make_session()
    save_adapter(tmp_path / "x.adapter", changed)
    with pytest.raises(AdapterError, match=r"x\.adapter: the adapter (was made with another model|does not fit)"):
        load_adapter(tmp_path / "x.adapter", session.manifest)
    with pytest.raises(AdapterError):
        session.use(changed)
    assert session.adapter is None


def test_of_a_folder_the_nearest_is_chosen(adapter: Adapter, manifest: Manifest, tmp_path: Path) -> None:
    axes = np.eye(manifest.model.hidden)
    for i, name in enumerate(("farm", "clinic")):
        about = replace(adapter.facts, about=axes[i].tolist())
        save_adapter(tmp_path / f"{name}.adapter", replace(adapter, facts=about))
    save_adapter(tmp_path / "alien.adapter", replace(adapter, facts=replace(adapter.facts, model="0" * 64)))
    found = dict(stored_adapters(tmp_path, manifest))
    assert [path.stem for path in found] == ["clinic", "farm"]
    chosen = nearest(found, (axes[1] + 0.1 * axes[5]).astype(np.float32))
    assert chosen is not None
    assert chosen.stem == "clinic"
    assert nearest(found, axes[7].astype(np.float32)) is None
