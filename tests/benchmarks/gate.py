"""Whether the gate picks questions that gain from being adapted to, and what it costs on average.

    python -m tests.benchmarks.gate BUNDLE --shifted agriculture-qa.json medicine-qa.json -o build/bench/gate.json
    python -m tests.benchmarks.gate --table build/bench/gate.json

Every question (everyday ones, and those of each file) is answered by the model alone, with the bundle's gate, and with
a gate that always fires. So the gain of the questions that the gate picked is told beside that of as many picked by
chance: 10,000 such draws. Overhead: CPU seconds of all answers with the gate, over without; a bootstrap's interval. A
question is one entry of the file: a killed run goes on.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.runtime import load
from edgellm.runtime.adaptive import AdaptiveGeneration
from edgellm.runtime.carrier import Carrier, carrier_of
from edgellm.runtime.generation import Result
from edgellm.runtime.learning import Settings
from edgellm.runtime.objective import OBJECTIVES
from edgellm.runtime.question import Question, asked
from edgellm.runtime.schema import Gate
from edgellm.runtime.session import Session
from tests.benchmarks.adaptation import answer_nll, halves, sentences
from tests.benchmarks.adaptation_table import interval

EVERYDAY = Path(__file__).with_name("everyday.json")
ALWAYS = Gate(-1.0, -1.0, 1, True)
GAINS = {"rougeLsum": 1, "nll": -1}  # the sign of better
DRAWS = 10_000


def timed(run: Callable[[], Any]) -> tuple[Any, float]:
    """What it returns, and its CPU seconds."""
    begin = time.process_time()
    found = run()
    return found, time.process_time() - begin


def scored(session: Session, question: Question, result: Result, reference: str) -> dict[str, Any]:
    """ROUGE-Lsum x 100 of an answer, and the reference's nats a token with the adapter that is in use."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeLsum"], use_stemmer=True)
    rouge = 100 * scorer.score(sentences(reference), sentences(result.text))["rougeLsum"].fmeasure
    return {"rougeLsum": rouge, "nll": answer_nll(session, question, reference), "text": result.text}


def adapted(session: Session, question: Question, carrier: Carrier, args: argparse.Namespace, gate: Gate | None,
            reference: str) -> dict[str, Any]:  # fmt: skip
    """An answer in mode "query": its score, its CPU seconds and what AdaptiveGeneration reports."""
    settings = Settings(objective=args.objective, steps=args.steps, rate=args.rate)
    run = AdaptiveGeneration(session, question, carrier, args.new_tokens, settings=settings, gate=gate)
    used = []

    def answer() -> None:
        for _ in run:
            used.append(session.adapter)

    _, taken = timed(answer)
    session.use(used[0] if used else None)
    found = scored(session, question, run.result, reference) | {"cpu_s": taken, "adapt": asdict(run.report)}
    session.use(None)
    return found


def measure(session: Session, carrier: Carrier, pair: dict[str, str], args: argparse.Namespace) -> dict[str, Any]:
    """One question, three times."""
    question, reference = asked(session, pair["question"]), pair["answer"]
    result, taken = timed(lambda: session.generate(question.ids, args.new_tokens))
    base = scored(session, question, result, reference) | {"cpu_s": taken}
    gated = adapted(session, question, carrier, args, None, reference)
    always = gated if gated["adapt"]["gated"] else adapted(session, question, carrier, args, ALWAYS, reference)
    return {"base": base, "gated": gated, "always": always}


def run(args: argparse.Namespace, results: dict[str, Any]) -> None:
    """What the file lacks, groups in turns."""
    session = load(args.bundle, threads=args.threads)
    carrier = carrier_of(args.carrier, args.bundle, session.manifest, args.threads)
    groups = {"everyday": json.loads(EVERYDAY.read_text(encoding="utf-8"))[: args.size]}
    groups |= {path.stem: halves(path, args.size)["adapted to"] for path in args.shifted}
    session.generate("Hello", 2)
    for i in range(args.size):
        for group, pairs in groups.items():
            rows = results.setdefault(args.carrier, {}).setdefault(group, [])
            if len(rows) == i < len(pairs):
                rows.append(measure(session, carrier, pairs[i], args))
                args.output.parent.mkdir(parents=True, exist_ok=True)
                args.output.write_text(json.dumps(results), encoding="utf-8")


def against_chance(gains: NDArray[np.float64], picked: NDArray[np.bool_], seed: int = 0) -> str:
    """The mean gain of what was picked, beside as many by chance: mean, 95 %, and how often chance does as well."""
    if not picked.any():
        return "none picked"
    rng, count = np.random.default_rng(seed), int(picked.sum())
    drawn = np.array([gains[rng.permutation(len(gains))[:count]].mean() for _ in range(DRAWS)])
    own, (low, high) = gains[picked].mean(), np.quantile(drawn, (0.025, 0.975))
    as_well = (1 + (drawn >= own).sum()) / (1 + DRAWS)
    return f"{own:+.3f} | {drawn.mean():+.3f} ({low:+.3f} to {high:+.3f}) | {as_well:.2f}"


def overhead(rows: list[dict[str, Any]], seed: int = 0) -> tuple[float, float, float]:
    """CPU seconds with the gate over without, less 1: of all rows together, and 95 % of a bootstrap over rows."""
    seconds = np.array([[row["gated"]["cpu_s"], row["base"]["cpu_s"]] for row in rows])
    drawn = seconds[np.random.default_rng(seed).integers(0, len(rows), (2000, len(rows)))].sum(axis=1)
    low, high = np.quantile(drawn[:, 0] / drawn[:, 1] - 1, (0.025, 0.975))
    total = seconds.sum(axis=0)
    return float(total[0] / total[1] - 1), float(low), float(high)


def regated(row: dict[str, Any], doubt: float, surprise: float) -> dict[str, Any]:
    """A row as another gate would have made it; reading a question that is doubtful but familiar is not counted."""
    always = row["always"]
    if always["adapt"]["entropy"] > doubt and always["adapt"]["nll"] > surprise:
        return row | {"gated": always}
    return row | {"gated": row["base"] | {"adapt": always["adapt"] | {"gated": False, "accepted": False}}}


def table(groups: dict[str, list[dict[str, Any]]]) -> str:
    """Markdown: by group what the gate did and cost; then gains of what it picked, against chance."""
    everything = [row for rows in groups.values() for row in rows]
    lines = ["| questions | | doubt | surprise | gated | believed | overhead |"]
    lines[0] += "".join(f" {key}: {which} - base |" for which in ("gated", "always") for key in GAINS)
    lines += ["|---" * 11 + "|"]
    for group, rows in {**groups, "all": everything}.items():
        means = [np.mean([row["always"]["adapt"][key] for row in rows]) for key in ("entropy", "nll")]
        rates = [np.mean([row["gated"]["adapt"][key] for row in rows]) for key in ("gated", "accepted")]
        costs = overhead(rows)
        cells = [group, str(len(rows)), *(f"{mean:.2f}" for mean in means), *(f"{rate:.0%}" for rate in rates)]
        cells.append(f"{costs[0]:+.1%} ({costs[1]:+.1%} to {costs[2]:+.1%})")
        for which, key in product(("gated", "always"), GAINS):
            apart = np.array([row[which][key] - row["base"][key] for row in rows])
            low, high = interval(apart)
            cells.append(f"{apart.mean():+.3f} ({low:+.3f} to {high:+.3f})")
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "| gain | of those gated | of as many by chance | chance does as well |", "|---|---|---|---|"]
    picked = np.array([row["gated"]["adapt"]["gated"] for row in everything])
    for key, sign in GAINS.items():
        gains = np.array([sign * (row["always"][key] - row["base"][key]) for row in everything])
        lines.append(f"| {key} | {against_chance(gains, picked)} |")
    return "\n".join(lines)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, nargs="?")
    parser.add_argument("--shifted", type=Path, nargs="*", default=[])
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--table", type=Path, help="print a finished file")
    parser.add_argument(
        "--gate", type=float, nargs=2, metavar=("DOUBT", "SURPRISE"), help="with --table: had it been so"
    )
    parser.add_argument("--carrier", default="prefix")
    parser.add_argument("--size", type=int, default=30, help="questions of each group")
    parser.add_argument("--steps", type=int, default=Settings.steps)
    parser.add_argument("--rate", type=float, default=Settings.rate)
    parser.add_argument("--objective", choices=OBJECTIVES, default=Settings.objective)
    parser.add_argument("--new-tokens", type=int, default=48)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    path = args.table or args.output
    results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if not args.table:
        run(args, results)
    for carrier, groups in results.items():
        if args.gate:
            groups = {name: [regated(row, *args.gate) for row in rows] for name, rows in groups.items()}
        print(f"\n{carrier}\n\n{table(groups)}")


if __name__ == "__main__":
    main()
