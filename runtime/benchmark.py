"""How fast a session reads prompts and decodes after them, and how near to the memory's bandwidth: greedy, to a fixed
length, medians of several runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from edgellm.devices.memory import peak_rss_bytes
from edgellm.runtime.errors import UsageError
from edgellm.runtime.generation import Result
from edgellm.runtime.roofline import kv_read_bytes, manifest_weight_bytes
from edgellm.runtime.session import Progress, Session

PASSAGE = (
    "The ferry to the island leaves twice a day, at half past seven and again at four, unless the wind is from the "
    "north. Most of its passengers are schoolchildren, and most of its freight is bread. In winter the captain knows "
    "everyone on board by name; in summer he counts hats instead. The crossing takes fifty minutes, long enough to "
    "read a chapter, to quarrel, or to fall asleep against a window that hums with the engine. When the harbour wall "
    "comes into sight, people stand up too early, as they do in trains, and wait in the aisle with their bags in "
    "their hands, looking at the same stones they left in the morning.\n\n"
)


@dataclass(frozen=True)
class Case:
    """One prompt length. kv_bytes: the cache's buffers, as in `generate`. kv_read_bytes: what the cache makes a token
    read, on average over the decoded ones."""

    prompt_tokens: int
    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    kv_bytes: int
    kv_read_bytes: int


@dataclass(frozen=True)
class Measured:
    """cases: a prompt length each, in the order given. peak_rss_bytes: of the process until all lengths had run once,
    before the bandwidth's buffer was there. bandwidth: bytes a second. share: of it, that decoding after the shortest
    prompt reads; each run over the bandwidth of its own round."""

    cases: list[Case]
    peak_rss_bytes: int
    bandwidth: float
    share: float


def prompt_ids(session: Session, tokens: int) -> list[int]:
    """The first `tokens` ids of English text, after the model's beginning-of-sequence token if it wants one."""
    times = tokens // len(session.encode(PASSAGE)) + 1
    return session.encode(PASSAGE * times)[:tokens]


def check_lengths(session: Session, prompts: Sequence[int], new_tokens: int, runs: int) -> None:
    """Raise UsageError for lengths that cannot be measured, before anything runs."""
    if runs < 1:
        raise UsageError(f"--runs is {runs}; expected 1 or more")
    if new_tokens < 2:
        raise UsageError(f"--new-tokens is {new_tokens}; expected 2 or more: the first belongs to the prompt")
    for tokens in prompts:
        if tokens < 1:
            raise UsageError(f"--prompt-tokens has {tokens}; expected 1 or more")
        if tokens + new_tokens > session.limit:
            raise UsageError(
                f"{tokens} prompt tokens and {new_tokens} new ones are {tokens + new_tokens}; this bundle with KV "
                f"cache {session.policy} holds {session.limit}",
                "Give smaller --prompt-tokens or --new-tokens, or another --kv.",
            )


def measure(
    session: Session,
    prompts: Sequence[int],
    new_tokens: int,
    runs: int,
    bandwidth: Callable[[], float],
    progress: Progress | None = None,
) -> Measured:
    """Lengths take turns, so that a slow moment falls on all of them, and after every turn the memory is read by itself
    (`bandwidth`: bytes a second): a virtual machine's own drifts by a third within a minute.

    Raises UsageError as `check_lengths` does. The cache is empty before every run.
    """
    check_lengths(session, prompts, new_tokens, runs)
    ids = {tokens: prompt_ids(session, tokens) for tokens in prompts}
    results: dict[int, list[Result]] = {tokens: [] for tokens in prompts}
    read: list[float] = []
    memory = 0
    for run in range(runs):
        for tokens, found in results.items():
            found.append(session.generate(ids[tokens], new_tokens, stop=()))
            if progress:
                progress(run * len(results) + len(found), runs * len(results))
        memory = memory or peak_rss_bytes()
        read.append(bandwidth())
    cases = [_case(session, tokens, found) for tokens, found in results.items()]
    shortest = min(cases, key=lambda case: case.prompt_tokens)
    token = manifest_weight_bytes(session.manifest) + shortest.kv_read_bytes
    pairs = zip(results[shortest.prompt_tokens], read, strict=True)
    shares = [token * result.decode_tokens_per_s / found for result, found in pairs]
    return Measured(cases, memory, median(read), median(shares))


def _case(session: Session, tokens: int, found: Sequence[Result]) -> Case:
    steps = range(tokens, tokens + found[0].decode_steps)
    read = [kv_read_bytes(session.manifest, session.policy, held) for held in steps]
    return Case(
        prompt_tokens=tokens,
        prefill_tokens_per_s=median(tokens / result.prefill_s for result in found),
        decode_tokens_per_s=median(result.decode_tokens_per_s for result in found),
        kv_bytes=max(result.kv_bytes for result in found),
        kv_read_bytes=sum(read) // len(read),
    )
