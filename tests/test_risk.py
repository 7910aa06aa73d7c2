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
from tests.benchmarks.risk.model import Lesson, Mlps, Teaching, scorer, train, write_onnx


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
    assert losses.default_weight(y) == pytest.approx(math.sqrt(2))
    assert losses.default_weight(torch.eye(1, 500)[0]) == 10
    w = 1 + (math.sqrt(2) - 1) * y
    p, q = (t / 2).sigmoid(), (s / 2).sigmoid()
    each = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    both = torch.stack([s, t])  # two students: the second says what the teacher says
    assert losses.soft(both, t, w).tolist() == pytest.approx([float(4 * (w * each).mean()), 0], rel=1e-4, abs=1e-6)
    entropy = -(y * s.sigmoid().log() + (1 - y) * (1 - s.sigmoid()).log())
    assert float(losses.supervised(both, y, w)[0]) == pytest.approx(float((w * entropy).mean()), rel=1e-4)
    aligned = losses.feature(torch.stack([own, 2 * told]), told)
    assert aligned.tolist() == pytest.approx([float((1 - torch.cosine_similarity(own, told)).mean()), 0], abs=1e-6)

    def likeness(states: torch.Tensor, d: int) -> torch.Tensor:
        others = [j for j in range(6) if j != d]
        cosines = torch.stack([torch.cosine_similarity(states[d], states[j], dim=0) for j in others])
        return (cosines / 0.2).softmax(0)

    expected = np.mean([float((a * (a / b).log()).sum()) for d in (0, 3)
                        for a, b in [(likeness(told, d), likeness(own, d))]])  # fmt: skip
    assert losses.fine(torch.stack([own, told]), told, y == 1).tolist() == pytest.approx(
        [expected, 0], rel=1e-4, abs=1e-6
    )
    assert losses.fine(own[None], told, torch.zeros(6, dtype=torch.bool)).tolist() == [0]
    assert losses.own_average(both, both).tolist() == pytest.approx([0, 0], abs=1e-7)


def test_a_student_with_few_labels_learns_from_the_teachers_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "STEPS", 200)
    known, validation, test = split(read(table(tmp_path / "t.csv", 3000)), 0)
    x, y = torch.from_numpy(known.pre_service), torch.from_numpy(known.default)
    logits = 8 * (torch.from_numpy(known.in_service[:, 8:]).mean(1) - 1.6)  # a teacher that knows
    torch.manual_seed(0)
    told = Teaching(x, y, torch.arange(20), logits, logits[:, None])
    check = torch.from_numpy(validation.pre_service), validation.default
    students = train(Mlps(known.pre_service, 2), told, [Lesson(), Lesson(("soft",))], check, 0)
    scores = students(torch.from_numpy(test.pre_service)).detach().numpy()
    plain, taught = (metrics.auc(score, test.default) for score in scores)
    assert taught > plain + 0.02


def test_students_trained_beside_each_other_are_those_trained_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "STEPS", 250)
    known, validation, _ = split(read(table(tmp_path / "t.csv")), 0)
    x, y = torch.from_numpy(known.pre_service), torch.from_numpy(known.default)
    told = Teaching(x, y, torch.arange(len(y)), torch.linspace(-2, 2, len(y)), torch.rand(len(y), 4))
    lessons, check = [Lesson(), Lesson(("fine", "self"), True)], (x[:90], validation.default)
    said = []
    for group in (lessons, lessons[:1], lessons[1:]):
        torch.manual_seed(0)
        said.append(train(Mlps(known.pre_service, len(group)), told, group, check, 0)(x).detach())
    assert torch.allclose(said[0], torch.cat(said[1:]), atol=1e-4)


def test_the_onnx_file_says_what_the_model_says(tmp_path: Path) -> None:
    columns = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32) * 1000
    torch.manual_seed(0)
    students = Mlps(columns, 2).eval()
    with torch.no_grad():
        students.last_bias[1] += 1
    write_onnx(students, 1, tmp_path / "risk.onnx")
    expected = students(torch.from_numpy(columns))[1].sigmoid().detach().numpy()
    assert np.allclose(scorer(tmp_path / "risk.onnx")(columns), expected, atol=1e-6)


def test_the_table_has_every_student_and_its_difference_to_the_plain_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "STEPS", 50)
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
