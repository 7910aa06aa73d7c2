"""A GGUF file whose embedding and head are one matrix stored twice (Qwen2.5-Coder, at two precisions), stored once.

The model ties them: the better copy is the head, and stands for both. Peers would otherwise hold and map one too many.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from gguf import GGUFReader, GGUFWriter
from gguf.gguf_reader import ReaderTensor
from gguf.quants import dequantize

EMBEDDING, HEAD = "token_embd.weight", "output.weight"
ROWS = 1024  # compared
APART = 0.02  # of the variance: rounding to 4 or 5 bits stays below, two different matrices are near 2


def tied(source: Path, out: Path) -> Path:
    """`out`, written unless it is there; `source` itself where it has one such matrix, or two different ones."""
    reader = GGUFReader(source)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    if HEAD not in tensors or not same(tensors[EMBEDDING], tensors[HEAD]):
        return source
    if not out.exists():
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = out.with_name("partial-tied.gguf")
        copy(reader, partial)
        partial.rename(out)
    return out


def same(one: ReaderTensor, other: ReaderTensor) -> bool:
    a, b = (dequantize(tensor.data[:ROWS], tensor.tensor_type) for tensor in (one, other))
    return bool(np.square(a - b).mean() < APART * b.var())


def copy(reader: GGUFReader, out: Path) -> None:
    """Everything as it is, but the embedding left out and the head in its place."""
    writer = GGUFWriter(out, str(reader.fields["general.architecture"].contents()))
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            kinds = field.types
            writer.add_key_value(name, field.contents(), kinds[0], kinds[-1] if len(kinds) > 1 else None)
    kept = [tensor for tensor in reader.tensors if tensor.name != EMBEDDING]
    for tensor in kept:
        name = EMBEDDING if tensor.name == HEAD else tensor.name
        writer.add_tensor(name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
