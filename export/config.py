"""What an export is asked to do: one dataclass, validated once."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from edgellm.devices.host import detect
from edgellm.devices.profile import Device
from edgellm.export.architectures import Architecture, role
from edgellm.export.prune import METHODS, SCOPES, SWEPT, axis
from edgellm.kernels.layout import Format
from edgellm.runtime.errors import EdgellmError, UsageError
from edgellm.runtime.kv_policy import KVPolicy, parse_kv

# Inputs a scale when weights are rounded here. Dense ones at 4 bits get a minimum too, 4.5 bits a weight in all: groups
# of 32 without one cost the same and lose a quarter more (SmolLM2). 8.25 bits, and 3.25 for 2:4 at 4, have none.
GROUP = 64
RECOVER = ("none", SWEPT)
HELD_OUT = 4  # sequences for perplexity and parity, never used to calibrate
FROM_FILE = (64, 512)  # sequences and tokens each that calibrate: 32k tokens
SELF_WRITTEN = (32, 256)  # the dense model's own text costs a forward pass a token
ROUNDED = 8  # bits of what is neither stored in a form that a tile can hold nor asked for in another width


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
class ExportConfig:
    """One export. bits None: keep what the file stores where a tile can hold it, round the rest to 8 bits.

    recover: what wins back the loss: "sparsegpt" (errors are corrected by what is rounded after them, wherever weights
    are pruned or rounded below 8 bits) | "none" (scales are searched, no more).
    head_bits None: 8 where bits is given (the head is the most sensitive matrix), else as stored. kv: the
    bundle's default, as edgellm.runtime.kv_policy.parse_kv reads it; None: the device's. seed: of the text the model
    writes itself when calibration is None. device: what the bundle must fit. engine: "none", or whose TensorRT graph
    and engine are written beside the CPU's, "tensorrt-rtx" | "tensorrt"; engine_operators: "standard" | "plugins".
    """

    source: Path
    out: Path
    sparsity: Sparsity = Sparsity()
    scope: str = "mlp"
    bits: int | None = None
    head_bits: int | None = None
    kv: str | None = None
    calibration: Path | None = None
    seed: int = 0
    force: bool = False
    recover: str = SWEPT
    device: Device = field(default_factory=detect)
    engine: str = "none"
    engine_operators: str = "standard"

    def __post_init__(self) -> None:
        if self.scope not in SCOPES:
            raise UsageError(f'scope "{self.scope}" is unknown', f"Use {' or '.join(SCOPES)}.")
        for name, bits in (("bits", self.bits), ("head bits", self.head_bits)):
            if bits not in (None, 4, 8):
                raise UsageError(f"{name} is {bits}", "Use 4 or 8.")
        if self.recover not in RECOVER:
            raise UsageError(f'recover "{self.recover}" is unknown', f"Use {' or '.join(RECOVER)}.")
        if self.sparsity.method == SWEPT and self.recover != SWEPT:
            raise UsageError(
                f"{self.sparsity} chooses its mask while it updates weights, and --recover {self.recover} updates none",
                "Leave --recover out, or use dass, wanda or magnitude.",
            )

    @property
    def calibrates(self) -> bool:
        """Whether the calibration text is run: for masks, updates, and where there is one, for the search of scales."""
        masks = self.sparsity.method not in ("none", "magnitude")
        return masks or self.updates or (self._coarse and self.calibration is not None)

    @property
    def updates(self) -> bool:
        """Whether any matrix is corrected."""
        return self.recover != "none" and (self._coarse or self.sparsity.method != "none")

    @property
    def _coarse(self) -> bool:
        return 4 in (self.bits, self.head_bits)

    def corrects(self, name: str) -> bool:
        """Whether later weights of the matrix of this canonical name make good what earlier ones lose."""
        return self.recover != "none" and (self.prunes(name) or self.width(name) == 4)

    def policy(self, context: int) -> KVPolicy:
        """The bundle's default KV policy, for a model of `context` tokens. Raises UsageError."""
        return parse_kv(self.kv or self.device.recipe.kv_for(context), context)

    def text_shape(self, context: int) -> tuple[int, int]:
        """(sequences, tokens each) of the text to get: HELD_OUT to measure with, the rest to calibrate on."""
        sequences, length = FROM_FILE if self.calibration else SELF_WRITTEN
        return HELD_OUT + (sequences if self.calibrates else 0), min(length, context)

    def prunes(self, name: str) -> bool:
        """Whether the matrix of this canonical name is pruned; embedding and head never are."""
        return self.sparsity.method != "none" and role(name) in SCOPES[self.scope]

    def width(self, name: str) -> int | None:
        """Bits asked for, or None: as stored."""
        if name in ("embedding", "head"):
            return self.head_bits or (None if self.bits is None else ROUNDED)
        return self.bits

    def format(self, name: str, shape: tuple[int, int]) -> Format:
        """The format of a matrix [out, in] that is rounded here. Raises EdgellmError for a size no tile holds."""
        n, m, along, bits = 1, 1, "in", self.width(name) or ROUNDED
        zero = "min" if bits == 4 else "symmetric"
        if self.prunes(name):
            n, m, along, zero = self.sparsity.n, self.sparsity.m, axis(self.sparsity.method, name), "symmetric"
        try:
            return Format(*shape, bits, GROUP, zero, n, m, along)
        except ValueError as error:
            raise EdgellmError(f"{name}: {error}", "This model's sizes do not fit; try another --sparsity.") from None

    def check(self, arch: Architecture) -> None:
        """Raise EdgellmError, before any work, when a matrix of the model cannot be packed so."""
        for name, shape in arch.tensors():
            if shape[1]:
                self.format(name, shape)
        if arch.ff % 16:
            raise EdgellmError(
                f"{arch.ff} neurons do not divide by 16, a tile's outputs", "This model cannot be packed."
            )
