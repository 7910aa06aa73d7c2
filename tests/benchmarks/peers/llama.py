"""What llama.cpp and its fork ik_llama.cpp share: the C API behind two bindings, whose structures differ."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tests.benchmarks.peers.protocol import surprise

CHUNK = 512  # tokens a llama_decode call, llama.cpp's own default


class Llama:
    """One sequence of a context. api: the binding's module of C functions."""

    def __init__(self, api: Any, context: Any, vocabulary: int, clear: Callable[[], object]) -> None:
        self._api, self._context, self._vocabulary, self._clear = api, context, vocabulary, clear
        self._batch = api.llama_batch_init(CHUNK, 0, 1)

    def run(self, prompt: Sequence[int], new_tokens: int, first: Callable[[], None]) -> list[int]:
        for at in range(0, len(prompt), CHUNK):
            part = prompt[at : at + CHUNK]
            self._decode(part, at, [len(part) - 1] if at + CHUNK >= len(prompt) else [])
        ids = [int(self._logits(-1).argmax())]
        first()
        while len(ids) < new_tokens:
            self._decode(ids[-1:], len(prompt) + len(ids) - 1, [0])
            ids.append(int(self._logits(-1).argmax()))
        return ids

    def nats(self, window: Sequence[int]) -> float:
        self._clear()
        total = 0.0
        for at in range(0, len(window), CHUNK):
            part = window[at : at + CHUNK]
            self._decode(part, at, range(len(part)))
            following = window[at + 1 : at + 1 + len(part)]
            total += sum(surprise(self._logits(row)[None], [token]) for row, token in enumerate(following))
        return total

    def _decode(self, ids: Sequence[int], start: int, wanted: Sequence[int]) -> None:
        batch = self._batch
        batch.n_tokens = len(ids)
        for i, token in enumerate(ids):
            batch.token[i], batch.pos[i] = token, start + i
            batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = 1, 0, int(i in wanted)
        failed = self._api.llama_decode(self._context, batch)
        if failed:
            raise RuntimeError(f"llama_decode returned {failed}")

    def _logits(self, row: int) -> Any:
        found = self._api.llama_get_logits_ith(self._context, row)
        return np.ctypeslib.as_array(ctypes.cast(found, ctypes.POINTER(ctypes.c_float)), (self._vocabulary,))
