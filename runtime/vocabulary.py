"""A BPE tokenizer in tables that are mapped: tokenizer.tables, which an export writes beside tokenizer.json.

Building all of tokenizer.json's BPE takes 0.1 s for a vocabulary of 49k and 0.8 s and 90 MB for one of 262k, more than
all else in loading. A text can become only tokens that occur in it, so each text gets a BPE of those, with their merges
in the same order: the same ids, in milliseconds. The file: a line of JSON (the rest of the tokenizer, the BPE's
options, where each table lies), then the tables: tokens' UTF-8 and where each ends, hashes ascending and whose they
are, and left, right and result of every merge in order.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import BPE

BASE = np.uint64(0x9E3779B97F4A7C15)  # of the polynomial hash modulo 2**64; a collision only costs a token too many
LONG = 1 << 14  # characters from which building the whole BPE is faster
ALWAYS = frozenset([*pre_tokenizers.ByteLevel.alphabet(), "▁"])  # what pre-tokenizers write for other characters


class TableTokenizer:
    """What a session asks of tokenizers.Tokenizer, from the tables; `whole` is the file of the whole tokenizer.

    Raises OSError, ValueError or KeyError for a file that is none of ours.
    """

    def __init__(self, path: Path, whole: Path) -> None:
        self._whole_path = whole
        with open(path, "rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        head = self._map.find(b"\n") + 1
        facts = json.loads(self._map[:head])
        self._tables: dict[str, NDArray[Any]] = {
            name: np.frombuffer(self._map, dtype, count, head + at) for name, dtype, count, at in facts["tables"]
        }
        self._options, self._longest = facts["options"], facts["longest"]
        added = {token["id"]: token for token in facts["rest"]["added_tokens"]}
        self._added: dict[int, str] = {number: token["content"] for number, token in added.items()}
        self._special = {number for number, token in added.items() if token["special"]}
        # Added tokens find their ids here once, and keep them whatever model comes later.
        facts["rest"]["model"] |= {"vocab": {token: number for number, token in self._added.items()}, "merges": []}
        self._rest: Tokenizer = Tokenizer.from_str(json.dumps(facts["rest"]))
        self._kept = self._known([self._options["unk_token"] or "", *(f"<0x{byte:02X}>" for byte in range(256))])

    @property
    def size(self) -> int:
        """Ids there may be: one more than the highest."""
        return max([len(self._tables["ends"]), *(number + 1 for number in self._added)])

    def encode(self, text: str, add_special_tokens: bool = True) -> Any:
        """As Tokenizer.encode."""
        if len(text) > LONG or "_whole" in vars(self):
            return self._whole.encode(text, add_special_tokens=add_special_tokens)
        normalizer = self._rest.normalizer
        alphabet = self._kept | self._known(ALWAYS.union(text, normalizer.normalize_str(text) if normalizer else ""))
        self._rest.model = BPE(vocab=alphabet, merges=[], **self._options)
        letters = self._rest.encode(text, add_special_tokens=False)
        words = groupby(zip(letters.tokens, letters.word_ids, strict=True), itemgetter(1))
        pieces = {"".join(token for token, _ in word) for _, word in words}
        self._rest.model = self._model(alphabet, pieces)
        return self._rest.encode(text, add_special_tokens=add_special_tokens)

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """As Tokenizer.decode."""
        left = (number for number in ids if not (skip_special_tokens and number in self._special))
        tokens = [token for token in map(self.id_to_token, left) if token is not None]
        decoder = self._rest.decoder
        return str(decoder.decode(tokens)) if decoder else " ".join(tokens)

    def get_added_tokens_decoder(self) -> dict[int, Any]:
        """As Tokenizer.get_added_tokens_decoder."""
        found: dict[int, Any] = self._rest.get_added_tokens_decoder()
        return found

    def id_to_token(self, number: int) -> str | None:
        """As Tokenizer.id_to_token."""
        if (added := self._added.get(number)) is not None:
            return added
        ends = self._tables["ends"]
        if not 0 <= number < len(ends):
            return None
        start = int(ends[number - 1]) if number else 0
        return bytes(self._tables["text"][start : int(ends[number])]).decode()

    @cached_property
    def _whole(self) -> Tokenizer:
        whole: Tokenizer = Tokenizer.from_file(str(self._whole_path))
        whole.no_padding()
        whole.no_truncation()
        return whole

    def _known(self, tokens: Iterable[str]) -> dict[str, int]:
        """Those of the vocabulary, and their ids."""
        listed = [token for token in tokens if token]
        hashes = np.array([hash_of(token) for token in listed], np.uint64)
        found = {number: self.id_to_token(number) for number in self._with(hashes).tolist()}
        wanted = set(listed)
        return {token: number for number, token in found.items() if token in wanted}

    def _with(self, hashes: NDArray[np.uint64]) -> NDArray[np.int32]:
        """Ids of the tokens with these hashes."""
        known = self._tables["hashes"]
        at = np.minimum(np.searchsorted(known, hashes), len(known) - 1)
        owners: NDArray[np.int32] = self._tables["owners"][at[known[at] == hashes]]
        return owners

    def _model(self, alphabet: dict[str, int], pieces: set[str]) -> BPE:
        """The BPE of the tokens that occur in these pieces of a text; no token lies across two of them."""
        letters = codes("\0".join(pieces))
        longest = min(self._longest, max(map(len, pieces), default=0))
        inside = np.zeros(len(self._tables["ends"]), np.bool_)
        inside[list(alphabet.values())] = True
        rolling = np.zeros(len(letters), np.uint64)
        for length in range(1, longest + 1):
            rolling = rolling[: len(letters) - length + 1] * BASE + letters[length - 1 :]
            inside[self._with(rolling)] = True
        names = {number: self.id_to_token(number) or "" for number in np.flatnonzero(inside).tolist()}
        left, right, result = (self._tables[name] for name in ("left", "right", "result"))
        merges = np.flatnonzero(inside[result])
        merges = merges[inside[left[merges]] & inside[right[merges]]]
        pairs = [(names[a], names[b]) for a, b in zip(left[merges].tolist(), right[merges].tolist(), strict=True)]
        return BPE(vocab={token: number for number, token in names.items()}, merges=pairs, **self._options)


def codes(text: str) -> NDArray[np.uint64]:
    """A text's code points, each plus one."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64) + np.uint64(1)


def hash_of(token: str) -> int:
    """A token's hash, as `TableTokenizer` computes those of a text's parts."""
    value, base = 0, int(BASE)
    for letter in token:
        value = (value * base + ord(letter) + 1) & 0xFFFFFFFFFFFFFFFF
    return value
