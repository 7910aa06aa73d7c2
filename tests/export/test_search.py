"""`--fit`: sizes are kept to, the search only gains, the same seed finds the same, a kill costs no more than a step."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from tests.bundles import calibration_file, make_bundle
from tests.conftest import ROOT, write_folder

from edgellm.export import config, evopress, pipeline
from edgellm.export import search as searching
from edgellm.export import units as level_units
from edgellm.export.allocate import Choice, Option, allocate, size, smallest_first
from edgellm.export.bank import DENSE, Bank
from edgellm.export.budget import Budget
from edgellm.export.checkpoint import open_checkpoint
from edgellm.export.config import ExportConfig, Sparsity
from edgellm.export.decoder import forward
from edgellm.export.divergence import Divergence
from edgellm.export.estimate import Estimate
from edgellm.export.evopress import Parent, evolve, mutate
from edgellm.export.level import Level
from edgellm.export.units import nbytes, offered, units
from edgellm.runtime import load
from edgellm.runtime.cli import main
from edgellm.runtime.errors import EdgellmError, UsageError


@pytest.fixture(autouse=True)
def few_generations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evopress, "GENERATIONS", 3)
    monkeypatch.setattr(evopress, "OFFSPRING", 3)
    monkeypatch.setattr(config, "FROM_FILE", (10, 64))


def rows(seed: int, count: int = 12) -> list[list[Option]]:
    """Units of different sizes and sensitivities, three to six levels each."""
    draw = random.Random(seed)
    made = []
    for _ in range(count):
        weights, worth = draw.choice([64, 128, 512]) * 16, draw.random() ** 3
        bits = sorted(draw.sample([3.25, 4.25, 4.5, 5.0, 5.25, 8.25], draw.randint(3, 6)))
        made.append([Option(int(weights * b / 8), worth * 4.0 ** -(b - 4)) for b in bits])
    return made


def loss(options: list[list[Option]], choice: Choice) -> float:
    return sum(row[index].loss for row, index in zip(options, choice, strict=True))


@pytest.mark.parametrize("seed", range(20))
def test_allocation_keeps_to_the_budget_and_loses_less_than_any_uniform_recipe(seed: int) -> None:
    options = rows(seed)
    weights = [int(row[-1].nbytes / 8.25 * 8) if row[-1].nbytes % 33 == 0 else row[-1].nbytes for row in options]
    least, most = size(options, (0,) * len(options)), sum(row[-1].nbytes for row in options)
    for budget in (least, (least + most) // 2, most + 5):
        choice = allocate(options, weights, budget)
        assert size(options, choice) <= budget
        for level in range(3):
            uniform = (level,) * len(options)
            if size(options, uniform) <= budget:
                assert loss(options, choice) <= loss(options, uniform) + 1e-12
    assert choice == tuple(len(row) - 1 for row in options)  # room for everything


def test_by_size_alone_nothing_larger_fits() -> None:
    options = rows(3)
    least = size(options, (0,) * len(options))
    assert smallest_first(options, least - 1) is None
    for budget in (least, least + 1000, least + 5000):
        choice = smallest_first(options, budget)
        assert choice is not None
        room = budget - size(options, choice)
        rises = [row[i + 1].nbytes - row[i].nbytes for row, i in zip(options, choice, strict=True) if i + 1 < len(row)]
        assert 0 <= room < min(rises)


@pytest.mark.parametrize("seed", range(10))
def test_a_mutation_never_exceeds_the_budget(seed: int) -> None:
    options, draw = rows(seed), random.Random(seed)
    budget = size(options, (1,) * len(options))
    choice: Choice = (1,) * len(options)
    seen = set()
    for _ in range(50):
        choice = mutate(options, choice, budget, draw)
        assert size(options, choice) <= budget
        seen.add(choice)
    assert len(seen) > 10


def test_evolution_is_deterministic_only_gains_and_goes_on_where_it_was(tmp_path: Path) -> None:
    options = rows(1)
    budget = size(options, (1,) * len(options))
    start = (1,) * len(options)
    asked: list[int] = []

    def score(choices: list[Choice], stage: int) -> list[float]:
        asked.append(len(choices))
        return [loss(options, choice) + 1e-3 * stage for choice in choices]

    def run(name: str, seed: int = 0, minutes: float = 60) -> Parent:
        return evolve(options, start, budget, score, seed, minutes, tmp_path / name)

    one = run("one")
    assert replace(run("two"), seconds=0, longest=0) == replace(one, seconds=0, longest=0)
    assert run("three", seed=1).choice != one.choice
    assert one.loss == pytest.approx(loss(options, one.choice) + 1e-3)
    assert one.loss < loss(options, start) + 1e-3
    # A record of the first two generations: the others follow as they would have.
    evopress.GENERATIONS = 2
    run("half")
    evopress.GENERATIONS = 3
    asked.clear()
    assert replace(run("half"), seconds=0, longest=0) == replace(one, seconds=0, longest=0)
    assert len(asked) == 2  # two stages of one generation, and not the start again
    asked.clear()
    assert run("none", minutes=0).generation == 1  # how long one takes is not known before
    assert run("none", minutes=0).generation == 1
    (tmp_path / "damaged").write_text("{")
    assert replace(run("damaged"), seconds=0, longest=0) == replace(one, seconds=0, longest=0)


def test_evolution_keeps_a_start_that_nothing_beats(tmp_path: Path) -> None:
    options = rows(2)
    start = (1,) * len(options)
    best = lambda choices, stage: [0.0 if choice == start else 1.0 for choice in choices]  # noqa: E731
    found = evolve(options, start, size(options, start), best, 0, 60, tmp_path / "record")
    assert (found.choice, found.loss) == (start, 0.0)


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Bank:
    folder = tmp_path_factory.mktemp("bank")
    found = Bank(ExportConfig(tiny_model, folder), open_checkpoint(tiny_model), folder)
    found.fill(torch.randint(0, 320, (8, 64), generator=torch.Generator().manual_seed(0)))
    return found


def test_levels_of_the_bank_rise_in_bytes_and_fall_in_error(bank: Bank) -> None:
    nodes = [f"layers.0.{node}" for node in ("qkv", "o", "gate_up", "down")]
    assert [unit.name for unit in bank.units][:5] == ["embedding", *nodes]
    for unit, row in zip(bank.units, bank.kept, strict=True):
        sizes, errors = [kept.nbytes for kept in row], [kept.error for kept in row]
        assert sizes == sorted(set(sizes))
        assert errors == sorted(set(errors), reverse=True)
        assert {kept.level for kept in row} <= set(offered(bank.arch, unit, "sparsegpt"))
        assert all(kept.nbytes == nbytes(bank.arch, unit, kept.level) for kept in row)
    assert {kept.level.sparsity.method for kept in bank.kept[3]} == {"none", "sparsegpt"}
    assert {kept.level.sparsity.method for kept in bank.kept[0]} == {"none"}  # an embedding is not pruned


def test_the_bank_gives_the_weights_that_it_measured(bank: Bank) -> None:
    checkpoint = open_checkpoint(bank._config.source)
    dense = bank.source((DENSE,) * len(bank.units))
    smallest = bank.source((0,) * len(bank.units))
    gate = checkpoint.matrix("layers.1.gate")
    assert torch.equal(dense.matrix("layers.1.gate"), gate.half().float())
    off = smallest.matrix("layers.1.gate") - gate
    assert 0.05 < float(off.norm() / gate.norm()) < 0.9
    assert float((smallest.matrix("layers.1.gate") == 0).float().mean()) == pytest.approx(0.5, abs=0.02)
    assert torch.equal(smallest.matrix("embedding", slice(3, 9)), smallest.matrix("embedding")[3:9])


def test_a_kept_bank_knows_its_levels_when_others_are_offered(bank: Bank, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(level_units, "DENSE", (Level(4), Level(8)))
    again = Bank(bank._config, open_checkpoint(bank._config.source), bank._folder)
    again.fill(torch.zeros((1, 8), dtype=torch.int64))
    before = [[kept for kept in row if str(kept.level) not in ("4 in 32s", "4 symmetric")] for row in bank.kept]
    assert again.kept == before != bank.kept


def test_divergence_is_the_mean_kl_of_the_next_token(bank: Bank) -> None:
    ids = torch.randint(0, 320, (2, 20), generator=torch.Generator().manual_seed(1))
    dense = (DENSE,) * len(bank.units)
    one = (*dense[:4], 0, *dense[5:])
    two = tuple(len(row) - 1 for row in bank.kept)
    found = Divergence(bank, ids).of([dense, one, two, one])
    assert found[0] == pytest.approx(0, abs=1e-6)
    assert found[1] == found[3]
    p = forward(bank.arch, bank.source(dense), ids).double().log_softmax(-1)
    for choice, value in ((one, found[1]), (two, found[2])):
        q = forward(bank.arch, bank.source(choice), ids).double().log_softmax(-1)
        assert value == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), rel=1e-3)


@pytest.mark.parametrize(("text", "recover"), [("4.4bits", "sparsegpt"), ("4.4bits", "distill"), ("130kB", "distill")])
def test_the_bundle_has_what_was_found_and_is_no_larger(
    text: str, recover: str, tiny_model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "bundle"
    told: list[Estimate] = []
    config = ExportConfig(
        tiny_model, out, calibration=calibration_file(tmp_path), fit=Budget.parse(text), recover=recover,
        references=False,
    )  # fmt: skip
    facts = pipeline.export(config, announce=told.append)
    session = load(out, verify=True)
    matrices = session.manifest.matrices
    assert told[0].work_bytes > 2 * session.manifest.model.parameters
    assert told[0].weight_bytes == pytest.approx((out / "model.onnx.data").stat().st_size, rel=0.15)
    assert f"searched for {text}" in CliRunner().invoke(main, ["inspect", str(out)]).stdout
    if text == "130kB":
        assert told[0].bundle_bytes <= 130_000
        assert 0.8 * 130_000 < sum(path.stat().st_size for path in out.iterdir()) <= 130_000
    else:
        bits = 8 * sum(m.bytes for m in matrices) / sum(m.n_out * m.k_in for m in matrices)
        assert 4.2 < bits <= 4.4
    assert facts["recipe"]["fit"] == text
    assert facts["recipe"]["recover"] == recover
    recipe = session.manifest.recipe.levels
    assert set(recipe) == {name for unit in units(open_checkpoint(tiny_model).architecture) for name in unit.members}
    by_name = {m.name: m for m in matrices}
    for unit in units(open_checkpoint(tiny_model).architecture):
        level, m = recipe[unit.members[0]], by_name[unit.name]
        assert {recipe[name] for name in unit.members} == {level}
        assert str(m.bits) in level.split(" in ")[0]
        assert ("sparsegpt" in level) == (m.n < m.m)
        assert m.group == (32 if "32s" in level else 64)
    assert len(set(recipe.values())) > 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "calibration.txt"]


def test_the_same_seed_gives_the_same_bundle_and_a_killed_search_goes_on(tiny_model: Path, tmp_path: Path) -> None:
    """Killed between two generations: the bank and what was found are still there, and the bytes are the same."""
    calibration_file(tmp_path)
    program = (
        "import os, signal, sys; from pathlib import Path\n"
        "from tests.export.test_search import asked\n"
        "from edgellm.export import config, evopress, pipeline\n"
        "evopress.GENERATIONS, evopress.OFFSPRING, config.FROM_FILE = 3, 3, (10, 64)\n"
        "write = evopress._write\n"
        "def dying(record, parent):\n"
        "    write(record, parent)\n"
        "    parent.generation == 2 and os.kill(os.getpid(), signal.SIGKILL)\n"
        "evopress._write = dying\n"
        "pipeline.export(asked(Path(sys.argv[1]), Path(sys.argv[2])))\n"
    )
    out = tmp_path / "killed"
    run = subprocess.run([sys.executable, "-c", program, str(tiny_model), str(out)], cwd=ROOT, timeout=120)
    assert run.returncode == -signal.SIGKILL
    work = tmp_path / ".killed.partial"
    assert json.loads((work / "parent.json").read_text())["generation"] == 2
    banked = {path.name: path.stat().st_mtime_ns for path in (work / "bank").iterdir()}
    seen: list[dict[str, int]] = []

    def progress(step: str, done: int, total: int) -> None:
        if step == "search":
            seen.append({path.name: path.stat().st_mtime_ns for path in (work / "bank").iterdir()})

    facts = pipeline.export(asked(tiny_model, out), progress)
    assert seen[0] == banked  # nothing was compressed again
    straight = pipeline.export(asked(tiny_model, tmp_path / "straight"))
    assert facts["files"]["model.onnx.data"] == straight["files"]["model.onnx.data"]
    assert facts["recipe"] == straight["recipe"]
    assert not work.exists()


def asked(source: Path, out: Path) -> ExportConfig:
    return ExportConfig(
        source, out, calibration=out.parent / "calibration.txt", fit=Budget.parse("4.6bits"), references=False
    )


def test_what_was_packed_after_the_search_is_of_its_levels(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted while packing, the next export takes the levels that were found, without a search."""
    calibration_file(tmp_path)

    def stop(*arguments: Any, **named: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "decoder_graph", stop)
    with pytest.raises(KeyboardInterrupt):
        pipeline.export(asked(tiny_model, tmp_path / "bundle"))
    monkeypatch.undo()
    monkeypatch.setattr(searching, "Bank", stop)
    assert pipeline.export(asked(tiny_model, tmp_path / "bundle"))["recipe"]["fit"] == "4.6bits"


def test_a_size_that_nothing_has_is_refused_before_any_work(tiny_model: Path, tmp_path: Path) -> None:
    for text in ("40kB", "3.2bits"):
        with pytest.raises(EdgellmError, match="the smallest recipe takes"):
            make_bundle(tiny_model, tmp_path / "bundle", fit=Budget.parse(text))
    assert not (tmp_path / "bundle").exists()


def test_an_untied_head_is_a_unit_of_its_own(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "untied", tie_word_embeddings=False)
    facts = make_bundle(source, tmp_path / "bundle", fit=Budget.parse("5bits"), references=False)
    assert {"embedding", "head"} <= set(facts["recipe"]["levels"])


@pytest.mark.parametrize("text", ["", "70", "70 mb", "-3MB", "0MB", "4bit", "nanbits", "1e3kB"])
def test_sizes_that_are_none_are_usage_errors(text: str) -> None:
    with pytest.raises(UsageError, match="is not understood"):
        Budget.parse(text)


@pytest.mark.parametrize("settings", [{"bits": 4}, {"head_bits": 8}, {"sparsity": Sparsity.parse("wanda:2:4")}])
def test_what_the_search_chooses_cannot_be_given(settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="chooses bits and sparsity"):
        ExportConfig(Path("model"), Path("out"), fit=Budget.parse("4bits"), **settings)
