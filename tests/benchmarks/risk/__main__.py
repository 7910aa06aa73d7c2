"""AUC, KS and AP of students taught at each granularity, over seeds, with paired differences to the plain student and
to the one of soft labels alone.

    python -m tests.benchmarks.risk uci-credit-default.csv --seeds 10 -o build/bench/risk.json

Every number is of an ONNX file that ONNX Runtime scored, on the 30 % of rows held out. A seed is a split, a teacher and
a student of each kind, all from the same start. "few": the student knows 400 labels, and what the teacher says of all.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray

from tests.benchmarks.risk.data import Rows, read, split
from tests.benchmarks.risk.metrics import ap, auc, interval, ks
from tests.benchmarks.risk.model import Lesson, Mlps, Teaching, scorer, train, write_onnx

FEW = 400
METRICS = {"auc": auc, "ks": ks, "ap": ap}
STUDENTS: dict[str, tuple[str, ...]] = {
    "plain": (),
    "soft labels": ("soft",),
    "coarse": ("soft", "feature"),
    "fine": ("fine",),
    "self": ("self",),
    "all": ("soft", "feature", "fine", "self"),
}


LESSONS = [Lesson(names, reweight) for names in STUDENTS.values() for reweight in (False, True)]
KINDS = [f"{name}/{weights}" for name in STUDENTS for weights in ("even", "weighted")]


def measured(
    models: Mlps, k: int, columns: NDArray[np.float32], y: NDArray[np.float32], file: Path
) -> dict[str, float]:
    """The metrics of model k as ONNX Runtime scores these rows with its file."""
    write_onnx(models, k, file)
    score = scorer(file)(columns)
    return {name: metric(score, y) for name, metric in METRICS.items()}


def one_seed(rows: Rows, seed: int, file: Path) -> dict[str, dict[str, float]]:
    """Metrics by "teacher", and by "labels/student/weights", such as "few/soft labels/even"; file: for ONNX files."""
    known, validation, test = split(rows, seed)
    y, late, x = (torch.from_numpy(part) for part in (known.default, known.in_service, known.pre_service))
    every = torch.arange(len(y))
    torch.manual_seed(seed)
    alone = Teaching(late, y, every, y, y[:, None])
    check = torch.from_numpy(validation.in_service), validation.default
    teacher = train(Mlps(known.in_service), alone, [Lesson()], check, seed)
    found = {"teacher": measured(teacher, 0, test.in_service, test.default, file)}
    with torch.no_grad():
        states = teacher.states(late)
        logits = teacher.logits(states)[0]
    few = torch.from_numpy(np.random.default_rng(seed).choice(len(y), FEW, replace=False))
    check = torch.from_numpy(validation.pre_service), validation.default
    for labels, labelled in (("all", every), ("few", few)):
        torch.manual_seed(seed)
        told = Teaching(x, y, labelled, logits, states[0])
        students = train(Mlps(known.pre_service, len(LESSONS)), told, LESSONS, check, seed)
        for k, kind in enumerate(KINDS):
            found[f"{labels}/{kind}"] = measured(students, k, test.pre_service, test.default, file)
    return found


def summary(table: Path, rows: int, runs: list[dict[str, dict[str, float]]]) -> dict[str, Any]:
    """Means and deviations over seeds, and intervals of what each student has over the plain one."""
    facts: dict[str, Any] = {"table": table.name, "rows": rows, "seeds": len(runs), "few": FEW, "kinds": []}
    for kind in runs[0]:
        row: dict[str, Any] = {"kind": kind}
        others = {name: f"{kind.split('/')[0]}/{name}/even" for name in ("plain", "soft labels")}
        for metric in METRICS:
            values = [run[kind][metric] for run in runs]
            row[metric] = [float(np.mean(values)), float(np.std(values))]
            for name, other in others.items():
                if kind not in ("teacher", other) and len(runs) > 1:
                    row[f"{metric} over {name}"] = interval([run[kind][metric] - run[other][metric] for run in runs])
        facts["kinds"].append(row)
    return facts


@click.command()
@click.argument("table", type=Path)
@click.option("--seeds", default=10)
@click.option("-o", "--output", type=Path, default=Path("build/bench/risk.json"))
def main(table: Path, seeds: int, output: Path) -> None:
    torch.set_num_threads(1)
    rows = read(table)
    output.parent.mkdir(parents=True, exist_ok=True)
    runs: list[dict[str, dict[str, float]]] = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(seeds):
            runs.append(one_seed(rows, seed, Path(folder) / "risk.onnx"))
            facts = summary(table, len(rows.default), runs)
            output.write_text(json.dumps(facts, indent=1))
            print(f"seed {seed}: {json.dumps(runs[-1]['all/plain/even'])}", file=sys.stderr, flush=True)
    for row in facts["kinds"]:
        over = row.get("auc over plain")
        told = f"{over[0]:+.4f} [{over[1]:+.4f}, {over[2]:+.4f}]" if over else ""
        print(f"{row['kind']:28} " + "  ".join(f"{m} {row[m][0]:.4f}" for m in METRICS), told)


if __name__ == "__main__":
    main()
