"""The size that `--fit` must not exceed."""

from __future__ import annotations

import re
from dataclasses import dataclass

from edgellm.runtime.errors import UsageError

_UNITS = {"kB": 1e3, "MB": 1e6, "GB": 1e9, "bits": 0.0}


@dataclass(frozen=True)
class Budget:
    """Bytes of the whole bundle, or bits a weight over all matrices, scales and masks included; one of the two."""

    text: str
    bundle_bytes: int | None = None
    bits: float | None = None

    @staticmethod
    def parse(text: str) -> Budget:
        """Read "70MB" (powers of 1000: kB, MB, GB) or "4.5bits". Raises UsageError."""
        found = re.fullmatch(r"(\d+(?:\.\d+)?) ?(kB|MB|GB|bits)", text.strip())
        if not found or not float(found[1]):
            raise UsageError(
                f'size "{text}" is not understood', "Use a bundle's size, 70MB, or bits a weight, 4.5bits."
            )
        number, unit = float(found[1]), found[2]
        return Budget(text, None, number) if unit == "bits" else Budget(text, int(number * _UNITS[unit]))

    def matrix_bytes(self, weights: int, others: int) -> int:
        """What the packed matrices of a model of so many weights may take; others: bytes of all else in the bundle."""
        return int(self.bits * weights / 8) if self.bits is not None else (self.bundle_bytes or 0) - others

    @property
    def page(self) -> int:
        """What a matrix's bytes are counted in: pages of the file, where the file is what must fit."""
        return 1 if self.bits is not None else 4096

    def __str__(self) -> str:
        return self.text
