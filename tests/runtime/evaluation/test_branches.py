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
]  # fmt: skip


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = write_folder(tmp_path_factory.mktemp("model"), max_position_embeddings=CONTEXT)
    out = tmp_path_factory.mktemp("branches") / "bundle"
    make_bundle(source, out, bits=8, kv="full")
    return out


def test_every_branch_is_what_its_policys_own_session_gives(bundle: Path) -> None:
    branches = Branches(load(bundle, kv=f"{ROOM}:{CONTEXT}", threads=1), IDS)
    session = branches._session
    for cell in CELLS:
        whole = cell if cell.startswith("full") else f"{cell},prefill=whole"
        alone = load(bundle, kv=whole, threads=1)
        np.testing.assert_array_equal(branches.take(parse_kv(cell, CONTEXT)), alone.prefill(IDS), cell)
        for token in IDS[100:112]:
            np.testing.assert_array_equal(session.step(token), alone.step(token), cell)
        assert session.kv_evictions == alone.kv_evictions


def test_policies_that_count_alike_read_the_prompt_once_and_others_only_what_they_remember() -> None:
    session, backend = make_session(kv=f"{ROOM}:64")
    branches, ids = Branches(session, range(1, 41)), list(range(1, 41))
    for cell, first in (
        ("h2o:30,sinks=4", 0), ("vatp:25,sinks=4", None), ("window:8", None), ("full", None), ("tova:9", 32),
        ("h2o:9,queries=12", 24), ("vatp-window:9,sinks=4,recent=2,queries=12", None), ("a2sf:9", 0),
    ):  # fmt: skip
        before = len(backend.runs)
        branches.take(parse_kv(cell, 64))
        read = [token for run in backend.runs[before:] for token in run[0]]
        assert read == ([] if first is None else ids[first:]), cell


def test_a_cache_goes_on_only_as_what_its_buffers_hold() -> None:
    session, _ = make_session(kv="h2o:32")
    for other in ("vatp:32,sinks=4", "h2o:33"):
        with pytest.raises(UsageError, match=r"a cache made for h2o:32 cannot go on as"):
            session.follow(parse_kv(other, 64))
