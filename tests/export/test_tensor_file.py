"""Files of an export's work: whole or not there, and a full disk is told in a line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors import SafetensorError
from safetensors.torch import load_file
from tests.bundles import calibration_file

from edgellm.export import tensor_file
from edgellm.runtime.cli import main


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    """As a limit on file sizes."""
    resource = pytest.importorskip("resource")
    file = tmp_path / "kept.safetensors"
    tensor_file.write(file, {"a": torch.arange(3)}, {"steps": "1"})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError, match=file.name) as raised:
            tensor_file.write(file, {"a": torch.zeros(4096)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert raised.value.filename == str(file)
    assert raised.value.strerror
    assert load_file(file)["a"].tolist() == [0, 1, 2]
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("when", [1, 3])  # of the files an export keeps: a block's latents, what training gave
def test_an_export_tells_of_it(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: int) -> None:
    save, asked = tensor_file.save_file, []

    def full(tensors: Any, file: Path, facts: Any = None) -> None:
        asked.append(file.name)
        if len(asked) > when:  # the first is the text
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
        save(tensors, file, facts)

    monkeypatch.setattr(tensor_file, "save_file", full)
    text = calibration_file(tmp_path)
    given = ["export", str(tiny_model), str(tmp_path / "bundle"), "--bits", "4", "--no-references"]
    done = CliRunner().invoke(main, [*given, "--calibration", str(text), "--recover-minutes", "0.1"])
    assert done.exit_code == 1, done.output
    assert "No space left on device" in done.stderr
    assert asked[-1].removesuffix(".new") in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "bundle").exists()
