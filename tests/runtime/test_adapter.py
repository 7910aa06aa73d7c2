"""Adapter files: what comes back, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgellm.runtime.adapter import Adapter, Facts, load_adapter, nearest, save_adapter, stored_adapters
from edgellm.runtime.append_only import AppendOnly
from edgellm.runtime.bundle_files import LORA_GRAPH
from edgellm.runtime.errors import AdapterError, UsageError
from edgellm.runtime.low_rank import first_updates, graph_inputs
from edgellm.runtime.plugin_backend import PluginBackend
from edgellm.runtime.schema import Manifest
from edgellm.runtime.standard_backend import StandardBackend
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


@pytest.fixture
def lora(manifest: Manifest) -> Adapter:
    return Adapter(Facts("lora", manifest.weights_sha256, []), first_updates(manifest.model))


def test_loras_shapes_are_the_models(lora: Adapter, manifest: Manifest) -> None:
    with_graph = replace(manifest, files={**manifest.files, LORA_GRAPH: manifest.files["model.onnx"]})
    lora.check(with_graph)
    for changed in (
        replace(lora, facts=replace(lora.facts, tokens=[1])),
        replace(lora, tensors={**lora.tensors, "q.up": lora.tensors["v.up"]}),
        replace(lora, tensors={**lora.tensors, "v.up": lora.tensors["v.up"] + np.float32(np.inf)}),
        replace(lora, tensors={name: t for name, t in lora.tensors.items() if name != "q.down"}),
        replace(lora, tensors={name: t[..., :4] for name, t in lora.tensors.items()}),
    ):
        with pytest.raises(AdapterError, match="does not fit"):
            changed.check(with_graph)
    with pytest.raises(AdapterError, match=r"has no model-lora\.onnx") as told:
        lora.check(manifest)
    assert told.value.hint == "Export it again with --adapt."


def test_what_the_graph_takes_of_lora_is_both_updates(manifest: Manifest) -> None:
    rng, tensors = np.random.default_rng(0), first_updates(manifest.model)
    tensors |= {name: rng.normal(size=t.shape).astype(np.float32) for name, t in tensors.items() if name.endswith("up")}
    given, x = graph_inputs(tensors), rng.normal(size=(3, manifest.model.hidden)).astype(np.float32)
    assert set(given) == {"down.0", "down.1", "up.0", "up.1"}
    for layer in range(2):
        q, k, v = np.split(x @ given[f"down.{layer}"] @ given[f"up.{layer}"], [64, 96], axis=1)
        for role, found in (("q", q), ("v", v)):
            expected = x @ tensors[f"{role}.down"][layer] @ tensors[f"{role}.up"][layer]
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
        assert not k.any()


def test_lora_is_refused_where_its_graph_cannot_run(lora: Adapter, manifest: Manifest) -> None:
    """Of what runs graphs only ONNX Runtime's own has one for it."""
    for backend in (StandardBackend, PluginBackend, AppendOnly):
        assert not hasattr(backend, "update")
    session, _ = make_session()
    session.manifest = replace(manifest, files={**manifest.files, LORA_GRAPH: manifest.files["model.onnx"]})
    session.prefill([1, 2, 3])
    with pytest.raises(UsageError, match="needs edgellm's own graph, on the CPU"):
        session.use(lora)
    assert session.adapter is None
    session.generate([1, 2, 3], 4)


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
