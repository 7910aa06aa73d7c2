"""A prompt read once for many policies: the same tokens as each policy's own session gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgellm.runtime import load
from edgellm.runtime.errors import UsageError
from edgellm.runtime.evaluation.branches import ROOM, Branches
from edgellm.runtime.kv_policy import parse_kv
from tests.bundles import make_bundle
from tests.conftest import write_folder
from tests.runtime.fakes import make_session

CONTEXT = 1024
IDS = [(7 * i * i + i) % 317 + 3 for i in range(700)]
CELLS = [
    "window:100", "vatp:150", "h2o:70,sinks=20", "tova:80", "h2o:60", "full:1024", "vatp-window:150", "vatp-window:90",
    "h2o:90,queries=400,recent=10,sinks=20", "vatp-window:90,queries=30", "a2sf:80", "vatp:90,heads=max", "tova:50",
    "window:50,sinks=8", "vatp:60,recent=0.25", "a2sf:80,forget=0.5", "vatp-window:60,queries=600",
    "h2o:60,sinks=4,pool=5,prefill=whole", "vatp-window:60,queries=64,pool=3,prefill=whole",
]  # fmt: skip


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = write_folder(tmp_path_factory.mktemp("model"), max_position_embeddings=CONTEXT)
    out = tmp_path_factory.mktemp("branches") / "bundle"
    make_bundle(source, out, bits=8, kv="full")
    return out


@pytest.mark.parametrize("common", [0, 600])
def test_every_branch_is_what_its_policys_own_session_gives(bundle: Path, common: int) -> None:
    session = load(bundle, kv=f"{ROOM}:{CONTEXT}", threads=1)
    branches = Branches(session)
    for ids in (IDS, [*IDS[:600], *IDS[:90]]):
        branches.prompt(ids, common)
        for cell in CELLS:
            whole = cell if cell.startswith("full") or "whole" in cell else f"{cell},prefill=whole"
            alone = load(bundle, kv=whole, threads=1)
            np.testing.assert_array_equal(branches.take(parse_kv(cell, CONTEXT)), alone.prefill(ids), cell)
            for token in IDS[100:112]:
                np.testing.assert_array_equal(session.step(token), alone.step(token), cell)
            assert session.kv_evictions == alone.kv_evictions


def test_nothing_is_read_twice_that_leaves_no_trace() -> None:
    session, backend = make_session(kv=f"{ROOM}:64")
    branches = Branches(session)
    sums = {"h2o:30,sinks=4": 0, "vatp:25,sinks=4": None, "window:8": None, "full": None}
    recent = {"tova:9": 32, "h2o:9,queries=12": 24, "vatp-window:9,sinks=4,recent=2,queries=12": None}
    for ids, starts in (
        (list(range(1, 41)), {**sums, **recent, "a2sf:9": 0}),
        ([*range(1, 30), *range(50, 60)], {"vatp:25,sinks=4": 24, "tova:9": 32, "a2sf:9": 24, "h2o:9,queries=30": 8}),
        (list(range(70, 100)), {"full": 0, "a2sf:9": 0, "tova:20": 24}),
        (list(range(100, 140)), {"h2o:9,queries=12": 0}),
        ([*range(100, 130), *range(50, 60)], {"h2o:9,queries=12": 24, "tova:9": 32}),
    ):
        branches.prompt(ids, 29)
        for cell, start in starts.items():
            before = len(backend.runs)
            branches.take(parse_kv(cell, 64))
            read = [token for run in backend.runs[before:] for token in run[0]]
            assert read == ([] if start is None else ids[start:]), cell


def test_a_cache_goes_on_only_as_what_its_buffers_hold() -> None:
    session, _ = make_session(kv="h2o:32")
    for other in ("vatp:32,sinks=4", "h2o:33"):
        with pytest.raises(UsageError, match=r"a cache made for h2o:32 cannot go on as"):
            session.follow(parse_kv(other, 64))
