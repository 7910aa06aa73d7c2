"""A killed export goes on from its last whole block, and ends in the bytes it would have had."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from tests.bundles import calibration_file
from tests.conftest import ROOT

from edgellm.export import compress, pipeline
from edgellm.export.config import ExportConfig, Sparsity
from edgellm.export.journal import RECORD, Journal, fingerprint
from edgellm.export.pipeline import export
from edgellm.export.write import PartialBundle
from edgellm.kernels.layout import Format
from edgellm.runtime.cli import main
from edgellm.runtime.errors import EdgellmError

WEIGHTS = ("model.onnx", "model.onnx.data", "tokenizer.json")


def config(source: Path, out: Path, **settings: Any) -> ExportConfig:
    text = out.parent / "calibration.txt"
    chosen = {"sparsity": Sparsity.parse("dass:2:4"), "bits": 4, "calibration": text, **settings}
    return ExportConfig(source, out, **chosen)


def kill_after(layers: int, source: Path, out: Path) -> None:
    """Export in a process that kills itself when it would begin the next layer."""
    program = (
        "import os, signal, sys; from pathlib import Path; from tests.export.test_journal import config\n"
        "from edgellm.export import pipeline\n"
        "inner, left = pipeline.compress_layer, [int(sys.argv[3])]\n"
        "def counted(*arguments):\n"
        "    left[0] -= 1\n"
        "    return os.kill(os.getpid(), signal.SIGKILL) if left[0] < 0 else inner(*arguments)\n"
        "pipeline.compress_layer = counted\n"
        "pipeline.export(config(Path(sys.argv[1]), Path(sys.argv[2])))\n"
    )
    run = subprocess.run([sys.executable, "-c", program, str(source), str(out), str(layers)], cwd=ROOT, timeout=120)
    assert run.returncode == -signal.SIGKILL


@pytest.fixture
def layers_done(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Which layers this process's exports compressed."""
    done: list[int] = []

    def counted(settings: Any, checkpoint: Any, layer: int, *more: Any) -> Any:
        done.append(layer)
        return compress.compress_layer(settings, checkpoint, layer, *more)

    monkeypatch.setattr(pipeline, "compress_layer", counted)
    return done


def test_finished_blocks_are_kept_and_the_bytes_are_the_same(
    tiny_model: Path, tmp_path: Path, layers_done: list[int]
) -> None:
    calibration_file(tmp_path)
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    export(config(tiny_model, straight))
    whole = list(layers_done)
    kill_after(1, tiny_model, resumed)
    assert not resumed.exists()
    layers_done.clear()
    export(config(tiny_model, resumed))
    assert layers_done == whole[1:]  # the states entering layer 1 came through layer 0 as it was packed
    for name in WEIGHTS:
        assert (resumed / name).read_bytes() == (straight / name).read_bytes(), name
    assert sorted(path.name for path in tmp_path.iterdir()) == ["calibration.txt", "resumed", "straight"]


@pytest.mark.parametrize("change", ["recipe", "source", "calibration", "record", "data"])
def test_what_does_not_match_is_done_again(
    change: str, tiny_model: Path, tmp_path: Path, layers_done: list[int]
) -> None:
    text, out = calibration_file(tmp_path), tmp_path / "bundle"
    kill_after(1, tiny_model, out)
    settings: dict[str, Any] = {}
    work = tmp_path / ".bundle.partial"
    if change == "recipe":
        settings["bits"] = 8
    elif change == "source":
        again = tmp_path / "again"
        again.mkdir()
        for file in tiny_model.iterdir():
            (again / file.name).write_bytes(file.read_bytes())
        (again / "generation_config.json").write_text("{ }")
        tiny_model = again
    elif change == "calibration":
        text.write_text(text.read_text()[::-1])
    elif change == "record":
        (work / RECORD).write_text((work / RECORD).read_text()[:-9])
    else:
        data = work / "bundle.partial" / "model.onnx.data"
        os.truncate(data, data.stat().st_size - 1)
    export(config(tiny_model, out, **settings))
    assert layers_done[0] == 0
    assert not work.exists()


@pytest.mark.parametrize("error", [EdgellmError("no"), OSError(28, "No space left on device"), ImportError("gone")])
def test_only_a_fault_of_ours_leaves_its_work_behind(
    error: Exception, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layers_done: list[int]
) -> None:
    calibration_file(tmp_path)

    def fails(*arguments: object, **named: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "describe", fails)
        with pytest.raises(type(error)):
            export(config(tiny_model, tmp_path / "bundle"))
    assert not (tmp_path / "bundle").exists()
    kept = isinstance(error, ImportError)
    assert (tmp_path / ".bundle.partial").exists() == kept
    layers_done.clear()
    export(config(tiny_model, tmp_path / "bundle"))
    assert bool(layers_done) != kept


def test_an_interrupt_says_how_to_go_on(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text, work = calibration_file(tmp_path), tmp_path / ".bundle.partial"
    command = ["export", str(tiny_model), str(tmp_path / "bundle"), "--calibration", str(text), "--bits", "8"]

    def interrupted(*arguments: object, **named: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "decoder_graph", interrupted)
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 1
    assert "error: interrupted" in result.stderr
    assert "same command" in result.stderr
    placed = json.loads((work / RECORD).read_text())["placed"]
    assert "norm" in placed
    monkeypatch.undo()
    assert CliRunner().invoke(main, command).exit_code == 0
    assert not work.exists()


def test_the_journal_holds_what_was_placed(tmp_path: Path) -> None:
    form = Format(16, 64, 4, 64, n=2, m=4)
    with PartialBundle(tmp_path / "b").begin("key") as bundle:
        bundle.append("layers.0.q", [np.zeros(form.nbytes, np.uint8)], form)
        bundle.append("norm", [np.zeros(64, np.float32)])
        bundle.keep()
        assert Journal(bundle.work, "key").placed == {}  # no texts yet: an export keeps them first
        bundle.journal.keep_texts()
        assert Journal(bundle.work, "key").placed == bundle.journal.placed
        assert bundle.journal.placed["norm"].shape == (64,)
        assert Journal(bundle.work, "another").placed == {}


def test_the_fingerprint_is_of_contents_and_recipe_alone(tiny_model: Path, tmp_path: Path) -> None:
    calibration_file(tmp_path)
    one = fingerprint(config(tiny_model, tmp_path / "a"))
    assert fingerprint(config(tiny_model, tmp_path / "b", kv="full", force=True)) == one
    assert fingerprint(config(tiny_model, tmp_path / "a", seed=1)) != one
