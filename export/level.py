"""What one matrix is given: bits a weight, a group's size and zero, and N:M where it is pruned. A recipe is one for all
matrices, or, from the search, one each."""

from __future__ import annotations

from dataclasses import dataclass

from edgellm.export.prune import METHODS, SWEPT, axis
from edgellm.kernels.layout import Format
from edgellm.runtime.errors import UsageError

# Inputs a scale when weights are rounded here. Dense ones at 4 bits get a minimum too, 4.5 bits a weight in all: groups
# of 32 without one cost the same and lose a quarter more (SmolLM2). 8.25 bits, and 3.25 for 2:4 at 4, have none.
GROUP = 64


@dataclass(frozen=True)
class Sparsity:
    """n of every m weights kept, by method "dass" | "wanda" | "magnitude" | "sparsegpt" | "none"."""

    method: str = "none"
    n: int = 1
    m: int = 1

    @staticmethod
    def parse(text: str) -> Sparsity:
        """Read "none" or "METHOD:N:M". Raises UsageError."""
        method, *numbers = text.split(":")
        if text == "none":
            return Sparsity()
        if (
            method not in (*METHODS, SWEPT)
            or len(numbers) != 2
            or not all(n.isascii() and n.isdigit() for n in numbers)
        ):
            known = ", ".join(f"{name}:2:4" for name in (*METHODS, SWEPT))
            raise UsageError(f'sparsity "{text}" is not METHOD:N:M', f"Use none, {known} or another N:M.")
        n, m = (int(number) for number in numbers[:2])
        if m not in (4, 8, 16) or not 0 < n < m:
            raise UsageError(f"{n}:{m} sparsity; a weight tile holds N of M = 4, 8 or 16, N below M", "Use 2:4 or 4:8.")
        return Sparsity(method, n, m)

    def __str__(self) -> str:
        return self.method if self.method == "none" else f"{self.method}:{self.n}:{self.m}"


@dataclass(frozen=True)
class Level:
    """bits: 4 | 8, or None: as the file stores it, else 8. zero None: a minimum for dense weights at 4 bits."""

    bits: int | None
    sparsity: Sparsity = Sparsity()
    group: int = GROUP
    zero: str | None = None

    def format(self, name: str, shape: tuple[int, int], default: int = 8) -> Format:
        """Of the matrix [out, in] of this canonical name, `default` bits where none are said. Raises ValueError for a
        size that no tile holds."""
        bits, pruned = self.bits or default, self.sparsity.method != "none"
        zero = self.zero or ("min" if bits == 4 and not pruned else "symmetric")
        if not pruned:
            return Format(*shape, bits, self.group, zero)
        return Format(
            *shape, bits, self.group, zero, self.sparsity.n, self.sparsity.m, axis(self.sparsity.method, name)
        )

    def __str__(self) -> str:
        """For people and the manifest: "8", "4", "4 in 32s", "4 symmetric", "sparsegpt:2:4 at 4"."""
        name = str(self.bits) + (f" in {self.group}s" if self.group != GROUP else "")
        name += f" {self.zero}" if self.zero else ""
        return name if self.sparsity.method == "none" else f"{self.sparsity} at {name}"
