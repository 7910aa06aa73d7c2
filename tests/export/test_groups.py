"""How many weights share a scale, and whether they have a minimum: --group and --symmetric."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from tests.bundles import calibration_file
from tests.conftest import write_folder

from edgellm.export.config import ExportConfig
from edgellm.export.journal import fingerprint
from edgellm.kernels.layout import GROUPS
from edgellm.runtime.cli import main
from edgellm.runtime.errors import UsageError

WIDE = dict(hidden_size=128, intermediate_size=256, head_dim=32)


def export(source: Path, out: Path, *flags: str) -> Result:
    return CliRunner().invoke(main, ["export", str(source), str(out), "--bits", "4", "--json", *flags])


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("symmetric", [False, True])
def test_every_matrix_has_the_groups_that_were_asked_for(tmp_path: Path, group: int, symmetric: bool) -> None:
    """Corrected and trained, and the bundle computes what torch does with the same weights."""
    source, text = write_folder(tmp_path / "model", **WIDE), calibration_file(tmp_path)
    flags = ["--head-bits", "4", "--calibration", str(text), "--group", str(group), "--no-references"]
    done = export(source, tmp_path / "bundle", *flags, *["--symmetric"] * symmetric)
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)
    assert {(m["group"], m["zero"]) for m in facts["matrices"]} == {(group, "symmetric" if symmetric else "min")}
    assert all(m["bytes"] * 8 == m["n_out"] * m["k_in"] * (4 + (16 if symmetric else 32) / group)
               for m in facts["matrices"] if m["n_out"] % 16 == 0)  # fmt: skip
    assert facts["parity"]["logit_error"] < 5e-3


def test_pruned_matrices_have_them_too(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "model", **WIDE)
    done = export(source, tmp_path / "bundle", "--sparsity", "magnitude:2:4", "--recover", "none", "--group", "128")
    assert done.exit_code == 0, done.output
    matrices = {m["name"]: m for m in json.loads(done.stdout)["matrices"]}
    assert {m["group"] for m in matrices.values()} == {128}
    assert (matrices["layers.0.down"]["zero"], matrices["layers.0.qkv"]["zero"]) == ("symmetric", "min")


def test_a_group_that_does_not_divide_the_inputs_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    done = export(tiny_model, tmp_path / "bundle", "--group", "128")
    assert done.exit_code == 1
    assert "64 inputs do not divide by 128" in done.stderr
    assert "--group" in done.stderr
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("given", [dict(group=128), dict(symmetric=True)])
def test_a_search_chooses_them_itself(given: dict[str, int], tmp_path: Path) -> None:
    flags = [f"--{name}" if value is True else f"--{name}={value}" for name, value in given.items()]
    done = CliRunner().invoke(main, ["export", "model", str(tmp_path / "out"), "--fit", "4.5bits", *flags])
    assert done.exit_code == 2
    assert "chooses groups and minima itself" in done.stderr


def test_there_are_three_sizes() -> None:
    with pytest.raises(UsageError, match="group is 48"):
        ExportConfig(Path("model"), Path("out"), group=48)


def test_another_group_is_another_export(tiny_model: Path, tmp_path: Path) -> None:
    prints = {fingerprint(ExportConfig(tiny_model, tmp_path, bits=4, **given))
              for given in (dict(), dict(group=32), dict(symmetric=True))}  # fmt: skip
    assert len(prints) == 3
