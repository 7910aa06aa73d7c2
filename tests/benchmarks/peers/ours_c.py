"""edgellm by its C API, as C and C++ programs run it: a bundle is the model. settings: "kv", as ours.py has it.

Called as the peers are, C and C++ libraries behind a few lines of Python. edgellm_next makes text of each id
besides, which no peer's side does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from ctypes import byref, c_int32
from pathlib import Path
from typing import Any

from tests.benchmarks.peers.protocol import Skipped, serve
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
        raise Skipped("the operators and weights are those of the Python runtime, whose perplexity stands beside it")

    def _next(self) -> int:
        found = c_int32()
        self.session.call("edgellm_next", byref(found), None)
        return found.value


def load(model: str, threads: int, tokens: int, settings: dict[str, Any]) -> OursC:
    kv = settings.get("kv", f"full:{tokens}")
    return OursC(Door(Path(model), threads=threads, kv=kv.encode()))


if __name__ == "__main__":
    serve(load)
