"""The weight tile: how an N:M-sparse, quantized matrix lies in memory (design.md, "The weight tile").

A matrix [n_out, k_in] is cut into panels of 16 outputs, a panel into tiles of 64 inputs, a tile into 16 vector
blocks of 64 weights. A vector block is (16/r outputs) x (4r inputs), r = m/4 for groups of m > 4 along the input and
1 otherwise, so that every block holds exactly 64*n/m kept weights. Within a tile blocks run over outputs first, then
over inputs. Within a block weights run over inputs first (bit 4r*o + i of the mask is output o, input i), where groups
of m lie along the output over outputs first (bit 16*i + o): a group's bits and kept codes are always neighbours.

    panel  = for each run of max(group, 64) inputs: scales, minima, then its tiles
    scales = [groups in the run][16 outputs] fp16;  minima the same, only for zero = "min"
    tile   = masks [16] uint64 (only if n < m), then for each block its kept codes
    codes  = 8 bits: kept bytes;  4 bits: byte j holds kept[j] low and kept[j + kept/2] high

2:4 along the input has, instead of masks, the places of the kept: a kernel gathers the inputs that they name. There

    tile   = 4 chunks of 4 blocks, of each 32 places, then codes
    places = byte 2*o + k tells of output o's k-th kept weight: bits 2b and 2b+1 are its input (0-3) in block b
    codes  = 8 bits: each block's 32;  4 bits: 32 bytes of block 0 low and 1 high, then 32 of blocks 2 and 3

kernels/layout.h is the same in C++; a test compares the two.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

PANEL = 16  # outputs
TILE = 64  # inputs
BLOCKS = 16  # vector blocks a tile
GROUPS = (32, 64, 128)  # inputs that may share a scale


@dataclass(frozen=True)
class Format:
    """What one packed matrix [n_out, k_in] holds; NMMatMul's attributes have the same names.

    bits: 4 | 8 a kept weight. group: 32 | 64 | 128 inputs a scale. zero: "symmetric" (w = scale*(code - 2**(bits-1)))
    or "min" (w = scale*code + minimum). n of every m weights are kept along `axis`, "in" or "out"; n = m = 1 is dense.
    Raises ValueError, naming the reason, for a size the tile cannot hold.
    """

    n_out: int
    k_in: int
    bits: int
    group: int
    zero: str = "symmetric"
    n: int = 1
    m: int = 1
    axis: str = "in"

    def __post_init__(self) -> None:
        if self.bits not in (4, 8):
            raise ValueError(f"bits is {self.bits}; a tile holds 4 or 8")
        if self.group not in GROUPS:
            raise ValueError(f"group is {self.group}; a tile holds groups of {' or '.join(map(str, GROUPS))} inputs")
        if self.zero not in ("symmetric", "min"):
            raise ValueError(f'zero is "{self.zero}"; expected "symmetric" or "min"')
        if self.axis not in ("in", "out"):
            raise ValueError(f'axis is "{self.axis}"; expected "in" or "out"')
        if (self.n, self.m) != (1, 1) and not (self.m in (4, 8, 16) and 0 < self.n < self.m):
            raise ValueError(f"{self.n}:{self.m} sparsity; expected n of 4, 8 or 16 with 0 < n < m, or 1:1 (dense)")
        if self.n_out < 1 or self.k_in < 1:
            raise ValueError(f"matrix of {self.n_out} x {self.k_in} is empty")
        span = max(self.group, TILE)
        if self.k_in % span:
            raise ValueError(f"{self.k_in} inputs do not divide by {span} (groups of {self.group}, tiles of {TILE})")
        if self.sparse and self.axis == "out" and self.n_out % self.m:
            raise ValueError(f"{self.n_out} outputs do not divide into groups of {self.m}")

    @property
    def sparse(self) -> bool:
        """Whether weights are dropped."""
        return self.n < self.m

    @property
    def places(self) -> bool:
        """Whether tiles hold places instead of masks."""
        return (self.n, self.m, self.axis) == (2, 4, "in")

    @property
    def reach(self) -> int:
        """r: a vector block is 16/r outputs by 4r inputs."""
        return self.m // 4 if self.sparse and self.axis == "in" else 1

    @property
    def zero_point(self) -> int:
        """The code of weight 0 in symmetric mode."""
        return 1 << (self.bits - 1)

    @property
    def panels(self) -> int:
        """Panels of 16 outputs; the last one is padded with zero weights."""
        return -(-self.n_out // PANEL)

    @property
    def block_bytes(self) -> int:
        """Bytes of one vector block's kept codes."""
        return 64 * self.n // self.m * self.bits // 8

    @property
    def tile_bytes(self) -> int:
        """Bytes of one tile: masks (or places) and codes."""
        return BLOCKS * (self.block_bytes + (8 if self.sparse else 0))

    @property
    def scale_bytes(self) -> int:
        """Bytes of the scales (and minima) before each run of max(group, 64) inputs."""
        return max(1, TILE // self.group) * PANEL * 2 * (2 if self.zero == "min" else 1)

    @property
    def panel_bytes(self) -> int:
        """Bytes of 16 outputs over all inputs."""
        return self.k_in // TILE * self.tile_bytes + self.k_in // max(self.group, TILE) * self.scale_bytes

    @property
    def nbytes(self) -> int:
        """Bytes of the whole packed matrix."""
        return self.panels * self.panel_bytes

    def attributes(self) -> dict[str, Any]:
        """NMMatMul's attributes for ONNX."""
        names = ("n_out", "k_in", "bits", "group", "zero", "n", "m", "axis")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Quantized:
    """A quantized matrix before packing: code uint8 [n_out, k_in], scale and minimum fp16 [n_out, k_in/group] (minimum
    None in symmetric mode), mask bool [n_out, k_in], True where kept (None if dense)."""

    format: Format
    code: NDArray[np.uint8]
    scale: NDArray[np.float16]
    minimum: NDArray[np.float16] | None = None
    mask: NDArray[np.bool_] | None = None


def dequantize(q: Quantized) -> NDArray[np.float32]:
    """The weights that a packed matrix means, float32 [n_out, k_in]; dropped ones are exactly 0."""
    f = q.format
    scale = np.repeat(q.scale.astype(np.float32), f.group, axis=1)
    if q.minimum is None:
        weight = scale * (q.code.astype(np.float32) - f.zero_point)
    else:
        weight = scale * q.code + np.repeat(q.minimum.astype(np.float32), f.group, axis=1)
    return weight if q.mask is None else np.where(q.mask, weight, np.float32(0))


def to_blocks(matrix: NDArray[Any], f: Format) -> NDArray[Any]:
    """[panels*16, k_in] -> [panels, tiles, 16 blocks, 64] in the tile's order."""
    r = f.reach
    if f.sparse and f.axis == "out":
        cut = matrix.reshape(f.panels, PANEL, f.k_in // TILE, BLOCKS, 4)
        return cut.transpose(0, 2, 3, 4, 1).reshape(f.panels, f.k_in // TILE, BLOCKS, 64)
    cut = matrix.reshape(f.panels, r, PANEL // r, f.k_in // TILE, BLOCKS // r, 4 * r)
    return cut.transpose(0, 3, 4, 1, 2, 5).reshape(f.panels, f.k_in // TILE, BLOCKS, 64)


def from_blocks(blocks: NDArray[Any], f: Format) -> NDArray[Any]:
    """The inverse of to_blocks."""
    r = f.reach
    if f.sparse and f.axis == "out":
        cut = blocks.reshape(f.panels, f.k_in // TILE, BLOCKS, 4, PANEL)
        return cut.transpose(0, 4, 1, 2, 3).reshape(f.panels * PANEL, f.k_in)
    cut = blocks.reshape(f.panels, f.k_in // TILE, BLOCKS // r, r, PANEL // r, 4 * r)
    return cut.transpose(0, 3, 4, 1, 2, 5).reshape(f.panels * PANEL, f.k_in)


def split(tiles: NDArray[np.uint8], f: Format) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """View packed bytes as (scales [panels, runs, scale_bytes], tiles [panels, k_in/64, tile_bytes])."""
    runs, inner = f.k_in // max(f.group, TILE), max(f.group, TILE) // TILE
    rows = tiles.reshape(f.panels, runs, f.scale_bytes + inner * f.tile_bytes)
    body = rows[:, :, f.scale_bytes :].reshape(f.panels, runs * inner, f.tile_bytes)
    return rows[:, :, : f.scale_bytes], body


def unpack(tiles: NDArray[np.uint8], f: Format) -> Quantized:
    """Read packed bytes, uint8 [f.nbytes], back into a Quantized. Dropped codes read as zero point or 0.

    Raises ValueError when the byte count is not the format's.
    """
    if tiles.size != f.nbytes:
        raise ValueError(f"{tiles.size} bytes; the format needs {f.nbytes}")
    heads, body = split(tiles, f)
    kept, bits = _split_places(body, f) if f.places else _split_masks(body, f)
    mask = None
    if bits is not None:
        full = np.full(bits.shape, f.zero_point if f.zero == "symmetric" else 0, np.uint8)
        full[bits] = kept.reshape(-1)
        kept, mask = full, from_blocks(bits, f)[: f.n_out]
    code = from_blocks(kept, f)[: f.n_out]
    fp16 = np.ascontiguousarray(heads).view(np.float16).reshape(f.panels, -1, f.scale_bytes // 2)
    groups = fp16.reshape(f.panels, fp16.shape[1], 2 if f.zero == "min" else 1, -1, PANEL)
    planes = groups.transpose(2, 0, 4, 1, 3).reshape(groups.shape[2], f.panels * PANEL, -1)[:, : f.n_out]
    return Quantized(f, code, planes[0], planes[1] if f.zero == "min" else None, mask)


def _split_masks(body: NDArray[np.uint8], f: Format) -> tuple[NDArray[np.uint8], NDArray[np.bool_] | None]:
    """Codes [panels, tiles, 16, kept] and masks [panels, tiles, 16, 64], None if dense."""
    masks = 8 * BLOCKS if f.sparse else 0
    packed = body[:, :, masks:].reshape(f.panels, -1, BLOCKS, f.block_bytes)
    kept = packed if f.bits == 8 else np.concatenate([packed & 15, packed >> 4], axis=-1)
    if not f.sparse:
        return kept, None
    bits = np.unpackbits(np.ascontiguousarray(body[:, :, :masks]), axis=-1, bitorder="little")
    return kept, bits.reshape(f.panels, -1, BLOCKS, 64).astype(bool)


def _split_places(body: NDArray[np.uint8], f: Format) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """The same of a tile with places. Raises ValueError where both kept weights claim one place."""
    chunks = body.reshape(f.panels, -1, 4, 32 + 4 * f.block_bytes)
    places, codes = chunks[..., :32], chunks[..., 32:].reshape(*chunks.shape[:3], -1, 32)
    if f.bits == 4:
        codes = np.stack([codes & 15, codes >> 4], axis=-2)  # [.., 2 loads, low and high, 32]
    place = (places[..., None, :] >> np.arange(0, 8, 2, dtype=np.uint8)[:, None] & 3).reshape(-1, BLOCKS, PANEL, 2)
    bits = (place[..., None] == np.arange(4)).any(axis=-2)
    if (place[..., 0] >= place[..., 1]).any():
        raise ValueError("places of kept weights do not rise: these bytes are damaged")
    shape = (f.panels, f.k_in // TILE, BLOCKS)
    return codes.reshape(*shape, 32), bits.reshape(*shape, 64)
