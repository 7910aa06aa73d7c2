"""What distillation costs: memory and time of both stages, and how many steps a budget of minutes is.

Measured on SmolLM2-135M with 2 AMD cores with AVX2.
"""

from __future__ import annotations

from edgellm.export import bfloat16
from edgellm.export.architectures import MATRICES, Architecture
from edgellm.export.block_recovery import EPOCHS, TOKENS_A_STEP
from edgellm.export.config import FROM_FILE, ExportConfig
from edgellm.export.vocabulary import ROWS_AT_ONCE

TRAINED = 3e10  # products and sums a second and core, in float32: steps are planned with it
MOST_EPOCHS = 4  # over the text, however many minutes there are
ON_DISK = 2 + 2 * 12  # bytes a weight: the latents that blocks leave; the training's state, twice while it is replaced
COPIES = 5  # of what is trained: latents, values, gradients, two moments
LOGITS = 6  # of a piece of rows: student's, teacher's, their softmax and gradients
WIDTHS = 12, 6, 6  # activations kept a token and layer: of the residual stream's width, attention's, the MLP's


def planned_steps(arch: Architecture, config: ExportConfig, sequences: int, length: int, cores: int) -> int:
    """Steps of the end-to-end stage on `sequences` of `length` tokens: what the minutes give, four epochs at most."""
    a_step = max(1, TOKENS_A_STEP // length)
    passes = 4 + ("self" in config.distill)  # the teacher's, and the student's one forward and as two backward
    rate = TRAINED * (bfloat16.FASTER if bfloat16.faster() else 1)
    seconds = a_step * length * 2 * arch.parameters * passes / (rate * cores)
    return max(1, min(int(60 * config.recover_minutes / seconds), MOST_EPOCHS * -(-sequences // a_step)))


def whole_bytes(arch: Architecture, config: ExportConfig, sequences: int, length: int) -> int:
    """Memory of the end-to-end stage."""
    trained = arch.layers * _block(arch)
    copies = COPIES + ("self" in config.distill)
    vocabulary = arch.vocabulary * arch.hidden * (1 if arch.tied else 2)
    tokens = max(1, TOKENS_A_STEP // length) * length
    logits = LOGITS * ROWS_AT_ONCE * arch.vocabulary + arch.vocabulary * arch.hidden  # and the head in one piece
    kept = arch.layers * _activations(arch) * tokens
    return 4 * (arch.parameters + vocabulary + copies * trained + logits + kept) + 12 * sequences * length


def disk_bytes(arch: Architecture, config: ExportConfig) -> int:
    """What the end-to-end stage keeps beside the bundle."""
    average = 2 * 4 * ("self" in config.distill)
    return (ON_DISK + average) * arch.layers * _block(arch) if config.trains_whole else 0


def block_bytes(arch: Architecture, sequences: int, length: int) -> int:
    """Memory of the block-wise stage, beside what compressing the block takes: the dense model's states too."""
    states = min(sequences, FROM_FILE[0]) * length * arch.hidden
    return 4 * (states + (COPIES + 2) * _block(arch) + 2 * TOKENS_A_STEP * _activations(arch))


def seconds(arch: Architecture, config: ExportConfig, sequences: int, length: int, cores: int) -> float:
    """Time of both stages. Rough."""
    total = 60 * config.recover_minutes
    if config.trains_blocks:
        tokens = min(sequences, FROM_FILE[0]) * length * (3 * EPOCHS + 3)  # trained; the loss before, after; the goal
        total += tokens * 2 * arch.layers * _block(arch) / (TRAINED * cores)
    return total


def _block(arch: Architecture) -> int:
    return sum(rows * columns for rows, columns in map(arch.shape, MATRICES))


def _activations(arch: Architecture) -> int:
    """Floats kept a token for the backward pass of one block."""
    stream, attention, inner = WIDTHS
    heads = (arch.heads + 2 * arch.kv_heads) * arch.head_dim
    return stream * arch.hidden + attention * heads + inner * arch.ff
