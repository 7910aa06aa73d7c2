"""A BPE tokenizer in tables that are mapped: tokenizer.tables, which an export writes beside tokenizer.json.

Building all of tokenizer.json's BPE takes 0.1 s for a vocabulary of 49k and 0.8 s and 90 MB for one of 262k, more than
all else in loading, and `tokenizers` itself takes 5 MB. The native library reads the tables where they lie
(kernels/engine/tokenizer.cc). The file: a line of JSON (the rest of the tokenizer, the BPE's options, where each table
lies), then the tables: tokens' UTF-8 and where each ends, hashes ascending (export/vocabulary_tables.py) and whose they
are, and left, right and result of every merge in order.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, Literal

from edgellm.kernels.library import engine
from edgellm.runtime.errors import of_library


@dataclass(frozen=True)
class Encoding:
    """Ids of a text."""

    ids: list[int]


class TableTokenizer:
    """What a session asks of tokenizers.Tokenizer, from a bundle's tables, for a model of `vocabulary` ids.

    Raises BundleError for a file that is none of ours, or has more tokens than the model; UsageError for a kind of
    tokenizer that the library does not read; OSError for a build without the library.
    """

    def __init__(self, folder: Path, vocabulary: int) -> None:
        self._library, self._lock = engine(), Lock()
        self._handle = ctypes.c_void_p()
        self._ask("open", bytes(folder), vocabulary, ctypes.byref(self._handle))
        weakref.finalize(self, self._library.edgellm_tokenizer_close, self._handle)

    def encode(self, text: str, add_special_tokens: Literal[False] = False) -> Encoding:
        """As Tokenizer.encode without what its post-processor adds. Raises UsageError for half of a surrogate pair."""
        ids, count = ctypes.POINTER(ctypes.c_int32)(), ctypes.c_size_t()
        content = text.encode(errors="surrogatepass")
        with self._lock:
            self._ask("encode", self._handle, content, len(content), ctypes.byref(ids), ctypes.byref(count))
            return Encoding(ids[: count.value])

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """As Tokenizer.decode."""
        listed = (ctypes.c_int32 * len(ids))(*ids)
        return self._text("decode", listed, len(ids), int(not skip_special_tokens))

    def id_to_token(self, number: int) -> str | None:
        """As Tokenizer.id_to_token."""
        return self._text("token", number) or None

    def _text(self, call: str, *arguments: Any) -> str:
        text, size = ctypes.c_void_p(), ctypes.c_size_t()
        with self._lock:
            self._ask(call, self._handle, *arguments, ctypes.byref(text), ctypes.byref(size))
            return ctypes.string_at(text, size.value).decode()

    def _ask(self, call: str, *arguments: Any) -> None:
        if status := getattr(self._library, f"edgellm_tokenizer_{call}")(*arguments):
            raise of_library(self._library, status)
