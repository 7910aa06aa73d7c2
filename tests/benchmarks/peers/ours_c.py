"""edgellm by its C API, as C and C++ programs run it: a bundle's folder is the model. settings: "kv", as ours.py has it.

Like the peers, of which all but one are C++ libraries called from Python: no tokenizer, no Python runtime.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from ctypes import byref, c_int32
from pathlib import Path
from typing import Any

from tests.benchmarks.peers.protocol import serve, surprise
from tests.door import Door


class OursC:
    def __init__(self, session: Door) -> None:
        self.session = session
        self.session.call("edgellm_set_stops", None, 0)

    def run(self, prompt: Sequence[int], new_tokens: int, first: Callable[[], None]) -> list[int]:
        self.session.prompt(prompt)
        ids = [self._next()]
        first()
        while len(ids) < new_tokens:
            ids.append(self._next())
        return ids

    def nats(self, window: Sequence[int]) -> float:
        self.session.call("edgellm_reset")
        total = 0.0
        for at, token in enumerate(window[1:], 1):
            self.session.prompt(window[:at], keep=True)
            total += surprise(self.session.logits()[None], [token])
        return total

    def _next(self) -> int:
        found = c_int32()
        self.session.call("edgellm_next", byref(found), None)
        return found.value


def load(model: str, threads: int, tokens: int, settings: dict[str, Any]) -> OursC:
    kv = settings.get("kv", f"full:{tokens}")
    return OursC(Door(Path(model), threads=threads, kv=kv.encode()))


if __name__ == "__main__":
    serve(load)
