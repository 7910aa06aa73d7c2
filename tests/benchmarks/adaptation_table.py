"""What tests.benchmarks.adaptation measured, as a table of differences from the base model, and a CSV of everything.

    python -m tests.benchmarks.adaptation_table build/bench/farm.json build/bench/clinic.json --csv adaptation.csv

Each file is a domain. A row is a run, two columns a domain's half: nats a token of the reference answers and
ROUGE-Lsum, less the base model's on the same questions; bold where the 95 % interval (paired bootstrap over questions)
does not hold 0.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.runtime.carrier import CARRIERS
from tests.benchmarks.adaptation import CELLS

MEANS = ("rougeLsum", "rouge1", "rougeL", "f1", "nll", "words")
APART = {"nll": "+.3f", "rougeLsum": "+.2f"}  # what differs from base, and how it is written
HALVES, BOTH = ("adapted to", "held out"), "both"
Rows = list[dict[str, Any]]


def of_half(result: dict[str, Any], half: str) -> Rows:
    """A run's answers to a half's questions, or to all."""
    found: Rows = [row for name in HALVES for row in result[name]] if half == BOTH else result[half]
    return found


def distinct2(rows: Rows) -> float:
    """Different pairs of words over all pairs, of all answers together."""
    pairs = [pair for row in rows for words in [row["answer"].split()] for pair in pairwise(words)]
    return len(set(pairs)) / max(1, len(pairs))


def interval(differences: NDArray[np.float64], seed: int = 0) -> tuple[float, float]:
    """95 % of the mean's bootstrap."""
    rng = np.random.default_rng(seed)
    means = differences[rng.integers(0, len(differences), (2000, len(differences)))].mean(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def apart(rows: Rows, base: Rows, key: str) -> tuple[float, float, float]:
    """Mean of the differences of the same questions, and its interval."""
    differences = np.array([row[key] - other[key] for row, other in zip(rows, base, strict=True)])
    return float(differences.mean()), *interval(differences)


def table(domains: dict[str, dict[str, Any]]) -> str:
    """Markdown, runs by carrier and then in the order of CELLS."""
    parts = [(domain, half) for domain in domains for half in HALVES]
    runs = sorted({run for results in domains.values() for run in results if run != "base"}, key=_place)
    lines = ["| run |" + "".join(f" {domain}, {half}: nats | ROUGE |" for domain, half in parts)]
    lines.append("|---" * (1 + 2 * len(parts)) + "|")
    for run in runs:
        cells = [run]
        for domain, half in parts:
            result = domains[domain].get(run, {"refused": ""})
            for key, form in APART.items():
                cells.append(_cell(result, domains[domain]["base"], half, key, form))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _place(run: str) -> tuple[int, int]:
    carrier, _, cell = run.partition(", ")
    return (
        (list(CARRIERS).index(carrier), list(CELLS).index(cell)) if carrier in CARRIERS else (0, list(CELLS).index(run))
    )


def _cell(result: dict[str, Any], base: dict[str, Any], half: str, key: str, form: str) -> str:
    if "refused" in result:
        return "refused" if result["refused"] else ""
    mean, low, high = apart(result[half], base[half], key)
    return f"**{mean:{form}}**" if low > 0 or high < 0 else f"{mean:{form}}"


def records(domains: dict[str, dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """A record for each run, domain and half, or both: means, and differences from base with their intervals."""
    for domain, results in domains.items():
        for run, result in results.items():
            for half in (*HALVES, BOTH):
                rows, base = of_half(result, half), of_half(results["base"], half)
                found: dict[str, Any] = {"domain": domain, "half": half, "run": run, "questions": len(rows)}
                found |= {"refused": int("refused" in result), "distinct2": round(distinct2(rows), 3)}
                found |= {key: round(float(np.mean([row[key] for row in rows])), 3) for key in MEANS}
                for key in APART:
                    values = zip(("", "_low", "_high"), apart(rows, base, key), strict=True)
                    found |= {f"{key}_apart{end}": round(value, 4) for end, value in values}
                yield found


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--csv", type=Path)
    args = parser.parse_args()
    domains = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in args.files}
    if without := [name for name, results in domains.items() if "base" not in results]:
        raise SystemExit(f"{without[0]} has no run of the base model yet: --only base")
    print(table(domains))
    if args.csv:
        found = list(records(domains))
        with args.csv.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(found[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(found)


if __name__ == "__main__":
    main()
