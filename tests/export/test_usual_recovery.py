"""What an export does about its loss when it is not told."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from tests.bundles import calibration_file

from edgellm.export.config import ExportConfig
from edgellm.runtime.cli import main


class Stop(Exception):
    """Enough was seen."""


@pytest.mark.parametrize(
    ("flags", "recover", "whole"),
    [
        ([], "sparsegpt", False),
        (["--calibration", "text.txt"], "distill", False),
        (["--calibration", "text.txt", "--recover", "none"], "none", False),
        (["--calibration", "text.txt", "--recover", "sparsegpt"], "sparsegpt", False),
        (["--recover-minutes", "3"], "distill", True),
    ],
)
def test_a_text_of_ones_own_trains_blocks_and_minutes_the_whole(
    monkeypatch: pytest.MonkeyPatch, flags: list[str], recover: str, whole: bool
) -> None:
    asked: list[ExportConfig] = []

    def export(config: ExportConfig, *_: object) -> None:
        asked.append(config)
        raise Stop

    __import__("edgellm.export.command")
    monkeypatch.setattr(sys.modules["edgellm.export.command"], "export", export)
    done = CliRunner().invoke(main, ["export", "model", "out", "--bits", "4", *flags])
    assert isinstance(done.exception, Stop), done.output
    assert asked[0].recover == recover
    assert asked[0].trains_blocks == (recover == "distill")
    assert asked[0].trains_whole == whole


def test_the_recipe_of_a_bundle_says_so(tiny_model: Path, tmp_path: Path) -> None:
    text = calibration_file(tmp_path)
    given = ["export", str(tiny_model), str(tmp_path / "bundle"), "--bits", "4", "--calibration", str(text)]
    done = CliRunner().invoke(main, [*given, "--json"])
    assert done.exit_code == 0, done.output
    shown = CliRunner().invoke(main, ["inspect", str(tmp_path / "bundle"), "--json"])
    assert '"recover": "distill"' in shown.stdout


@pytest.mark.parametrize("asked", [["--recover-minutes", "3"], ["--distill", "coarse"]])
def test_training_that_is_asked_for_and_ruled_out_is_refused(asked: list[str], tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    done = CliRunner().invoke(main, ["export", "model", str(out), "--bits", "4", "--recover", "sparsegpt", *asked])
    assert done.exit_code == 2
    assert "--recover sparsegpt does not train" in done.stderr
    assert not out.exists()
