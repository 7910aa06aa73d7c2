"""A GGUF file whose embedding and head are one matrix stored twice (Qwen2.5-Coder, at two precisions), stored once.

The better copy is the head, and stands for both, as edgellm's own reader has it (export/gguf_tied.py). Peers would
otherwise hold and map one too many.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter

from edgellm.export.gguf_tied import same

EMBEDDING, HEAD = "token_embd.weight", "output.weight"


Tensors = list[tuple[str, Any, GGMLQuantizationType]]
"""Names, blocks and their types."""


def tied(source: Path, out: Path) -> Path:
    """`out`, written unless it is there; `source` itself where it has one such matrix, or two different ones."""
    reader = GGUFReader(source)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    if HEAD not in tensors or not same(tensors[EMBEDDING], tensors[HEAD]):
        return source
    if not out.exists():
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = out.with_name("partial-tied.gguf")
        del tensors[EMBEDDING]
        names = {HEAD: EMBEDDING}
        copy(reader, partial, [(names.get(n, n), tensor.data, tensor.tensor_type) for n, tensor in tensors.items()])
        partial.rename(out)
    return out


def copy(reader: GGUFReader, out: Path, tensors: Tensors) -> None:
    """A file of the same settings with these tensors."""
    writer = GGUFWriter(out, str(reader.fields["general.architecture"].contents()))
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            kinds = field.types
            writer.add_key_value(name, field.contents(), kinds[0], kinds[-1] if len(kinds) > 1 else None)
    for name, data, kind in tensors:
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
