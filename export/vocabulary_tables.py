"""tokenizer.tables: a BPE tokenizer.json in the order edgellm.runtime.vocabulary reads it."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.runtime.bundle_files import TABLES, TOKENIZER

# Of these it is known that they bring no letters but the text's own, a byte's, and the space's sign.
NORMALIZERS = {"NFC", "Replace", "Prepend", "Sequence"}
PRE_TOKENIZERS = {"ByteLevel", "Split", "Digits", "Metaspace", "Sequence"}
BASE = 0x9E3779B97F4A7C15
OPTIONS = ("unk_token", "fuse_unk", "byte_fallback", "ignore_merges")


def write_tokenizer(write: Callable[[str, bytes], None], tokenizer_json: str) -> None:
    """The bundle's files of a tokenizer; write: takes a name and contents."""
    write(TOKENIZER, tokenizer_json.encode())
    if tables := vocabulary_tables(tokenizer_json):
        write(TABLES, tables)


@lru_cache(maxsize=1)  # an estimate needs their size before the bundle needs them
def vocabulary_tables(tokenizer_json: str) -> bytes | None:
    """The file's bytes; None for a tokenizer that only tokenizer.json can describe."""
    rest = json.loads(tokenizer_json)
    model = rest.get("model") or {}
    plain = not any(model.get(name) for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"))
    if model.get("type") != "BPE" or not plain or not _listed(rest.get("normalizer"), NORMALIZERS):
        return None
    ids: dict[str, int] = model.pop("vocab")
    merges = model.pop("merges")
    tokens = sorted(ids, key=ids.__getitem__)
    dense = [ids[token] for token in tokens] == list(range(len(ids)))
    if not dense or not _listed(rest.get("pre_tokenizer"), PRE_TOKENIZERS):
        return None
    pairs = [merge.split(" ", 1) if isinstance(merge, str) else merge for merge in merges]
    encoded = [token.encode() for token in tokens]
    hashes = np.array([hash_of(token) for token in tokens], np.uint64)
    order = np.argsort(hashes).astype(np.int32)
    tables: dict[str, NDArray[Any]] = {
        "hashes": hashes[order],
        "owners": order,
        "ends": np.cumsum([len(text) for text in encoded], dtype=np.int32),
        "left": np.array([ids[left] for left, _ in pairs], np.int32),
        "right": np.array([ids[right] for _, right in pairs], np.int32),
        "result": np.array([ids[left + right] for left, right in pairs], np.int32),
        "text": np.frombuffer(b"".join(encoded), np.uint8),
    }
    listed, at = [], 0
    for name, table in tables.items():
        listed.append((name, table.dtype.str, len(table), at))
        at += table.nbytes
    rest |= {"padding": None, "truncation": None}
    facts = {
        "rest": rest,
        "options": {name: model.get(name) for name in OPTIONS},
        "longest": max(map(len, tokens)),
        "tables": listed,
    }
    head = json.dumps(facts).encode()
    return b"".join([head, b" " * (-(len(head) + 1) % 64), b"\n", *(table.tobytes() for table in tables.values())])


def _listed(part: dict[str, Any] | None, known: set[str]) -> bool:
    """Whether a normalizer or pre-tokenizer is, all the way down, of known types."""
    if part is None:
        return True
    inner = part.get("normalizers") or part.get("pretokenizers") or []
    return part["type"] in known and all(_listed(one, known) for one in inner)


def hash_of(token: str) -> int:
    """A token's polynomial hash modulo 2**64, as kernels/engine/vocabulary.cc has it: of code points, each plus one."""
    value = 0
    for letter in token:
        value = (value * BASE + ord(letter) + 1) & 0xFFFFFFFFFFFFFFFF
    return value
