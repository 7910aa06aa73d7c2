"""A tiny bundle that adapts, a session over it, and a question."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgellm.runtime import load
from edgellm.runtime.carrier import Carrier, Delta, Lora, Prefix, Soft
from edgellm.runtime.question import Question, asked
from edgellm.runtime.session import Session
from tests.bundles import make_bundle


@pytest.fixture(scope="session")
def bundle(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("adapt") / "bundle"
    make_bundle(tiny_model, out, bits=8, adapt=True)
    return out


@pytest.fixture(scope="module")
def session(bundle: Path) -> Session:
    return load(bundle, threads=1)


@pytest.fixture(scope="module")
def carriers(bundle: Path, session: Session) -> dict[str, Carrier]:
    return {kind.name: kind(bundle, session.manifest, 1) for kind in (Prefix, Soft, Lora, Delta)}


@pytest.fixture
def question(session: Session) -> Question:
    assert session.adapter is None
    return asked(session, "Ships and lamps 2024")
