"""What adapting to one half of a domain's questions does to the answers on that half, and on the other one.

    python -m tests.benchmarks.adaptation BUNDLE agriculture-qa.json -o build/bench/farm.json
    python -m tests.benchmarks.adaptation_table build/bench/farm.json

Questions are asked in the chat template, greedily. What the file has already is not run again, so that a long table can
be made in turns (--only).
"""

from __future__ import annotations

import argparse
import json
import re
import time
from pathlib import Path
from typing import Any

import numpy as np

from edgellm.runtime import load
from edgellm.runtime.adapter import Adapter
from edgellm.runtime.carrier import carrier_of
from edgellm.runtime.cohort import CohortSettings, adapt_cohort
from edgellm.runtime.errors import EdgellmError
from edgellm.runtime.perplexity import surprise
from edgellm.runtime.question import Question, asked
from edgellm.runtime.session import Session

CELLS: dict[str, dict[str, Any]] = {
    "base": {},
    "tlm": {"objective": "tlm", "check": 0.0},
    "entropy": {"objective": "entropy", "check": 0.0},
    "tlm, judged": {"objective": "tlm"},
    "sytta static": {"objective": "sytta", "check": 0.0},
    "sytta dynamic": {"objective": "sytta", "reference": "dynamic", "check": 0.0},
    "sytta static, judged": {"objective": "sytta"},
    "entropy, k 16": {"objective": "entropy", "tokens": 16, "check": 0.0},
    "sytta static, k 16": {"objective": "sytta", "tokens": 16, "check": 0.0},
    "sytta dynamic, k 16": {"objective": "sytta", "reference": "dynamic", "tokens": 16, "check": 0.0},
}


def halves(path: Path, size: int, seed: int = 0) -> dict[str, list[dict[str, str]]]:
    """Two disjoint halves of `size` question and answer pairs; no question comes twice."""
    unique = {entry["question"].strip().lower(): entry for entry in json.loads(path.read_text(encoding="utf-8"))}
    pairs = [unique[key] for key in sorted(unique)]
    order = np.random.default_rng(seed).permutation(len(pairs))[: 2 * size]
    return {"adapted to": [pairs[i] for i in order[:size]], "held out": [pairs[i] for i in order[size:]]}


def token_f1(answer: str, reference: str) -> float:
    """SQuAD's, over lower-case words."""
    got, wanted = (re.findall(r"\w+", text.lower()) for text in (answer, reference))
    common = sum(min(got.count(word), wanted.count(word)) for word in set(got))
    return 2 * common / (len(got) + len(wanted)) if common else 0.0


def sentences(text: str) -> str:
    """A sentence a line, as ROUGE-Lsum wants it."""
    return "\n".join(re.split(r"(?<=[.!?])\s+", text.strip()))


def answer_nll(session: Session, question: Question, reference: str) -> float:
    """Mean nats a token of the reference answer."""
    ids = session.tokenizer.encode(reference, add_special_tokens=False).ids
    rows = [session.extend(question.ids)[None], *(session.chunks(ids[:-1]) if len(ids) > 1 else [])]
    return surprise(np.concatenate(rows), np.array(ids, np.int64)) / len(ids)


def measure(session: Session, pairs: list[dict[str, str]], most: int) -> list[dict[str, Any]]:
    """Every question answered and scored."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rouge1", "rougeL", "rougeLsum"], use_stemmer=True)
    found = []
    for pair in pairs:
        question = asked(session, pair["question"])
        answer = session.generate(question.ids, most).text
        scores = scorer.score(sentences(pair["answer"]), sentences(answer))
        one: dict[str, Any] = {name: 100 * score.fmeasure for name, score in scores.items()}
        one |= {"f1": 100 * token_f1(answer, pair["answer"]), "words": len(answer.split()), "answer": answer}
        found.append(one | {"nll": answer_nll(session, question, pair["answer"])})
    return found


def run(args: argparse.Namespace, cell: str) -> dict[str, Any]:
    """One cell: adapt to the first half, answer both."""
    session = load(args.bundle, threads=args.threads)
    data, begin = halves(args.data, args.size), time.process_time()
    result: dict[str, Any] = {"carrier": args.carrier, "rate": args.rate}
    adapter: Adapter | None = None
    if cell != "base":
        settings = CohortSettings(**{"rate": args.rate, "radius": args.radius, **CELLS[cell]})
        asking = [asked(session, pair["question"]) for pair in data["adapted to"]]
        try:
            found = carrier_of(args.carrier, args.bundle, session.manifest, args.threads)
            adapter, outcome = adapt_cohort(session, found, asking, settings)
            result |= {"steps": outcome.steps, "believed": outcome.believed}
        except EdgellmError as error:
            result["refused"] = error.what
    result["adapt_cpu_s"] = time.process_time() - begin
    session.use(adapter)
    return result | {half: measure(session, pairs, args.new_tokens) for half, pairs in data.items()}


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--only", nargs="*", default=list(CELLS), help=f"of {', '.join(CELLS)}")
    parser.add_argument("--carrier", default="prefix")
    parser.add_argument("--rate", type=float, default=CohortSettings.rate)
    parser.add_argument("--radius", type=float, default=CohortSettings.radius)
    parser.add_argument("--size", type=int, default=40)
    parser.add_argument("--new-tokens", type=int, default=48)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    path: Path = args.output
    results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for cell in args.only:
        name = cell if cell == "base" or args.carrier == "prefix" else f"{args.carrier}, {cell}"
        if name not in results:
            results[name] = run(args, cell)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(results), encoding="utf-8")


if __name__ == "__main__":
    main()
