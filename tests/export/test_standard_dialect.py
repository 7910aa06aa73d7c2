"""The decoder in standard operators only, run by ONNX Runtime: torch's logits within half precision, the same text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.bundles import make_bundle
from tests.export.standard import standard_session
from tests.export.test_architectures import MODELS, write_model

from edgellm.export.checkpoint import open_checkpoint
from edgellm.export.packed_source import PackedSource, read_placed
from edgellm.export.verify import parity

HALF = 5e-3
"""Relative to the norm of the logits: half precision's 2**-11 a rounding, some twenty in a row."""


def prompts(count: int, length: int) -> list[list[int]]:
    return np.random.default_rng(0).integers(3, 320, (count, length)).tolist()


def compare(source: Path, bundle: Path) -> None:
    session = standard_session(source, bundle)
    arch, packed = open_checkpoint(source).architecture, PackedSource(bundle / "model.onnx.data", read_placed(bundle))
    found = parity(arch, packed, session, prompts(4, 40), 8)
    assert found.logit_error < HALF
    assert found.greedy_agreement + found.near_ties == 4


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", MODELS)
def test_every_family_says_what_torch_says(name: str, tmp_path: Path) -> None:
    _, folder = write_model(name, tmp_path / "model", "5GB")
    make_bundle(folder, tmp_path / "bundle", bits=4)
    compare(folder, tmp_path / "bundle")
