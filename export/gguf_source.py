"""GGUF files, memory-mapped: facts, tokens and tensors, with Q4_0, Q4_1 and Q8_0 blocks readable without loss.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; a block of 32 weights is {fp16 d, [fp16 m,] codes}.
"""

from __future__ import annotations

import functools
import logging
import mmap
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from numpy.typing import NDArray

from edgellm.export import gguf_facts, tokenizer
from edgellm.export.architectures import role
from edgellm.export.family import expected, gguf_family, locate
from edgellm.export.gguf_tied import tie
from edgellm.kernels.layout import Format, Quantized
from edgellm.runtime.errors import CheckpointError

_DAMAGED = "Download or convert the file again."
_BLOCK = 32
_WEIGHTS_AT_ONCE = 1 << 22
_STORED = {"Q4_0": (4, "symmetric"), "Q4_1": (4, "min"), "Q8_0": (8, "symmetric")}


class GgufSource:
    """One GGUF file. Raises CheckpointError from the constructor for anything but a whole, supported model."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metadata, self._tensors, self._map = _read(path)
        self._family = gguf_family(str(self.metadata.get("general.architecture", "")))
        tie(self._tensors, self._family.gguf["embedding"], self._family.gguf["head"])
        self.architecture = gguf_facts.architecture(self.metadata, self._tensors, self._family, path)
        self.name = self.architecture.name
        self._check_tensors()
        self.chat_template: str | None = self.metadata.get("tokenizer.chat_template")
        self.tokens = tokenizer.gguf_tokens(self.metadata)

    @functools.cache  # noqa: B019  one entry, and the source lives as long as the export
    def tokenizer_json(self) -> str:
        """tokenizer.json's text, built from the file's vocabulary. Raises CheckpointError for an unknown kind."""
        return tokenizer.from_gguf(self.metadata)

    def read(self, name: str, rows: slice | None = None) -> torch.Tensor:
        """A tensor by canonical name, float32 [out, in] or [length], or these rows of it.

        Raises CheckpointError for an unreadable type.
        """
        tensor, data = self._rows(name, rows)
        columns = self.architecture.shape(name)[1]
        weight = np.empty((len(data), columns) if columns else len(data), np.float32)
        step = max(1, _WEIGHTS_AT_ONCE // max(1, columns))  # unpacking takes several times what it gives
        try:
            with np.errstate(all="ignore"):  # whoever reads checks for NaN and infinities
                for start in range(0, len(data), step):
                    part = slice(start, start + step)
                    weight[part] = gguf.quants.dequantize(data[part], tensor.tensor_type)
        except NotImplementedError:
            raise CheckpointError(
                f"{self.path.name}: {tensor.name} is of type {tensor.tensor_type.name}, which gguf cannot dequantize",
                "Use a file in another quantization, such as Q4_1, Q8_0 or F16.",
            ) from None
        return torch.from_numpy(weight)

    def stored(self, name: str, rows: slice | None = None) -> Quantized | None:
        """The file's own blocks as codes and scales, exactly; None for a type or a size that tiles cannot hold."""
        whole = self.stored_format(name)
        if whole is None:
            return None
        data = self._rows(name, rows)[1]
        form = replace(whole, n_out=len(data))
        blocks = data.reshape(form.n_out, form.k_in // _BLOCK, -1)
        heads = 2 if form.zero == "min" else 1
        halves = np.ascontiguousarray(blocks[:, :, : 2 * heads]).view(np.float16)
        codes = blocks[:, :, 2 * heads :]
        # 4 bits: byte j holds weight j low and weight j + 16 high. 8 bits: signed, so flipping the top bit adds 128.
        code = codes ^ np.uint8(128) if form.bits == 8 else np.concatenate([codes & 15, codes >> 4], axis=-1)
        return Quantized(
            form,
            np.ascontiguousarray(code.reshape(form.n_out, form.k_in)),
            np.ascontiguousarray(halves[:, :, 0]),
            np.ascontiguousarray(halves[:, :, 1]) if form.zero == "min" else None,
        )

    def stored_format(self, name: str) -> Format | None:
        """The format of `stored`, from the file's header alone."""
        kind = self._tensors[locate(self._family.gguf, name, self.architecture).tensor].tensor_type.name
        rows, columns = self.architecture.shape(name)
        if kind not in _STORED or not columns or columns % 64:
            return None
        bits, zero = _STORED[kind]
        return Format(rows, columns, bits, _BLOCK, zero)

    def _rows(self, name: str, rows: slice | None = None) -> tuple[Any, NDArray[Any]]:
        """The tensor that holds `name`, and a copy of its rows as stored, in Hugging Face's order."""
        at = locate(self._family.gguf, name, self.architecture)
        tensor, order = self._tensors[at.tensor], self._order(name)
        mapped = np.asarray(tensor.data)
        data = mapped if at.rows is None else mapped[at.first : at.first + at.rows]
        part = slice(0, len(data)) if rows is None else rows
        copy = np.array(data[part] if order is None else data[order[part]])
        # Pages that were read would stay in this process's memory, the whole file in the end.
        self._map.madvise(mmap.MADV_DONTNEED)
        return tensor, copy

    def _order(self, name: str) -> NDArray[np.intp] | None:
        """Which of the file's rows each row of Hugging Face's order is: [head, half, 2] against [head, 2, half]."""
        matrix = role(name).removesuffix("_bias")
        if matrix not in ("q", "k") or not self._family.switch("permuted"):
            return None
        rows, head_dim = self.architecture.shape(name)[0], self.architecture.head_dim
        return np.arange(rows).reshape(rows // head_dim, head_dim // 2, 2).swapaxes(1, 2).reshape(-1)

    def _check_tensors(self) -> None:
        wanted = expected(self._family.gguf, self.architecture)
        for name, shape in wanted.items():
            if name not in self._tensors:
                raise CheckpointError(f"{self.path.name}: tensor {name} is missing", _DAMAGED)
            found = tuple(int(size) for size in reversed(self._tensors[name].shape))
            if found != shape:
                raise CheckpointError(
                    f"{self.path.name}: {name} has shape {found}; the file's settings say {shape}", _DAMAGED
                )
        for name in self._tensors:
            if name not in wanted and name != "rope_freqs.weight":  # those are in the Architecture's Rope
                raise CheckpointError(
                    f"{self.path.name}: {name} is a tensor {self._family.name} does not have",
                    "Use a model without it: ignoring it would change the model's answers.",
                )


class _Reader(gguf.GGUFReader):  # type: ignore[misc]
    """GGUFReader, made safe and quick for large vocabularies.

    It slices its map without a look at the end (a damaged array length would keep it busy for hours), and it makes
    several NumPy views of every element of an array (half a minute for 262k tokens).
    """

    def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> NDArray[Any]:
        found: NDArray[Any] = super()._get(offset, dtype, count, override_order)
        if found.size != count:
            raise ValueError(f"{count} values at byte {offset} reach past the end")
        return found

    def _get_field_parts(self, orig_offs: int, raw_type: int) -> tuple[int, list[Any], list[int], list[Any]]:
        kinds = gguf.GGUFValueType
        if raw_type != kinds.ARRAY or self.byte_order == "S":
            found: tuple[int, list[Any], list[int], list[Any]] = super()._get_field_parts(orig_offs, raw_type)
            return found
        inner, count = int(self._get(orig_offs, np.uint32)[0]), int(self._get(orig_offs + 4, np.uint64)[0])
        types, start = [kinds.ARRAY, kinds(inner)], orig_offs + 12
        if inner in self.gguf_scalar_to_np:
            whole = self._get(start, self.gguf_scalar_to_np[kinds(inner)], count)
            return 12 + whole.nbytes, [whole], [0], types
        if inner != kinds.STRING:
            raise ValueError(f"an array of {kinds(inner).name} at byte {orig_offs}")
        raw, at, parts = memoryview(self.data), start, []
        for _ in range(count):
            size = int.from_bytes(raw[at : at + 8], "little")
            if at + 8 + size > len(raw):
                raise ValueError(f"a string at byte {at} reaches past the end")
            parts.append(raw[at + 8 : at + 8 + size])
            at += 8 + size
        return at - orig_offs, parts, list(range(count)), types


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Any], mmap.mmap]:
    size = path.stat().st_size
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise CheckpointError(f"{path.name} is not a GGUF file (it does not begin with GGUF)", _DAMAGED)
    logging.getLogger("gguf").setLevel(logging.ERROR)
    try:
        reader = _Reader(path)
        metadata = {key: field.contents() for key, field in reader.fields.items()}
    # A cut or edited header ends in whatever NumPy or the enum tables raise.
    except (ValueError, IndexError, KeyError, OverflowError, TypeError, MemoryError) as error:
        raise CheckpointError(
            f"{path.name} ({size} bytes) is truncated or damaged: its header does not read ({error})", _DAMAGED
        ) from None
    if reader.byte_order == "S":
        raise CheckpointError(f"{path.name} is in the other byte order", "Convert it with gguf_convert_endian.py.")
    if metadata.get("split.count", 0) > 1:
        raise CheckpointError(
            f"{path.name} is one of {metadata['split.count']} parts",
            "Join them first: llama-gguf-split --merge FIRST-PART OUT.gguf",
        )
    for tensor in reader.tensors:
        if tensor.data_offset + tensor.n_bytes > size or tensor.data.nbytes != tensor.n_bytes:
            raise CheckpointError(
                f"{path.name} is truncated: {tensor.name} ends at byte {tensor.data_offset + tensor.n_bytes} of {size}",
                _DAMAGED,
            )
    return metadata, {tensor.name: tensor for tensor in reader.tensors}, reader.data._mmap
