"""The house: imports run export -> runtime -> kernels -> devices, torch stays in export, files stay short."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ["export", "runtime", "kernels", "devices"]  # each may import itself and those to its right
EXPORT_ONLY = {"torch", "transformers", "optimum", "onnx", "gguf"}
# `edgellm export` is a verb of the command line: the lazy table names its module in a string, not an import.


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""


def violations(path: Path, room: str) -> list[str]:
    allowed = ROOMS[ROOMS.index(room) :]
    wrong = []
    for module in imported(path):
        top, _, rest = module.partition(".")
        if top == "edgellm" and rest.partition(".")[0] not in allowed:
            wrong.append(f"{path}: {room} imports {module}")
        if top in ROOMS:
            wrong.append(f"{path}: bare import of {module}")
        if top == "triton" and path.parent.name != "gpu":  # what it compiles is loaded by C++: no device has it
            wrong.append(f"{path}: only kernels/gpu imports triton")
        if top in EXPORT_ONLY and room != "export":
            wrong.append(f"{path}: {room} imports {module}")
    return wrong


@pytest.mark.parametrize("room", ROOMS)
def test_imports_run_one_way(room: str) -> None:
    files = list((ROOT / room).rglob("*.py"))
    assert files
    assert not [wrong for file in files for wrong in violations(file, room)]


def test_a_wrong_import_would_be_seen(tmp_path: Path) -> None:
    path = tmp_path / "bad.py"
    path.write_text("import torch\nfrom edgellm.export import pack\nimport kernels.layout\nimport triton\n")
    assert len(violations(path, "runtime")) == 4


def test_no_source_file_is_over_400_lines() -> None:
    folders = [*ROOMS, "tests"]
    files = [p for folder in folders for p in (ROOT / folder).rglob("*") if p.suffix in (".py", ".cc", ".h")]
    assert len(files) > 40
    assert not {str(p): n for p in files if (n := len(p.read_text(encoding="utf-8").splitlines())) > 400}


def test_there_is_no_folder_that_would_shadow_an_installed_wheel() -> None:
    assert not (ROOT / "edgellm").exists()
