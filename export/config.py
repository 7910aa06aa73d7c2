"""What an export is asked to do: one dataclass, validated once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from edgellm.devices.host import detect
from edgellm.devices.profile import Device
from edgellm.export.architectures import Architecture, role
from edgellm.export.budget import Budget
from edgellm.export.distill import USUAL
from edgellm.export.level import GROUP, Level, Sparsity
from edgellm.export.prune import SCOPES, SWEPT
from edgellm.kernels.layout import GROUPS, Format
from edgellm.runtime.errors import EdgellmError, UsageError
from edgellm.runtime.kv_policy import KVPolicy, parse_kv
from edgellm.runtime.schema import KV_BITS

DISTILL = "distill"
RECOVER = ("none", SWEPT, DISTILL)
HELD_OUT = 4  # sequences for perplexity and parity, never used to calibrate
FROM_FILE = (64, 512)  # sequences and tokens each that calibrate: 32k tokens
TO_DISTILL = 320  # of the file's sequences that the whole model learns from; FROM_FILE calibrate its blocks
SELF_WRITTEN = (32, 256)  # the dense model's own text costs a forward pass a token
FIT_MINUTES = 10.0
ROUNDED = 8  # bits of what is neither stored in a form that a tile can hold nor asked for in another width


def usual_recovery(calibration: Path | None, minutes: float = 0) -> str:
    """What an export does that is not told: "distill" where a text was given, or minutes to train. By blocks it had
    the better perplexity on both models tried (docs/distillation.md); trained on a model's own text none was."""
    return DISTILL if calibration or minutes else SWEPT


@dataclass(frozen=True)
class ExportConfig:
    """One export. bits None: keep what the file stores where a tile can hold it, round the rest to 8 bits.

    recover: what wins back the loss: "sparsegpt" (errors are corrected by what is rounded after them, wherever weights
    are pruned or rounded below 8 bits) | "distill" (that, and then trained towards the dense model at the granularities
    `distill`: block by block where "fine" is one, and for about recover_minutes as a whole) | "none" (scales are
    searched, no more). usual_recovery says which the command line takes.
    head_bits None: 8 where bits is given (the head is the most sensitive matrix), else as stored. group: 32 | 64 | 128
    inputs a scale, and symmetric: no minima at 4 bits either, of what is rounded here and not searched. kv: the
    bundle's default, as edgellm.runtime.kv_policy.parse_kv reads it; None: the device's. kv_bits: of keys and values,
    16 or 8. seed: of the text the model writes itself when calibration is None. device: what the bundle must fit.
    adapt: write the gradient graph too, and measure the gate. engine: "none", or whose TensorRT graph and engine are
    written beside the CPU's, "tensorrt-rtx" | "tensorrt"; engine_operators: "standard" | "plugins".

    fit: search the recipe of at most this size that loses least (search.py); fit_minutes: what its mutations may take.
    levels: by a matrix's canonical name, what it is given instead of sparsity and bits: what the search found.
    max_loss: refuse a bundle whose perplexity is above 1 + max_loss times the dense model's. references: measure dense
    layers of 4 and 3 bits too; None: where matrices are corrected.
    """

    source: Path
    out: Path
    sparsity: Sparsity = field(default_factory=Sparsity)
    scope: str = "mlp"
    bits: int | None = None
    head_bits: int | None = None
    kv: str | None = None
    calibration: Path | None = None
    seed: int = 0
    force: bool = False
    recover: str = SWEPT
    device: Device = field(default_factory=detect)
    kv_bits: int = 16
    fit: Budget | None = None
    fit_minutes: float = FIT_MINUTES
    levels: Mapping[str, Level] = field(default_factory=dict)
    max_loss: float | None = None
    references: bool | None = None
    adapt: bool = False
    distill: tuple[str, ...] = USUAL
    recover_minutes: float = 0.0
    engine: str = "none"
    engine_operators: str = "standard"
    group: int = GROUP
    symmetric: bool = False

    def __post_init__(self) -> None:
        if self.scope not in SCOPES:
            raise UsageError(f'scope "{self.scope}" is unknown', f"Use {' or '.join(SCOPES)}.")
        for name, bits in (("bits", self.bits), ("head bits", self.head_bits)):
            if bits not in (None, 4, 8):
                raise UsageError(f"{name} is {bits}", "Use 4 or 8.")
        if self.group not in GROUPS:
            raise UsageError(f"group is {self.group}", f"Use {' or '.join(map(str, GROUPS))}.")
        if self.kv_bits not in KV_BITS:
            raise UsageError(f"KV bits is {self.kv_bits}", "Use 16 or 8.")
        if self.recover not in RECOVER:
            raise UsageError(f'recover "{self.recover}" is unknown', f"Use {' or '.join(RECOVER)}.")
        if not 0 <= self.recover_minutes < float("inf"):
            raise UsageError(f"{self.recover_minutes} minutes to recover", "Use 0, for blocks only, or more.")
        if self.recover != DISTILL and (self.recover_minutes or self.distill != USUAL):
            raise UsageError(
                f"--distill and --recover-minutes say how to train, and --recover {self.recover} does not train",
                f"Use --recover {DISTILL}.",
            )
        if self.recover == DISTILL and not self.recover_minutes and "fine" not in self.distill:
            raise UsageError(
                "0 minutes to recover leave blocks only, the fine granularity, and --distill leaves that out",
                "Add fine, or give minutes.",
            )
        if self.sparsity.method == SWEPT and self.recover == "none":
            raise UsageError(
                f"{self.sparsity} chooses its mask while it updates weights, and --recover {self.recover} updates none",
                "Leave --recover out, or use dass, wanda or magnitude.",
            )
        if self.fit and (self.bits or self.head_bits or self.sparsity.method != "none"):
            raise UsageError(
                f"--fit {self.fit} chooses bits and sparsity itself", "Leave out --bits, --head-bits and --sparsity."
            )
        if self.fit and (self.group != GROUP or self.symmetric):
            raise UsageError(f"--fit {self.fit} chooses groups and minima itself", "Leave out --group and --symmetric.")
        if not self.fit_minutes >= 0:
            raise UsageError(f"--fit-minutes is {self.fit_minutes}", "Use 0 or more.")
        if self.max_loss is not None and not self.max_loss >= 0:
            raise UsageError(f"--max-loss is {self.max_loss}", "Use 0.1 for a perplexity at most 10 % above the dense.")

    @property
    def calibrates(self) -> bool:
        """Whether the calibration text is run: for masks, updates, and where there is one, for the search of scales."""
        masks = self.sparsity.method not in ("none", "magnitude")
        return masks or self.updates or self.compares or (self.coarse and self.calibration is not None)

    @property
    def updates(self) -> bool:
        """Whether any matrix is corrected."""
        return self.recover != "none" and (self.coarse or self.sparsity.method != "none")

    @property
    def distills(self) -> bool:
        """Whether what was corrected is then trained."""
        return self.recover == DISTILL and self.updates

    @property
    def trains_blocks(self) -> bool:
        """Whether blocks are trained one by one, before the whole."""
        return self.distills and "fine" in self.distill

    @property
    def trains_whole(self) -> bool:
        """Whether the whole model is trained."""
        return self.distills and self.recover_minutes > 0

    @property
    def compares(self) -> bool:
        """Whether dense layers of 4 and 3 bits are measured too."""
        return self.updates if self.references is None else self.references

    @property
    def coarse(self) -> bool:
        """Whether any matrix may get 4 bits."""
        return self.fit is not None or 4 in (self.bits, self.head_bits)

    def corrects(self, name: str) -> bool:
        """Whether later weights of the matrix of this canonical name make good what earlier ones lose."""
        return self.recover != "none" and (self.prunes(name) or self.width(name) == 4)

    def policy(self, context: int) -> KVPolicy:
        """The bundle's default KV policy, for a model of `context` tokens. Raises UsageError."""
        return parse_kv(self.kv or self.device.recipe.kv_for(context), context)

    def text_shape(self, context: int) -> tuple[int, int]:
        """(sequences, tokens each) of the text to get: HELD_OUT to measure with, the rest to calibrate on."""
        sequences, length = FROM_FILE if self.calibration else SELF_WRITTEN
        if self.calibration and self.distills:
            sequences = TO_DISTILL
        return HELD_OUT + (sequences if self.calibrates else 0), min(length, context)

    def level(self, name: str) -> Level:
        """What the matrix of this canonical name is given; embedding and head are never pruned."""
        if name in self.levels:
            return self.levels[name]
        if name in ("embedding", "head"):
            bits, sparsity = self.head_bits or (None if self.bits is None else ROUNDED), Sparsity()
        else:
            bits, sparsity = self.bits, self.sparsity if role(name) in SCOPES[self.scope] else Sparsity()
        return Level(bits, sparsity, self.group, "symmetric" if self.symmetric else None)

    def prunes(self, name: str) -> bool:
        """Whether the matrix of this canonical name is pruned."""
        return self.level(name).sparsity.method != "none"

    def width(self, name: str) -> int | None:
        """Bits asked for, or None: as stored."""
        return self.level(name).bits

    def format(self, name: str, shape: tuple[int, int]) -> Format:
        """The format of a matrix [out, in] that is rounded here. Raises EdgellmError for a size no tile holds."""
        try:
            return self.level(name).format(name, shape, ROUNDED)
        except ValueError as error:
            raise EdgellmError(
                f"{name}: {error}", "This model's sizes do not fit; try another --group or --sparsity."
            ) from None

    def check(self, arch: Architecture) -> None:
        """Raise EdgellmError, before any work, when a matrix of the model cannot be packed so."""
        for name, shape in arch.tensors():
            if shape[1]:
                self.format(name, shape)
        if arch.ff % 16:
            raise EdgellmError(
                f"{arch.ff} neurons do not divide by 16, a tile's outputs", "This model cannot be packed."
            )
