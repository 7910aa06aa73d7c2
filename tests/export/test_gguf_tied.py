from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFReader, quants
from tests.benchmarks.tied_gguf import EMBEDDING, HEAD, copy

from edgellm.export.checkpoint import open_checkpoint


def write_twice(source: Path, out: Path, other: bool = False, coarse: bool = False) -> Path:
    """A file whose head is its embedding once more, in float32 (coarse: in Q4_0), or another matrix."""
    reader = GGUFReader(source)
    tensors = [(tensor.name, tensor.data, tensor.tensor_type) for tensor in reader.tensors]
    embedding = next(tensor for tensor in reader.tensors if tensor.name == EMBEDDING)
    head = quants.dequantize(embedding.data, embedding.tensor_type)
    head = head[::-1].copy() if other else head
    kind = GGMLQuantizationType.Q4_0 if coarse else GGMLQuantizationType.F32
    copy(reader, out, [*tensors, (HEAD, quants.quantize(head, kind), kind)])
    return out


def test_a_matrix_that_is_stored_twice_is_read_once_as_its_better_copy(tiny_gguf: Path, tmp_path: Path) -> None:
    alone = open_checkpoint(tiny_gguf)
    fine = open_checkpoint(write_twice(tiny_gguf, tmp_path / "fine.gguf"))
    coarse = open_checkpoint(write_twice(tiny_gguf, tmp_path / "coarse.gguf", coarse=True))
    assert fine.architecture == coarse.architecture == alone.architecture
    assert alone.architecture.tied
    assert fine.stored("embedding") is None  # float32
    assert coarse.stored("embedding") is not None  # Q8_0, the embedding's own
    for twice in (fine, coarse):
        assert torch.equal(twice.matrix("embedding"), alone.matrix("embedding"))


def test_a_head_of_its_own_stays_one(tiny_gguf: Path, tmp_path: Path) -> None:
    apart = open_checkpoint(write_twice(tiny_gguf, tmp_path / "apart.gguf", other=True))
    assert not apart.architecture.tied
    assert np.array_equal(apart.matrix("head"), apart.matrix("embedding").flip(0))
