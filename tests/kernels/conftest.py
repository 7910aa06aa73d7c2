"""Every test that asks for `isa` runs once an instruction set that this build and processor have."""

from __future__ import annotations

import platform
from collections.abc import Iterator

import pytest

from edgellm.kernels.library import instruction_set, use_instruction_set

NAMES = (
    ["neon_dotprod", "neon_i8mm"] if platform.machine() == "aarch64" else ["avx2", "avx_vnni", "avx512", "avx512_vnni"]
)


@pytest.fixture(params=["portable", *NAMES], scope="module")
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    before = instruction_set()
    if not use_instruction_set(request.param):
        pytest.skip(f"this processor or build has no {request.param}")
    yield request.param
    use_instruction_set(before)
