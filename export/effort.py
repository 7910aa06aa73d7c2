"""What an export costs the machine it runs on: peak memory and time, before anything is read.

Memory is modelled phase by phase after pipeline.py; the constants were measured with tests/benchmarks/estimates.py on
SmolLM2-135M. Time is rough: within a factor of three on a machine with nothing else to do.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from edgellm.export import recovery_cost
from edgellm.export.architectures import MATRICES, Architecture
from edgellm.export.config import FROM_FILE, HELD_OUT, ExportConfig
from edgellm.export.decoder import TOKENS_AT_ONCE
from edgellm.export.evopress import OFFSPRING
from edgellm.export.search import STAGES
from edgellm.export.self_written import TextMemory, text_memory
from edgellm.export.units import units
from edgellm.export.verify import LOGITS_AT_ONCE
from edgellm.export.vocabulary import SLAB

MIB = 1 << 20
IMPORTS = 180 * MIB  # torch, onnxruntime, onnx, tokenizers
LIBRARIES = 85 * MIB  # their mapped code
VOCABULARY = 1800  # bytes a token: the vocabulary and its merges as Python strings, and the tokenizer
UNPACKING = 80 * MIB  # of the few million weights that are unpacked or rounded at once
SLABS = 2 * 4 * SLAB  # of the vocabulary: in pieces, and joined
SESSION = 90 * MIB  # ONNX Runtime, the tokenized text, the cache as far as parity fills it

FLOPS = 4e10  # of float32 products, a second and core
READ = 5e9  # bytes a second, of a model that passes once a step
PACK = 6e-8  # seconds a weight: read, round, pack, write, and read back for parity
SEARCH, SWEEP = 5e-8, 1.5e-7  # seconds a weight below 8 bits: scales searched; or inside the sweep that corrects
REREAD = 4e-9  # seconds a weight: from the file to float32
LEVELS, BANK = 8, 12  # that a search compresses; bytes a weight of those worth keeping, in half precision
PARITY_TOKENS = 20 * (24 + 16 + 40) + 20 * 40  # on the runtime, and in torch


@dataclass(frozen=True)
class Effort:
    """memory_bytes: peak resident memory of the export; mapped_bytes: the part of it that are mapped files, which the
    system drops when memory is short. seconds: rough. work_bytes: on the disk beside the bundle while it is made."""

    memory_bytes: int
    mapped_bytes: int
    seconds: float
    work_bytes: int


def effort(arch: Architecture, config: ExportConfig, weight_bytes: int, cores: int) -> Effort:
    """weight_bytes: model.onnx.data's; cores: of this machine."""
    sequences, length = config.text_shape(arch.context)
    written = text_memory(arch, sequences, length) if config.calibration is None else None
    anonymous, files = _peak(arch, config, written, sequences, length, weight_bytes)
    mapped = LIBRARIES + files
    base = IMPORTS + VOCABULARY * arch.vocabulary
    seconds = _seconds(arch, config, written, sequences, length, cores)
    work = (BANK * arch.parameters if config.fit else 0) + recovery_cost.disk_bytes(arch, config)
    return Effort(base + anonymous + mapped, mapped, seconds, work)


def _peak(
    arch: Architecture, config: ExportConfig, written: TextMemory | None, sequences: int, length: int, weights: int
) -> tuple[int, int]:
    """(anonymous, mapped from the bundle) bytes of the hungriest phase, beyond what every phase has."""
    matrices = [4 * rows * columns for rows, columns in map(arch.shape, MATRICES)]
    block = sum(matrices)
    reading = block + max(matrices) + UNPACKING  # the last matrix in pieces and joined
    text = 0
    if written is not None:
        text = written.held_bytes + written.cache_bytes + 2 * 4 * written.batch * arch.vocabulary  # logits, softmax
        text += 0 if written.held == torch.float32 else reading + SLABS
    calibrating = min(sequences - HELD_OUT, FROM_FILE[0])
    beside = 4 * HELD_OUT * length * arch.hidden
    states = 4 * calibrating * length * arch.hidden if config.calibrates else 0
    attention = (arch.heads + 2 * arch.kv_heads) * arch.head_dim
    passing = 4 * TOKENS_AT_ONCE * (4 * arch.hidden + 2 * attention + 4 * arch.ff)
    # Beside a block in float32: its codes, scales and masks.
    compress = states + (passing + block * 3 // 2 + UNPACKING if config.calibrates else block // 2 + max(matrices))
    corrects = config.updates or config.compares
    compress += _hessians(arch) + 4 * max(matrices) if corrects else 0  # the sweep's targets, errors and values
    compress += 2 * beside + block if config.compares else 0  # states of both references, and another block
    compress += recovery_cost.block_bytes(arch, calibrating, length) if config.trains_blocks else 0
    if config.fit:  # states of what is scored side by side, and its own block
        compress += 4 * OFFSPRING * STAGES[-1] * length * arch.hidden + block
    whole = recovery_cost.whole_bytes(arch, config, sequences - HELD_OUT, length) if config.trains_whole else 0
    positions = 4 * arch.layers * arch.kv_heads * arch.context  # of the full cache that parity runs with
    parity = SESSION + positions + max(reading, LOGITS_AT_ONCE + SLABS + UNPACKING)
    dense = max(reading, block + passing) + 2 * beside
    return max([(text, 0), (compress, 0), (whole, 0), (parity, weights), (dense, 0)], key=sum)


def _inputs(arch: Architecture) -> list[int]:
    """How many inputs each of a layer's Hessians is of."""
    return [arch.shape(part)[1] for part in ("q", "o", "gate", "down")]


def _hessians(arch: Architecture) -> int:
    """Bytes: a layer's in float32, and the largest thrice in float64 while it is factored."""
    sizes = _inputs(arch)
    return 4 * sum(size * size for size in sizes) + 3 * 8 * max(sizes) ** 2


def _seconds(
    arch: Architecture, config: ExportConfig, written: TextMemory | None, sequences: int, length: int, cores: int
) -> float:
    rate = FLOPS * cores / 2 / arch.parameters  # tokens a second through the whole model
    tokens = PARITY_TOKENS + (3 + 2 * config.compares) * HELD_OUT * length
    seconds = PACK * arch.parameters
    if config.calibrates:
        read = min(sequences - HELD_OUT, FROM_FILE[0]) * length
        tokens += (3 + (config.head_bits == 4)) * read  # statistics in float64, and on; what the head reads
        sums = 2 * read * sum(size * size for size in _inputs(arch)) * arch.layers
        seconds += sums / (FLOPS * cores) if config.coarse or config.updates else 0
    if config.updates or config.coarse:
        seconds += (SWEEP if config.updates else SEARCH) * arch.parameters
    if config.distills:
        seconds += recovery_cost.seconds(arch, config, sequences - HELD_OUT, length, cores)
    if config.compares:
        seconds += 2 * SWEEP * arch.parameters
    if config.fit:
        tokens += (
            2 * min(sequences - HELD_OUT, FROM_FILE[0]) * length + (len(units(arch)) // 2 + 2 * STAGES[-1]) * length
        )
        seconds += LEVELS * SWEEP * arch.parameters + 60 * config.fit_minutes
    seconds += tokens / rate
    if written is not None:
        step = 4 * arch.parameters / READ + written.batch / rate
        step += 0 if written.held else REREAD * arch.parameters
        seconds += -(-sequences // written.batch) * length * step
    return seconds
