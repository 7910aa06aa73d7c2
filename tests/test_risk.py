"""MGKD on tables (tests/benchmarks/risk): the losses against their definitions, and the whole on a table made here."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from tests.benchmarks.risk import __main__ as risk
from tests.benchmarks.risk import losses, metrics, model
from tests.benchmarks.risk.data import PRE_SERVICE, TARGET, read, split
from tests.benchmarks.risk.model import Mlp, Teaching, scorer, train, write_onnx


def table(file: Path, rows: int = 900) -> Path:
    """Defaults that the columns known late tell well, and those known early a little."""
    draws = np.random.default_rng(0)
    truth = draws.normal(size=rows)
    early = 0.5 * truth[:, None] + draws.normal(size=(rows, len(PRE_SERVICE)))
    late = 2 * truth[:, None] + draws.normal(size=(rows, 4))
    missed = (truth + 0.5 * draws.normal(size=rows) > 0.8).astype(np.float64)
    names = [*PRE_SERVICE, "PAY_0", "PAY_2", "PAY_3", "PAY_4", TARGET]
    np.savetxt(file, np.column_stack([early, late, missed]), "%.6g", ",", header=",".join(names), comments="")
    return file


def test_metrics_are_their_definitions() -> None:
    draws = np.random.default_rng(1)
    score, y = draws.integers(0, 20, 60).astype(np.float32), draws.integers(0, 2, 60).astype(np.float32)
    ones, zeros = score[y == 1], score[y == 0]
    pairs = [(a > b) + 0.5 * (a == b) for a in ones for b in zeros]
    assert metrics.auc(score, y) == pytest.approx(np.mean(pairs))
    gaps = [abs((ones >= cut).mean() - (zeros >= cut).mean()) for cut in np.unique(score)]
    assert metrics.ks(score, y) == pytest.approx(max(gaps))
    cuts = np.unique(score)[::-1]
    recall = [0.0] + [(ones >= cut).mean() for cut in cuts]
    precision = [y[score >= cut].mean() for cut in cuts]
    expected = sum((b - a) * p for a, b, p in zip(recall, recall[1:], precision, strict=False))
    assert metrics.ap(score, y) == pytest.approx(expected)
    mean, low, high = metrics.interval([1.0, 2.0, 3.0])
    assert (mean, high - mean) == pytest.approx((2, 4.303 / math.sqrt(3)))
    assert mean - low == pytest.approx(high - mean)


def test_losses_are_their_formulas() -> None:
    generator = torch.Generator().manual_seed(0)
    s, t = torch.randn(2, 6, generator=generator)
    own, told = torch.randn(2, 6, 8, generator=generator)
    y = torch.tensor([1.0, 0, 0, 1, 0, 0])
    w = losses.row_weights(y, torch.ones(6, dtype=torch.bool), True)
    assert w.tolist() == pytest.approx([math.sqrt(2), 1, 1, math.sqrt(2), 1, 1])
    p, q = (t / 2).sigmoid(), (s / 2).sigmoid()
    each = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    assert float(losses.soft(s, t, w)) == pytest.approx(float(4 * (w * each).mean()), rel=1e-4)
    known = torch.tensor([True, False, True, False, False, False])
    entropy = -(y * s.sigmoid().log() + (1 - y) * (1 - s.sigmoid()).log())
    assert float(losses.supervised(s, y, w, known)) == pytest.approx(float((w * entropy)[known].mean()), rel=1e-4)

    def likeness(states: torch.Tensor, d: int) -> torch.Tensor:
        others = [j for j in range(6) if j != d]
        cosines = torch.stack([torch.cosine_similarity(states[d], states[j], dim=0) for j in others])
        return (cosines / 0.2).softmax(0)

    expected = np.mean([float((a * (a / b).log()).sum()) for d in (0, 3)
                        for a, b in [(likeness(told, d), likeness(own, d))]])  # fmt: skip
    assert float(losses.fine(own, told, y == 1)) == pytest.approx(expected, rel=1e-4)
    assert float(losses.fine(own, told, torch.zeros(6, dtype=torch.bool))) == 0
    assert float(losses.own_average(s, s)) == pytest.approx(0, abs=1e-7)


def test_a_student_with_few_labels_learns_from_the_teachers_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "STEPS", 200)
    known, validation, test = split(read(table(tmp_path / "t.csv", 3000)), 0)
    x, y = torch.from_numpy(known.pre_service), torch.from_numpy(known.default)
    few = torch.zeros(len(y), dtype=torch.bool)
    few[:20] = True
    logits = 8 * (torch.from_numpy(known.in_service[:, 8:]).mean(1) - 1.6)  # a teacher that knows
    reached = []
    for granularities in ((), ("soft",)):
        torch.manual_seed(0)
        told = Teaching(x, y, few, logits, logits[:, None], granularities)
        student = train(Mlp(known.pre_service), told, (torch.from_numpy(validation.pre_service), validation.default), 0)
        reached.append(metrics.auc(student(torch.from_numpy(test.pre_service)).detach().numpy(), test.default))
    assert reached[1] > reached[0] + 0.02


def test_the_onnx_file_says_what_the_model_says(tmp_path: Path) -> None:
    columns = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32) * 1000
    torch.manual_seed(0)
    student = Mlp(columns).eval()
    write_onnx(student, tmp_path / "risk.onnx")
    expected = student(torch.from_numpy(columns)).sigmoid().detach().numpy()
    assert np.allclose(scorer(tmp_path / "risk.onnx")(columns), expected, atol=1e-6)


def test_the_table_has_every_student_and_its_difference_to_the_plain_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "STEPS", 20)
    monkeypatch.setattr(risk, "FEW", 40)
    out = tmp_path / "risk.json"
    ran = CliRunner().invoke(risk.main, [str(table(tmp_path / "t.csv")), "--seeds", "2", "-o", str(out)])
    assert ran.exit_code == 0, ran.output
    kinds = {row["kind"]: row for row in json.loads(out.read_text())["kinds"]}
    assert len(kinds) == 1 + 2 * len(risk.STUDENTS) * 2
    plain, soft = kinds["few/plain/even"], kinds["few/soft labels/weighted"]
    assert soft["auc over plain"][0] == pytest.approx(soft["auc"][0] - plain["auc"][0])
    (tmp_path / "bad.csv").write_text("AGE,SEX\n1,2\n")
    with pytest.raises(ValueError, match="LIMIT_BAL"):
        read(tmp_path / "bad.csv")
