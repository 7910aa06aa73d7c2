"""Rows of a packed embedding read from the file: what QuantGather means."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgellm.export.pack import pack
from edgellm.kernels.layout import Format
from edgellm.kernels.reference import quant_gather
from edgellm.runtime.embedding_rows import EmbeddingRows
from tests.kernels.operators import random_matrix


@pytest.mark.parametrize(
    "form", [Format(100, 128, 4, 64, "min"), Format(320, 64, 8, 32), Format(64, 64, 4, 64, n=2, m=4)]
)
def test_rows_are_those_that_the_operator_gathers(form: Format, tmp_path: Path) -> None:
    tiles = pack(random_matrix(np.random.default_rng(0), form))
    (tmp_path / "data").write_bytes(b"\7" * 4096 + tiles.tobytes() + b"\7" * 100)
    rows = EmbeddingRows(tmp_path / "data", 4096, form)
    ids = np.array([form.n_out - 1, 0, 17, 17, 3], np.int64)
    np.testing.assert_array_equal(rows(ids), quant_gather(ids, tiles, form))
