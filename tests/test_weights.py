"""The weights file is mapped once, and the matrices in it are read there: in Python, and through the C API."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgellm.runtime import load
from edgellm.runtime.errors import BundleError
from edgellm.runtime.manifest import dump, seal
from tests.bundles import make_bundle
from tests.door import BUNDLE, Door, DoorError
from tests.test_door import missing

IDS = [(7 * i * i + i) % 317 + 3 for i in range(40)]


@pytest.fixture(scope="module")
def bundle(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("weights") / "bundle"
    make_bundle(tiny_model, out, "dass:2:4", bits=4)
    return out


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Callable[..., Path]:
    """A copy each of whose matrices in the manifest was changed."""

    def make(change: Callable[[dict[str, Any]], object]) -> Path:
        out = shutil.copytree(bundle, tmp_path / "copy")
        data = json.loads((out / "edgellm.json").read_bytes())
        for matrix in data["matrices"]:
            change(matrix)
        (out / "edgellm.json").write_bytes(dump(seal(data)))
        return out

    return make


def mappings(folder: Path) -> list[tuple[int, set[str]]]:
    """(bytes, flags) of every mapping of the weights file in this process."""
    found, inside = [], False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if ends := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = line.endswith(str(folder / "model.onnx.data"))
            size = int(ends[2], 16) - int(ends[1], 16)
        elif inside and line.startswith("VmFlags:"):
            found.append((size, set(line.split()[1:])))
    return found


@pytest.mark.parametrize("backend", ["cpu", "onnxruntime"])
def test_one_mapping_holds_every_matrix_and_asks_for_huge_pages(bundle: Path, backend: str) -> None:
    if not Path("/proc/self/smaps").exists():
        pytest.skip("no /proc here")
    session = load(bundle, backend=backend)
    session.step(5)
    largest = max(matrix.bytes for matrix in session.manifest.matrices)
    whole = (bundle / "model.onnx.data").stat().st_size
    size, flags = max(mappings(bundle), key=lambda found: found[0])
    assert size >= whole
    assert "hg" in flags or not Path("/sys/kernel/mm/transparent_hugepage").exists()
    assert all(size < largest for size, _ in mappings(bundle) if size < whole)  # norms are ONNX Runtime's


def test_bundles_that_do_not_say_where_run_alike(bundle: Path, copy: Callable[..., Path]) -> None:
    older = copy(lambda matrix: matrix.pop("offset"))
    for backend in ("cpu", "onnxruntime"):  # the first reads the graph's own places
        both = [load(path, threads=1, backend=backend).logits(IDS) for path in (older, bundle)]
        assert np.array_equal(*both)
        if not missing():
            older_ids, ids = (
                Door(path, threads=1, backend=backend.encode()).generate(IDS, 20) for path in (older, bundle)
            )
            assert older_ids == ids


@pytest.mark.parametrize(("offset", "message"), [(1 << 40, "ends before"), (-1, "matrices"), ("far", "offset")])
def test_a_wrong_place_is_told(copy: Callable[..., Path], offset: Any, message: str) -> None:
    wrong = copy(lambda matrix: matrix.update(offset=offset))
    with pytest.raises(BundleError, match=message):
        load(wrong, backend="onnxruntime")
    if not missing():
        with pytest.raises(DoorError) as told:
            Door(wrong, backend=b"onnxruntime")
        assert told.value.code == BUNDLE
