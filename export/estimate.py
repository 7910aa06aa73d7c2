"""What an export will give and take, told before it starts: bundle, memory here and on the device, time, speed."""

from __future__ import annotations

from dataclasses import dataclass

from edgellm.devices.cores import usable_cores
from edgellm.export.adapt_files import adapt_files
from edgellm.export.architectures import Architecture
from edgellm.export.checkpoint import Checkpoint
from edgellm.export.config import ExportConfig
from edgellm.export.effort import MIB, effort
from edgellm.export.graph import decoder_graph
from edgellm.export.nodes import Placed
from edgellm.export.plan import planned
from edgellm.export.vocabulary_tables import vocabulary_tables
from edgellm.export.write import ALIGNMENT
from edgellm.runtime.cache import CacheLayout
from edgellm.runtime.loading import CHUNK
from edgellm.runtime.roofline import weight_bytes

# Measured with `generate`, SmolLM2 and Qwen2.5-Coder: Python and numpy; a token of a tokenizer without tables.
RUNTIME, TOKENIZER = 37 * MIB, 1000
ROWS = 4096  # of an untied embedding, two bytes a weight, that a session asks for
MANIFEST, MATRIX_ENTRY = 4096, 180  # bytes of edgellm.json: as a whole, and a matrix
REPORT, LAYER_ENTRY = 6000, 250  # of report.html: as a whole, and a layer
LEVEL = 200  # of both for a matrix whose level was searched


@dataclass(frozen=True)
class Estimate:
    """Sizes in bytes. kv: the cache's policy and budget.

    bundle_bytes: all files. weight_bytes: packed weights among them. host_bytes: peak resident memory of the export,
    of which host_mapped_bytes are mapped files, which the system drops when memory is short. seconds: of the export,
    rough. work_bytes: on this machine's disk beside the bundle while it is made. device_bytes: peak on the device with
    a full cache: weights, kv_bytes, and what the runtime itself takes. token_bytes: read for a token while the cache is
    empty. tokens_per_s: an upper bound, bandwidth over the bytes read, for an empty cache and for a full one; None
    where the device's bandwidth is not known.
    """

    device: str
    kv: str
    bundle_bytes: int
    weight_bytes: int
    kv_bytes: int
    host_bytes: int
    host_mapped_bytes: int
    seconds: float
    work_bytes: int
    device_bytes: int
    token_bytes: int
    tokens_per_s: float | None
    tokens_per_s_full_cache: float | None


def estimate(checkpoint: Checkpoint, config: ExportConfig) -> Estimate:
    """The estimate of an export, from the checkpoint's header: no weights are read.

    Raises EdgellmError for sizes that cannot be packed, UsageError for a KV policy the model cannot have.
    """
    arch, device = checkpoint.architecture, config.device
    policy = config.policy(arch.context)
    placed = planned(config, checkpoint)
    weights = max(at.offset + at.nbytes for at in placed.values())
    staging = min(CHUNK, arch.context)
    layout = CacheLayout(policy, staging, arch.layers, arch.kv_heads, arch.head_dim, bits=config.kv_bits)
    kv_bytes = layout.nbytes
    token_bytes = weight_bytes({name: at.nbytes for name, at in placed.items()})
    touched = token_bytes + ROWS * arch.hidden  # pages of an untied embedding that no token asks for are never read
    kept = kv_bytes - staging * layout.slot_bytes
    rates: list[float | None] = [None, None]
    if device.bandwidth_gb_s is not None:
        rates = [device.bandwidth_gb_s * 1e9 / (token_bytes + cache) for cache in (0, kept)]
    cost = effort(arch, config, weights, usable_cores())
    tables = _tables(checkpoint)
    vocabulary = tables or TOKENIZER * arch.vocabulary
    return Estimate(
        device=device.name,
        kv=str(policy),
        bundle_bytes=weights + _other_files(checkpoint, placed, config.adapt, tables),
        weight_bytes=weights,
        kv_bytes=kv_bytes,
        host_bytes=cost.memory_bytes,
        host_mapped_bytes=cost.mapped_bytes,
        seconds=cost.seconds,
        work_bytes=cost.work_bytes,
        device_bytes=RUNTIME + vocabulary + touched + kv_bytes + _activations(arch, staging),
        token_bytes=token_bytes,
        tokens_per_s=rates[0],
        tokens_per_s_full_cache=rates[1],
    )


def matrix_room(checkpoint: Checkpoint, config: ExportConfig) -> int:
    """Bytes of packed matrices that leave a bundle within config.fit, whatever their levels will be."""
    assert config.fit is not None
    arch = checkpoint.architecture
    placed = planned(config, checkpoint)
    vectors = sum(-(-at.nbytes // ALIGNMENT) * ALIGNMENT for at in placed.values() if at.format is None)
    matrices = [rows * columns for _, (rows, columns) in arch.tensors() if columns]
    others = vectors + _other_files(checkpoint, placed, config.adapt, _tables(checkpoint)) + LEVEL * len(matrices)
    return config.fit.matrix_bytes(sum(matrices), others)


def _tables(checkpoint: Checkpoint) -> int:
    """Bytes of the vocabulary in tables; 0 where only tokenizer.json can describe it."""
    return len(vocabulary_tables(checkpoint.tokenizer_json()) or b"")


def _other_files(checkpoint: Checkpoint, placed: dict[str, Placed], adapt: bool, tables: int) -> int:
    arch = checkpoint.architecture
    graphs = [decoder_graph(arch, placed)]
    if adapt:
        graphs += [graph for _, graph in adapt_files(arch, placed, kv_bits=16)]  # as large at 8
    texts = (checkpoint.tokenizer_json(), checkpoint.chat_template or "")
    matrices = sum(at.format is not None for at in placed.values())
    page = REPORT + LAYER_ENTRY * arch.layers
    files = sum(int(graph.ByteSize()) for graph in graphs) + sum(len(text.encode()) for text in texts)
    return files + tables + page + MANIFEST + MATRIX_ENTRY * matrices


def _activations(arch: Architecture, staging: int) -> int:
    """Float32 activations of one prefill chunk in the widest part of a block, and one row of logits, twice."""
    return 4 * (staging * (4 * arch.hidden + 3 * arch.ff) + 2 * arch.vocabulary)
