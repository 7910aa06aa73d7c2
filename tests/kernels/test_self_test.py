"""Doctor's check of the kernels: it passes on every path of this processor, and not for a product that is wrong."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from edgellm.kernels import self_test
from edgellm.kernels.layout import Format
from edgellm.kernels.library import nm_matmul


def test_every_path_passes(isa: str) -> None:
    self_test.self_test()


@pytest.mark.parametrize("format", self_test.FORMATS, ids=str)
def test_a_wrong_weight_is_found(monkeypatch: pytest.MonkeyPatch, format: Format) -> None:
    def wrong(x: NDArray[np.float32], tiles: NDArray[np.uint8], f: Format) -> NDArray[np.float32]:
        other = tiles.copy()
        other[-1] ^= 0xFF  # the last code, or two
        return nm_matmul(x, other, f)

    monkeypatch.setattr(self_test, "nm_matmul", wrong)
    with pytest.raises(RuntimeError, match="strays from its reference"):
        self_test.self_test([format])
