"""The adaptation table: differences of the same questions, told apart from none by their interval."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks import adaptation_table


def rows(nats: float, step: float = 0.0, rouge: float = 20.0) -> list[dict[str, Any]]:
    """Thirty answers, every second one `step` further off."""
    answer = {"rouge1": rouge, "rougeL": rouge, "rougeLsum": rouge, "f1": rouge, "words": 3, "answer": "a b a"}
    return [answer | {"nll": nats + i + step * (-1) ** i} for i in range(30)]


def write(path: Path, **runs: dict[str, Any]) -> Path:
    path.write_text(json.dumps({name.replace("_", ", "): run for name, run in runs.items()}))
    return path


def test_runs_differ_from_base_question_by_question(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    base = {"adapted to": rows(3.0), "held out": rows(3.0)}
    farm = write(
        tmp_path / "farm.json",
        base=base,
        soft_tlm={"adapted to": rows(3.0), "held out": rows(3.0, rouge=21.0)},
        tlm={"adapted to": rows(2.9), "held out": rows(2.99, step=0.5)},
    )
    clinic = write(tmp_path / "clinic.json", base=base, tlm=base | {"refused": "nothing was learned"})
    out = tmp_path / "all.csv"
    monkeypatch.setattr(sys, "argv", ["adaptation_table", str(farm), str(clinic), "--csv", str(out)])
    adaptation_table.main()
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    assert table[0][1] == "farm, adapted to: nats"
    assert table[2] == ["tlm", "**-0.100**", "+0.00", "-0.010", "+0.00", "refused", "refused", "refused", "refused"]
    assert table[3] == ["soft, tlm", "+0.000", "+0.00", "+0.000", "**+1.00**", "", "", "", ""]
    with out.open(encoding="utf-8") as file:
        found = {(row["domain"], row["run"], row["half"]): row for row in csv.DictReader(file)}
    assert len(found) == 3 * (3 + 2)
    assert float(found["farm", "tlm", "both"]["nll_apart"]) == pytest.approx((-0.1 - 0.01) / 2)
    assert float(found["farm", "tlm", "adapted to"]["nll_apart_high"]) < 0
    held = found["farm", "tlm", "held out"]
    assert float(held["nll_apart_low"]) < 0 < float(held["nll_apart_high"])
    assert found["clinic", "tlm", "held out"]["refused"] == "1"
    assert float(held["distinct2"]) == pytest.approx(2 / 60, abs=1e-3)


def test_without_the_base_model_there_is_nothing_to_compare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    farm = write(tmp_path / "farm.json", tlm={"adapted to": rows(3.0), "held out": rows(3.0)})
    monkeypatch.setattr(sys, "argv", ["adaptation_table", str(farm)])
    with pytest.raises(SystemExit, match="--only base"):
        adaptation_table.main()
