"""Distillation: each granularity's loss falls, what is trained is what is stored, and a seed gives the same bytes."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from tests.bundles import calibration_file, make_bundle

from edgellm.export import block_recovery, distill, end_to_end, pipeline, recover
from edgellm.export.block_recovery import Goal, train_block
from edgellm.export.checkpoint import open_checkpoint
from edgellm.export.config import ExportConfig
from edgellm.export.decoder import forward, load_block
from edgellm.export.effort import effort
from edgellm.export.end_to_end import Plan, pace, train
from edgellm.export.level import Sparsity
from edgellm.export.packed_source import PackedSource, read_placed
from edgellm.export.pipeline import export
from edgellm.export.recovery_cost import planned_steps, whole_bytes
from edgellm.export.self_written import Held
from edgellm.export.straight_through import Latent
from edgellm.export.student import Student, backward, divergence
from edgellm.export.write import PartialBundle
from edgellm.runtime import load
from edgellm.runtime.cli import main
from edgellm.runtime.errors import EdgellmError, UsageError

SETTINGS: dict[str, Any] = {"sparsity": Sparsity.parse("dass:2:4"), "bits": 8, "recover_minutes": 1.0}


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a text of a few sequences makes some steps; and once through it is enough for a tiny model."""
    monkeypatch.setattr("edgellm.export.recovery_cost.MOST_EPOCHS", 1)
    for place in ("block_recovery", "end_to_end", "recovery_cost"):
        monkeypatch.setattr(f"edgellm.export.{place}.TOKENS_A_STEP", 256)
    monkeypatch.setattr(block_recovery, "RATE", 0.01)


def config(source: Path, out: Path, **settings: Any) -> ExportConfig:
    return ExportConfig(
        source, out, calibration=out.parent / "calibration.txt", recover="distill", **{**SETTINGS, **settings}
    )


@pytest.fixture(scope="module")
def updated(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model pruned and rounded by sparsegpt: where distillation starts."""
    out = tmp_path_factory.mktemp("updated") / "bundle"
    make_bundle(tiny_model, out, "dass:2:4", bits=8)
    return out


def student(tiny_model: Path, bundle: Path) -> tuple[Student, Held]:
    checkpoint = open_checkpoint(tiny_model)
    arch = checkpoint.architecture
    packed = PackedSource(bundle / "model.onnx.data", read_placed(bundle))
    names = [f"layers.{i}.{role}" for i in range(2) for role in ("q", "k", "v", "o", "gate", "up", "down")]
    latents = {name: Latent(packed.quantized(name), checkpoint.matrix(name)) for name in names}
    rest = Held(arch, packed, torch.float32, without=latents)
    return Student(arch, latents, rest), Held(arch, checkpoint, torch.float32)


def text(sequences: int = 24, length: int = 64, seed: int = 0) -> torch.Tensor:
    """Some tokens are much more frequent than others."""
    draws = torch.rand(sequences, length, generator=torch.Generator().manual_seed(seed))
    return (320 * draws.square()).long()


def test_rare_tokens_count_more() -> None:
    ids = torch.tensor([[5] * 90 + [7] * 9 + [3]])
    weights = distill.token_weights(ids, 320)
    assert weights.shape == ids.shape
    assert float(weights.mean()) == pytest.approx(1, abs=1e-5)
    # What position 98 predicts is there once, what position 0 predicts 90 times.
    assert float(weights[0, 98] / weights[0, 0]) == pytest.approx(math.sqrt(90), rel=1e-5)
    assert float(weights[0, 90] / weights[0, 0]) == pytest.approx(math.sqrt(10), rel=1e-5)


def test_losses_are_none_for_equals_and_divergences_for_others() -> None:
    a, b = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))
    assert float(distill.soft_labels(a, a)) == pytest.approx(0, abs=1e-6)
    p, q = (a / 2).softmax(-1), (b / 2).softmax(-1)
    expected = float(4 * (p * (p.log() - q.log())).sum())
    assert float(distill.soft_labels(b, a, 2.0)) == pytest.approx(expected, rel=1e-5)
    assert float(distill.representation(a, 3 * a)) == pytest.approx(0, abs=1e-6)
    assert float(distill.hidden(2 * a, a, torch.ones(5))) == pytest.approx(1, rel=1e-6)
    assert float(distill.hidden(2 * a, a, torch.tensor([5.0, 0, 0, 0, 0]))) == pytest.approx(1, rel=1e-6)


def test_a_block_comes_nearer_to_the_dense_one_and_keeps_its_mask(tiny_model: Path, updated: Path) -> None:
    own, teacher = student(tiny_model, updated)
    ids, arch = text(128), own.arch
    goal = Goal.of(arch, open_checkpoint(tiny_model), ids)
    x = goal.states.clone()
    goal.move_on(arch, 0, load_block(arch, teacher, 0))
    latents = {name.rpartition(".")[2]: latent for name, latent in own.latents.items() if name.startswith("layers.0.")}
    masks = {role: latent.mask.clone() for role, latent in latents.items() if latent.mask is not None}
    fixed = {role: own.rest.vector(f"layers.0.{role}") for role in arch.vectors}
    before, after = train_block(arch, 0, latents, fixed, x, goal, seed=0)
    assert after < 0.9 * before
    for role, mask in masks.items():
        assert (latents[role].quantized().mask == mask.numpy()).all()


@pytest.mark.parametrize("granularities", [("coarse",), ("fine",), ("coarse", "fine", "self")])
def test_every_granularity_falls_and_brings_the_student_nearer(
    tiny_model: Path, updated: Path, granularities: tuple[str, ...]
) -> None:
    own, teacher = student(tiny_model, updated)
    ids, held_out = text(256), text(seed=1)
    some = ids[:32]
    weights = distill.token_weights(some, 320)

    def losses() -> dict[str, float]:
        blocks = [own.block(i) for i in range(2)]
        return backward(own, blocks, teacher, some, weights, granularities, [])

    first, far = losses(), divergence(own, teacher, held_out)
    for latent in own.latents.values():
        latent.weight.grad = None
    train(own, teacher, ids, Plan(60, 1000.0, granularities, 0, 1.0))
    last = losses()
    assert set(first) == {"coarse": {"soft labels", "representation"}, "fine": {"fine"}}.get(
        granularities[0] if len(granularities) == 1 else "", {"soft labels", "representation", "fine"}
    )
    for name, loss in first.items():
        assert last[name] < 0.95 * loss, name
    assert divergence(own, teacher, held_out) < 0.95 * far


def test_the_students_average_teaches_when_it_is_asked_to(tiny_model: Path, updated: Path) -> None:
    moved = []
    for granularities in (("coarse",), ("coarse", "self")):
        own, teacher = student(tiny_model, updated)
        train(own, teacher, text(), Plan(8, 1000.0, granularities, 0, 1.0))
        moved.append(own.latents["layers.0.up"].weight.detach())
    assert not torch.equal(*moved)


def test_the_clock_ends_a_training_that_is_slower_than_planned(
    tiny_model: Path, updated: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = iter(range(0, 10_000, 10))
    monkeypatch.setattr(end_to_end.time, "monotonic", lambda: float(next(now)))
    own, teacher = student(tiny_model, updated)
    assert train(own, teacher, text(), Plan(1000, 100.0, ("coarse",), 0, 1.0)) == 9


def test_a_killed_training_goes_on_to_the_same_weights(
    tiny_model: Path, updated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, results = Plan(8, 1000.0, ("coarse", "fine", "self"), 0, 1.0), []
    monkeypatch.setattr(end_to_end, "SAVE_EVERY", 0.0)

    def killed(done: int, total: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    for state in (None, tmp_path / "state"):
        own, teacher = student(tiny_model, updated)
        if state is not None:
            with pytest.raises(KeyboardInterrupt):
                train(own, teacher, text(), plan, killed, state)
            own, teacher = student(tiny_model, updated)
        steps: list[int] = []
        train(own, teacher, text(), plan, lambda done, total, steps=steps: steps.append(done), state)
        results.append(own.latents["layers.1.down"].quantized())
    assert steps[0] == 5
    assert (results[0].code == results[1].code).all()
    assert (results[0].scale == results[1].scale).all()
    (tmp_path / "state").write_bytes(b"not safetensors")  # damaged: from the start
    own, teacher = student(tiny_model, updated)
    assert train(own, teacher, text(), plan, state=tmp_path / "state") == 8


def test_a_bundle_is_what_was_trained_and_a_seed_gives_its_bytes_again(tiny_model: Path, tmp_path: Path) -> None:
    calibration_file(tmp_path)
    kept: dict[str, Any] = {}
    inner = recover.train

    def noted(own: Student, *arguments: Any) -> int:
        steps = inner(own, *arguments)
        kept.update({name: latent.values().detach() for name, latent in own.latents.items()})
        return steps

    recover.train = noted
    try:
        facts = export(config(tiny_model, tmp_path / "one"))
    finally:
        recover.train = inner
    assert facts["recipe"]["recover"] == "distill"
    assert facts["recipe"]["distill_steps"] > 0
    packed = PackedSource(tmp_path / "one" / "model.onnx.data", read_placed(tmp_path / "one"))
    assert len(kept) == 14
    for name, values in kept.items():
        assert torch.equal(packed.matrix(name), values), name
    assert load(tmp_path / "one", verify=True).manifest.recipe.distill_steps == facts["recipe"]["distill_steps"]
    again = export(config(tiny_model, tmp_path / "two"))
    assert again["files"]["model.onnx.data"] == facts["files"]["model.onnx.data"]


def test_the_divergence_is_that_of_whole_logits(tiny_model: Path, updated: Path) -> None:
    own, teacher = student(tiny_model, updated)
    ids, packed = text(3, 80), PackedSource(updated / "model.onnx.data", read_placed(updated))
    p, q = (forward(own.arch, source, ids).double().log_softmax(-1) for source in (teacher, packed))
    assert divergence(own, teacher, ids) == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), rel=1e-3)


def test_nothing_is_fitted_to_the_text_that_judges(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calibration_file(tmp_path)
    judged, fitted = set[tuple[int, ...]](), set[tuple[int, ...]]()
    place, apart, train = pipeline._matrices, recover.divergence, recover.train

    def note(rows: set[tuple[int, ...]], ids: torch.Tensor) -> None:
        rows |= {tuple(row.tolist()) for row in ids}

    def placing(writing: Any, calibration: torch.Tensor, *more: Any) -> None:
        note(fitted, calibration)
        place(writing, calibration, *more)

    def judging(own: Student, teacher: Any, ids: torch.Tensor) -> float:
        note(judged, ids)
        return apart(own, teacher, ids)

    def training(own: Student, teacher: Any, ids: torch.Tensor, *more: Any) -> int:
        note(fitted, ids)
        return train(own, teacher, ids, *more)

    monkeypatch.setattr(pipeline, "_matrices", placing)
    monkeypatch.setattr(recover, "divergence", judging)
    monkeypatch.setattr(recover, "train", training)
    export(config(tiny_model, tmp_path / "bundle"))
    assert judged
    assert fitted
    assert not judged & fitted


def test_the_whole_goes_on_from_the_weights_that_blocks_left(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calibration_file(tmp_path)
    left, begun, dense = dict[str, torch.Tensor](), dict[str, torch.Tensor](), open_checkpoint(tiny_model)
    keep, train = block_recovery.save, recover.train

    def keeping(folder: Path, layer: int, latents: dict[str, Latent]) -> None:
        left.update({f"layers.{layer}.{role}": latent.weight.detach().clone() for role, latent in latents.items()})
        keep(folder, layer, latents)

    def training(own: Student, *more: Any) -> int:
        begun.update({name: latent.weight.detach().clone() for name, latent in own.latents.items()})
        return train(own, *more)

    monkeypatch.setattr(block_recovery, "save", keeping)
    monkeypatch.setattr(recover, "train", training)
    export(config(tiny_model, tmp_path / "bundle"))
    assert len(left) == len(begun) == 14
    for name, weight in begun.items():
        kept = left[name] != 0
        apart, moved = ((weight - other)[kept].norm() for other in (left[name], dense.matrix(name)))
        assert apart < 0.2 * moved, name


def test_the_nearer_the_student_the_smaller_its_steps(tiny_model: Path, updated: Path) -> None:
    assert [pace(apart) for apart in (0.01, 0.25, 7.0)] == [0.02, 0.5, 1.0]
    moved = []
    for share in (0.0, 0.01, 1.0):
        own, teacher = student(tiny_model, updated)
        before = {name: latent.weight.detach().clone() for name, latent in own.latents.items()}
        train(own, teacher, text(), Plan(4, 1000.0, ("coarse",), 0, share))
        moved.append(sum(float((own.latents[name].weight.detach() - was).norm()) for name, was in before.items()))
    assert moved[0] == 0 < 20 * moved[1] < moved[2]


def test_a_training_that_did_harm_is_dropped(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calibration_file(tmp_path)
    blocks = export(config(tiny_model, tmp_path / "blocks", recover_minutes=0))

    def harm(own: Student, *arguments: Any) -> int:
        with torch.no_grad():
            for latent in own.latents.values():
                latent.stretch += 0.5
        return 7

    monkeypatch.setattr(recover, "train", harm)
    facts = export(config(tiny_model, tmp_path / "bundle"))
    assert facts["recipe"]["distill_steps"] == 0
    assert facts["files"]["model.onnx.data"] == blocks["files"]["model.onnx.data"]


def test_the_command_line_says_what_to_distill(tiny_model: Path, tmp_path: Path) -> None:
    asked = ["export", str(tiny_model), str(tmp_path / "out"), "--bits", "4", "--recover", "distill"]
    for options, complaint in (
        (["--distill", "hard"], "granularities"),
        (["--distill", "coarse", "--recover-minutes", "0"], "fine"),
        (["--recover-minutes", "-1"], "minutes"),
    ):
        ran = CliRunner().invoke(main, [*asked, *options])
        assert ran.exit_code == 2
        assert complaint in ran.output


def test_switching_a_granularity_off_changes_the_result(tiny_model: Path, tmp_path: Path) -> None:
    calibration_file(tmp_path)
    data = set()
    for names, minutes in (("coarse,fine", 1), ("coarse", 1), ("fine", 0)):
        out = tmp_path / f"{names} {minutes}"
        facts = export(config(tiny_model, out, distill=distill.parse(names), recover_minutes=minutes))
        data.add(facts["files"]["model.onnx.data"]["sha256"])
        assert (facts["recipe"]["distill_steps"] > 0) == (minutes > 0)
    assert len(data) == 3


def test_matrices_kept_as_the_file_stores_them_stay_so(tiny_gguf: Path, tmp_path: Path) -> None:
    calibration_file(tmp_path)
    export(config(tiny_gguf, tmp_path / "bundle", bits=None))
    checkpoint = open_checkpoint(tiny_gguf)
    packed = PackedSource(tmp_path / "bundle" / "model.onnx.data", read_placed(tmp_path / "bundle"))
    for role in ("q", "o"):
        assert torch.equal(packed.matrix(f"layers.1.{role}"), checkpoint.matrix(f"layers.1.{role}")), role
    assert not torch.equal(packed.matrix("layers.1.up"), checkpoint.matrix("layers.1.up"))


def test_an_export_stopped_while_it_places_ends_in_the_same_bytes(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calibration_file(tmp_path)
    export(config(tiny_model, tmp_path / "straight"))
    placed: list[str] = []

    def stopped(bundle: PartialBundle, name: str, content: Any) -> None:
        if len(placed) == 3:
            raise KeyboardInterrupt
        placed.append(name)
        PartialBundle.replace(bundle, name, content)

    class Stopped(PartialBundle):
        replace = stopped

    with monkeypatch.context() as once:
        once.setattr(pipeline, "PartialBundle", Stopped)
        with pytest.raises(KeyboardInterrupt):
            export(config(tiny_model, tmp_path / "resumed"))
    monkeypatch.setattr(recover, "train", None)  # what was trained is there
    assert len(placed) == 3
    export(config(tiny_model, tmp_path / "resumed"))
    for name in ("model.onnx", "model.onnx.data"):
        assert (tmp_path / "resumed" / name).read_bytes() == (tmp_path / "straight" / name).read_bytes(), name


def test_minutes_are_steps_and_memory_is_told_before(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calibration_file(tmp_path)
    arch = open_checkpoint(tiny_model).architecture
    monkeypatch.setattr("edgellm.export.recovery_cost.MOST_EPOCHS", 10**9)
    short, long = (
        planned_steps(arch, config(tiny_model, tmp_path / "x", recover_minutes=minutes), 64, 256, 2)
        for minutes in (1, 2)
    )
    assert long == pytest.approx(2 * short, abs=1)
    wide, told = replace(arch, hidden=1024, ff=4096, layers=24), {}
    for name, settings in {
        "updated": {"recover": "sparsegpt", "recover_minutes": 0},
        "blocks": {"recover_minutes": 0},
        "whole": {},
    }.items():
        told[name] = effort(wide, replace(config(tiny_model, tmp_path / "x"), **settings), 0, cores=2)
    assert told["updated"].seconds < told["blocks"].seconds < told["whole"].seconds - 59
    assert told["updated"].memory_bytes < told["blocks"].memory_bytes < told["whole"].memory_bytes
    needed = whole_bytes(arch, config(tiny_model, tmp_path / "x"), 320, 256)
    assert needed > 5 * 4 * arch.parameters
    assert told["updated"].work_bytes == told["blocks"].work_bytes == 0 < told["whole"].work_bytes
    monkeypatch.setattr(recover, "available_bytes", lambda: needed // 2)
    with pytest.raises(EdgellmError, match="both models") as refused:
        export(config(tiny_model, tmp_path / "bundle"))
    assert "--recover-minutes 0" in refused.value.hint
    assert not (tmp_path / "bundle").exists()
    export(config(tiny_model, tmp_path / "bundle", recover_minutes=0))  # what it said helps


@pytest.mark.parametrize("named", ["", "coarse,", "hard", "fine,fine", "self"])
def test_granularities_that_cannot_be_are_refused(named: str) -> None:
    with pytest.raises(UsageError):
        distill.parse(named)


def test_blocks_only_without_the_fine_granularity_is_nothing(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="fine"):
        ExportConfig(tmp_path, tmp_path, bits=4, recover="distill", distill=("coarse",), recover_minutes=0)
    with pytest.raises(UsageError, match="minutes"):
        ExportConfig(tmp_path, tmp_path, recover_minutes=-1)
