"""A damaged bundle never loads quietly: flips and truncations of every file end in a typed error."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from edgellm.runtime import load
from edgellm.runtime.errors import BundleError
from edgellm.runtime.manifest import dump, file_facts, seal
from tests.bundles import make_bundle


@pytest.fixture(scope="module")
def bundle(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("damage") / "bundle"
    make_bundle(tiny_model, out, "dass:2:4", bits=4)
    return out


@pytest.mark.parametrize("part", range(10))
def test_200_random_flips_and_truncations(bundle: Path, tmp_path: Path, part: int) -> None:
    rng = np.random.default_rng(part)
    names = sorted(path.name for path in bundle.iterdir())
    copy = tmp_path / "bundle"
    for trial in range(20):
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(bundle, copy)
        victim = copy / names[trial % len(names)]
        content = bytearray(victim.read_bytes())
        cut = rng.random() < 0.3
        if cut:
            del content[rng.integers(len(content)) :]
        else:
            content[rng.integers(len(content))] ^= 1 << rng.integers(8)
        victim.write_bytes(content)
        only_weights = victim.name == "model.onnx.data" and not cut
        with pytest.raises(BundleError, match=victim.name.replace(".", r"\.")):
            load(copy, verify=only_weights)
        if only_weights:
            load(copy)  # mapped, not read: only --verify sees it


def test_every_missing_file_is_named(bundle: Path, tmp_path: Path) -> None:
    for path in bundle.iterdir():
        copy = tmp_path / f"without_{path.name}"
        shutil.copytree(bundle, copy)
        (copy / path.name).unlink()
        with pytest.raises(BundleError, match=path.name.replace(".", r"\.")):
            load(copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 2}, "schema version 2; this edgellm reads version 1"),
        ({"operators": 9}, "operators version 9"),
        ({"model": None}, '"model" is None'),
    ],
)
def test_another_version_or_shape_of_manifest_is_told(
    bundle: Path, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(bundle, copy)
    facts = json.loads((copy / "edgellm.json").read_text())
    (copy / "edgellm.json").write_bytes(dump(seal({**facts, **change})))
    with pytest.raises(BundleError, match=message):
        load(copy)


def test_a_cut_graph_with_checksums_that_fit_is_refused(bundle: Path, tmp_path: Path) -> None:
    """Consistent checksums, wrong content: what only onnxruntime can notice."""
    copy = tmp_path / "bundle"
    shutil.copytree(bundle, copy)
    graph = (copy / "model.onnx").read_bytes()
    (copy / "model.onnx").write_bytes(graph[: len(graph) // 2])
    facts = json.loads((copy / "edgellm.json").read_text())
    facts["files"]["model.onnx"] = vars(file_facts(copy / "model.onnx"))
    (copy / "edgellm.json").write_bytes(dump(seal(facts)))
    with pytest.raises(BundleError, match=r"model\.onnx"):
        load(copy)
