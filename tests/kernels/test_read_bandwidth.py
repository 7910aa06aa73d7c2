"""The memory reader reads every byte it is given, and its bandwidth is a number of bytes a second."""

from __future__ import annotations

import numpy as np
import pytest

from edgellm.kernels.library import read_bytes
from edgellm.kernels.read_bandwidth import read_bandwidth


@pytest.mark.parametrize("size", [0, 1, 7, 8, 63, 64, 4096, 16383, 16384, 16385, 100_003])
@pytest.mark.parametrize("start", [0, 1])
def test_the_checksum_is_the_sum_of_words_and_of_the_last_bytes(size: int, start: int) -> None:
    memory = np.random.default_rng(size).integers(0, 256, start + size, np.uint8)[start:]
    words = memory[: size // 8 * 8].copy().view("<u8")
    expected = sum(words.tolist()) + sum(memory[size // 8 * 8 :].tolist())
    assert read_bytes(memory) == expected % 2**64


def test_gaps_are_not_read() -> None:
    with pytest.raises(ValueError, match="contiguous"):
        read_bytes(np.zeros(8)[::2])


@pytest.mark.parametrize("threads", [1, 3])
def test_bandwidth(threads: int) -> None:
    assert read_bandwidth(threads, 1 << 16) > 0
