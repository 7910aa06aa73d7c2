"""Calibration: token ids from a file, and activation statistics of one block."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

from edgellm.export.architectures import Architecture
from edgellm.export.decoder import TOKENS_AT_ONCE, Block, Record, block_forward
from edgellm.export.hessian import SHARED
from edgellm.runtime.errors import EdgellmError

_PIECE = 1 << 16  # characters of plain text tokenized at a time


@torch.no_grad()
def statistics(
    arch: Architecture, layer: int, weights: Block, x: Tensor, also: Record | None = None
) -> dict[str, Tensor]:
    """Activation statistics of one block with the weights it has now: role -> float64 [in], for all matrices.

    s[c] = sum over sequences of ||X[:, c]||_2^2 / n_seq, X [T, in] one sequence's input of the matrix (A2.1).
    x: float32 [N, T, hidden], the block's input; it is not changed (decoder.propagate moves on to the next block).
    also: told the same inputs.
    """
    sums: dict[str, Tensor] = {}

    def record(role: str, entering: Tensor) -> None:
        squares = entering.double().square().sum(dim=(0, 1))
        sums[role] = sums[role] + squares if role in sums else squares
        if also is not None:
            also(role, entering)

    step = max(1, TOKENS_AT_ONCE // x.shape[1])
    for start in range(0, x.shape[0], step):
        block_forward(arch, layer, weights, x[start : start + step], record)
    sums = {role: total / x.shape[0] for role, total in sums.items()}
    return sums | {role: sums[shared] for role, shared in SHARED.items()}


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
