"""AUC, KS and AP of students taught at each granularity, over seeds, with paired differences to the plain student.

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

from tests.benchmarks.risk.data import Rows, read, split
from tests.benchmarks.risk.metrics import ap, auc, interval, ks
from tests.benchmarks.risk.model import Mlp, Teaching, scorer, train, write_onnx

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


def measured(model: Mlp, rows: Rows, early: bool, folder: Path) -> dict[str, float]:
    """The metrics of a model as its ONNX file scores the rows."""
    write_onnx(model, folder / "risk.onnx")
    score = scorer(folder / "risk.onnx")(rows.pre_service if early else rows.in_service)
    return {name: metric(score, rows.default) for name, metric in METRICS.items()}


def one_seed(rows: Rows, seed: int, folder: Path) -> dict[str, dict[str, float]]:
    """Metrics by "teacher", and by "labels/student/weights", such as "few/soft labels/even"."""
    known, validation, test = split(rows, seed)
    y, late, x = (torch.from_numpy(part) for part in (known.default, known.in_service, known.pre_service))
    every = torch.ones(len(y), dtype=torch.bool)
    nobody = torch.zeros(len(y))
    torch.manual_seed(seed)
    alone = Teaching(late, y, every, nobody, nobody[:, None])
    teacher = train(Mlp(known.in_service), alone, (torch.from_numpy(validation.in_service), validation.default), seed)
    found = {"teacher": measured(teacher, test, False, folder)}
    with torch.no_grad():
        logits, states = teacher(late), teacher.states(late)
    few = torch.zeros(len(y), dtype=torch.bool)
    few[torch.from_numpy(np.random.default_rng(seed).choice(len(y), FEW, replace=False))] = True
    check = torch.from_numpy(validation.pre_service), validation.default
    for labels, mask in (("all", every), ("few", few)):
        for name, granularities in STUDENTS.items():
            for reweight in (False, True):
                torch.manual_seed(seed)
                told = Teaching(x, y, mask, logits, states, granularities, reweight)
                student = train(Mlp(known.pre_service), told, check, seed)
                found[f"{labels}/{name}/{'weighted' if reweight else 'even'}"] = measured(student, test, True, folder)
    return found


@click.command()
@click.argument("table", type=Path)
@click.option("--seeds", default=10)
@click.option("-o", "--output", type=Path, default=Path("build/bench/risk.json"))
def main(table: Path, seeds: int, output: Path) -> None:
    torch.set_num_threads(1)
    rows = read(table)
    runs: list[dict[str, dict[str, float]]] = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(seeds):
            runs.append(one_seed(rows, seed, Path(folder)))
            print(f"seed {seed}: {json.dumps(runs[-1]['all/plain/even'])}", file=sys.stderr, flush=True)
    facts: dict[str, Any] = {"table": table.name, "rows": len(rows.default), "seeds": seeds, "few": FEW, "kinds": []}
    for kind in runs[0]:
        row: dict[str, Any] = {"kind": kind}
        plain = f"{kind.split('/')[0]}/plain/even"
        for metric in METRICS:
            values = [run[kind][metric] for run in runs]
            row[metric] = [float(np.mean(values)), float(np.std(values, ddof=1))]
            if kind not in ("teacher", plain):
                row[f"{metric} over plain"] = interval([run[kind][metric] - run[plain][metric] for run in runs])
        facts["kinds"].append(row)
        over = row.get("auc over plain")
        told = f"{over[0]:+.4f} [{over[1]:+.4f}, {over[2]:+.4f}]" if over else ""
        print(f"{kind:28} " + "  ".join(f"{m} {row[m][0]:.4f}" for m in METRICS), told)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(facts, indent=1))


if __name__ == "__main__":
    main()
