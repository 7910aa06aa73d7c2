"""Greedy texts that a quicker session drafts are the ones that the session would have made alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.bundles import make_bundle
from tests.conftest import write_folder

from edgellm.export.verify import continued
from edgellm.runtime import load

PROMPTS = [[3, 50, 7, 120], [9, 9, 200], [1]]


@pytest.mark.parametrize("other", [{}, {"bits": 4, "recover": "none"}, {"seed": 1}])  # alike, nearly, not at all
def test_drafts_change_no_text(tiny_model: Path, tmp_path: Path, other: dict[str, object]) -> None:
    make_bundle(tiny_model, tmp_path / "bundle", bits=8)
    source = write_folder(tmp_path / "model", seed=1) if other.pop("seed", 0) else tiny_model
    make_bundle(source, tmp_path / "other", **{"bits": 8, **other})
    session, quicker = (load(tmp_path / name, threads=1) for name in ("bundle", "other"))
    alone = continued(session, PROMPTS, 12)
    assert [len(ids) for ids in alone] == [len(ids) + 12 for ids in PROMPTS]
    assert continued(session, PROMPTS, 12, quicker) == alone
