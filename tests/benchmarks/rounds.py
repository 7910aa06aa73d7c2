"""Contenders take turns, round by round; medians, and ratios of ours to each peer's within a round."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

from tests.benchmarks.contenders import Contender
from tests.benchmarks.process import Failed

OTHERS = 0.1  # of the machine: a run during which other processes had more does not count
RETRIES = 1
METRICS = ("decode_tokens_per_s", "prefill_tokens_per_s", "start_s", "peak_rss_bytes")
Sample = dict[str, Any]
Rounds = dict[str, list[Sample]]  # contender -> a sample a round


def interleave(
    contenders: Sequence[Contender], rounds: int, ask: Callable[[Contender], Sample], failed: dict[str, str]
) -> Rounds:
    """A sample a contender and round. Who fails leaves, its reason in `failed`; so does nobody else's round.

    A run disturbed by other processes is tried again, and kept with "disturbed": true when that does not help. The
    order changes from round to round.
    """
    found: Rounds = {c.name: [] for c in contenders}
    for number in range(rounds):
        turn = number % max(1, len(contenders))
        for contender in [*contenders[turn:], *contenders[:turn]]:
            if contender.name in failed:
                continue
            try:
                found[contender.name].append(undisturbed(lambda c=contender: ask(c)))  # type: ignore[misc]
            except Failed as error:
                failed[contender.name] = str(error)
    return {name: samples for name, samples in found.items() if name not in failed}


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


def share(of: Mapping[str, Any] | None, over: Mapping[str, Any] | None) -> float | None:
    """Decoding speed in one case over that in another, from their medians; None where one is missing."""
    if not of or not over or "decode_tokens_per_s" not in of or "decode_tokens_per_s" not in over:
        return None
    return float(of["decode_tokens_per_s"] / over["decode_tokens_per_s"])
