"""Calibration: token ids from a file or written by the model itself, and activation statistics of one block."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

from edgellm.devices.memory import available_bytes
from edgellm.export.architectures import Architecture
from edgellm.export.checkpoint import Checkpoint
from edgellm.export.decoder import (
    TOKENS_AT_ONCE,
    Block,
    KeyValue,
    block_forward,
    final_norm,
    load_block,
)
from edgellm.export.vocabulary import embed, head_slabs
from edgellm.runtime.errors import EdgellmError

_SHARED = {"k": "q", "v": "q", "up": "gate"}  # matrices that read the same input
_PIECE = 1 << 16  # characters of plain text tokenized at a time


@torch.no_grad()
def statistics(arch: Architecture, layer: int, weights: Block, x: Tensor) -> dict[str, Tensor]:
    """Activation statistics of one block with the weights it has now: role -> float64 [in], for all matrices.

    s[c] = sum over sequences of ||X[:, c]||_2^2 / n_seq, X [T, in] one sequence's input of the matrix (A2.1).
    x: float32 [N, T, hidden], the block's input; it is not changed (decoder.propagate moves on to the next block).
    """
    sums: dict[str, Tensor] = {}

    def record(role: str, entering: Tensor) -> None:
        squares = entering.double().square().sum(dim=(0, 1))
        sums[role] = sums[role] + squares if role in sums else squares

    step = max(1, TOKENS_AT_ONCE // x.shape[1])
    for start in range(0, x.shape[0], step):
        block_forward(arch, layer, weights, x[start : start + step], record)
    sums = {role: total / x.shape[0] for role, total in sums.items()}
    return sums | {role: sums[shared] for role, shared in _SHARED.items()}


def calibration_ids(tokenizer_json: str, file: Path, sequences: int, length: int) -> Tensor:
    """The first sequences*length tokens of a file, cut into int64 [N, length]; N < sequences if the file is shorter.

    file: plain text, a JSON list, or JSON lines, of strings or objects with "text" (UTF-8). An empty line goes between
    documents. Raises EdgellmError for a file that is missing, malformed, or shorter than one sequence.
    """
    tokenizer = Tokenizer.from_str(tokenizer_json)
    ids: list[int] = []
    for text in _documents(Path(file)):
        ids += tokenizer.encode(text, add_special_tokens=False).ids
        if len(ids) >= sequences * length:
            break
    found = min(sequences, len(ids) // length)
    if found < 1:
        raise EdgellmError(
            f"{file} holds {len(ids)} tokens; one calibration sequence needs {length}",
            "Give a longer text, or none: the model then writes its own.",
        )
    return torch.tensor(ids[: found * length], dtype=torch.int64).view(found, length)


def _documents(file: Path) -> Iterator[str]:
    if not file.is_file():
        raise EdgellmError(f"calibration file {file} does not exist", "Give a text, JSON or JSON lines file.")
    try:
        with file.open(encoding="utf-8") as lines:
            first = lines.read(64).lstrip()[:1]
            lines.seek(0)
            if first == "[" and file.suffix != ".txt":
                yield from (_text(entry, file) + "\n\n" for entry in json.load(lines))
            elif first in ("{", '"') and file.suffix != ".txt":
                yield from (_text(json.loads(line), file) + "\n\n" for line in lines if line.strip())
            else:
                while piece := "".join(lines.readlines(_PIECE)):
                    yield piece
    except ValueError as error:  # malformed JSON or UTF-8
        raise EdgellmError(
            f"{file} is not a text, a JSON list or JSON lines: {error}", "Name a plain text file *.txt."
        ) from None


def _text(entry: object, file: Path) -> str:
    text = entry.get("text") if isinstance(entry, dict) else entry
    if not isinstance(text, str):
        raise EdgellmError(f'{file} holds an entry that is neither a string nor an object with "text"', "")
    return text


RESIDENT = 1 << 31  # bytes of a float32 model that stays in memory whole while it writes


@dataclass(frozen=True)
class TextMemory:
    """How text is sampled: blocks all in memory at once or not, sequences at once, and bytes of their caches."""

    resident: bool
    batch: int
    cache_bytes: int


def text_memory(arch: Architecture, sequences: int, length: int) -> TextMemory:
    """What the free memory allows: a quarter for the float32 model, and a quarter for the caches, 512 MiB at most."""
    free = available_bytes() or 4 << 30  # a system that does not tell
    one = arch.layers * 2 * arch.kv_heads * length * arch.head_dim * 4
    batch = max(1, min(sequences, min(free // 4, RESIDENT // 4) // one))
    return TextMemory(arch.parameters * 4 <= min(free // 4, RESIDENT), batch, batch * one)


@torch.no_grad()
def write_text(
    checkpoint: Checkpoint,
    sequences: int,
    length: int,
    seed: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Tensor:
    """Calibration text that the dense model writes itself: int64 [sequences, length], sampled at temperature 1.

    Every sequence begins with bos (or eos) and goes on through ends of turns or documents. A small model stays in
    memory whole (text_memory); a larger one is read again at every step, all sequences at once.
    progress: called with tokens of each sequence (done, total).
    """
    arch, tokens = checkpoint.architecture, checkpoint.tokens
    plan = text_memory(arch, sequences, length)
    begin = next((token for token in (tokens["bos"], tokens["eos"]) if token is not None), 0)
    generator = torch.Generator().manual_seed(seed)
    blocks = [load_block(arch, checkpoint, layer) for layer in range(arch.layers)] if plan.resident else None
    head = list(head_slabs(arch, checkpoint)) if plan.resident else None
    written: list[Tensor] = []
    batches = range(0, sequences, plan.batch)
    for start in batches:
        size = min(plan.batch, sequences - start)
        ids = torch.full((size, length), begin, dtype=torch.int64)
        shape = (size, arch.kv_heads, length, arch.head_dim)
        caches = [KeyValue(torch.zeros(shape), torch.zeros(shape)) for _ in range(arch.layers)]
        for position in range(length - 1):
            x = embed(arch, checkpoint, ids[:, position : position + 1])
            for layer, cache in enumerate(caches):
                block = load_block(arch, checkpoint, layer) if blocks is None else blocks[layer]
                x = block_forward(arch, layer, block, x, cache=cache)
                del block  # before the next one is read
            normed = final_norm(arch, checkpoint, x[:, 0])
            slabs = head_slabs(arch, checkpoint) if head is None else head
            probabilities = torch.cat([product(normed) for _, product in slabs], dim=-1).softmax(dim=-1)
            ids[:, position + 1] = torch.multinomial(probabilities, 1, generator=generator)[:, 0]
            progress(len(written) * length + position + 2, len(batches) * length)
        written.append(ids)
    return torch.cat(written)
