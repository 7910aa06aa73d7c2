"""Runs take turns, round by round; medians, and ratios of ours to each peer's within a round."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from statistics import median
from typing import Any, TypeVar

from tests.benchmarks.process import Failed

OTHERS = 0.1  # of the machine: a run during which other processes had more does not count
RETRIES = 1
METRICS = ("decode_tokens_per_s", "prefill_tokens_per_s", "start_s", "peak_rss_bytes", "own_rss_bytes")
Sample = dict[str, Any]
Rounds = dict[str, list[Sample]]  # contender -> a sample a round
Turn = TypeVar("Turn", bound=Hashable)


def interleave(
    turns: Sequence[Turn], rounds: int, ask: Callable[[Turn], Sample], failed: dict[Turn, str]
) -> Iterator[dict[Turn, list[Sample]]]:
    """After each round, a sample a turn and round so far. What fails leaves, its reason in `failed`; nothing else does.

    A turn is a contender's run of one case: lengths that are compared lie as close in time as contenders do. A run
    disturbed by other processes is tried again, and kept with "disturbed": true when that does not help. The order
    changes from round to round.
    """
    found: dict[Turn, list[Sample]] = {turn: [] for turn in turns}
    for number in range(rounds):
        first = number % max(1, len(turns))
        for turn in [*turns[first:], *turns[:first]]:
            if turn in failed:
                continue
            try:
                found[turn].append(undisturbed(lambda t=turn: ask(t)))  # type: ignore[misc]
            except Failed as error:
                failed[turn] = str(error)
        yield {turn: samples for turn, samples in found.items() if turn not in failed}


def undisturbed(run: Callable[[], Sample]) -> Sample:
    """The first quiet sample of a few, or the quietest."""
    samples = []
    for _ in range(1 + RETRIES):
        sample = run()
        sample["disturbed"] = sample["others"] > OTHERS
        samples.append(sample)
        if not sample["disturbed"]:
            break
    return min(samples, key=lambda sample: sample["others"])


def medians(samples: Sequence[Sample]) -> dict[str, Any]:
    """Of the quiet rounds; of all where none was quiet. quiet_rounds says how many there were."""
    quiet = [sample for sample in samples if not sample["disturbed"]]
    found: dict[str, Any] = {"quiet_rounds": len(quiet)}
    for metric in METRICS:
        values = [sample[metric] for sample in quiet or samples if sample.get(metric) is not None]
        if values:
            found[metric] = median(values)
    return found


def ratios(rounds: Rounds, ours: Sequence[str]) -> list[dict[str, Any]]:
    """ours / peer, a row a pair and metric: in rounds that were quiet for both (in all if none was), and the median."""
    rows = []
    for one in ours:
        for peer in rounds:
            if peer in ours or one not in rounds:
                continue
            pairs = list(zip(rounds[one], rounds[peer], strict=True))
            quiet = [pair for pair in pairs if not any(sample["disturbed"] for sample in pair)]
            for metric in METRICS:
                found = [a[metric] / b[metric] for a, b in quiet or pairs if a.get(metric) and b.get(metric)]
                if found:
                    row = {"ours": one, "peer": peer, "metric": metric, "rounds": found, "median": median(found)}
                    rows.append({**row, "quiet_rounds": len(quiet)})
    return rows


def share(of: Sequence[Sample], over: Sequence[Sample]) -> float | None:
    """Decoding speed in one case over that in another: the median of the ratios in rounds that were quiet for both (in
    all if none was); None where one is missing."""
    pairs = [pair for pair in zip(of, over, strict=False) if all(sample.get(METRICS[0]) for sample in pair)]
    quiet = [pair for pair in pairs if not any(sample["disturbed"] for sample in pair)]
    found = [a[METRICS[0]] / b[METRICS[0]] for a, b in quiet or pairs]
    return float(median(found)) if found else None
