"""edgellm's Python runtime under the same conditions: a bundle is the model. settings: "kv" (default: full)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from tests.benchmarks.peers.protocol import serve

if TYPE_CHECKING:
    from edgellm.runtime.session import Session


class Ours:
    def __init__(self, session: Session) -> None:
        self.session = session

    def run(self, prompt: Sequence[int], new_tokens: int, first: Callable[[], None]) -> list[int]:
        """Ids alone: no peer's side makes text of them."""
        from edgellm.runtime.sampling import Sampling

        greedy, session = Sampling().sampler(), self.session
        ids = [greedy(session.extend(prompt))]
        first()
        while len(ids) < new_tokens:
            ids.append(greedy(session.step(ids[-1])))
        return ids

    def nats(self, window: Sequence[int]) -> float:
        from edgellm.runtime.perplexity import score

        return score(self.session, window, len(window)).nats


def load(model: str, threads: int, tokens: int, settings: dict[str, Any]) -> Ours:
    from edgellm.runtime import load as load_bundle  # here, for its memory is the runtime's own

    return Ours(load_bundle(model, kv=settings.get("kv", f"full:{tokens}"), threads=threads))


if __name__ == "__main__":
    serve(load)
