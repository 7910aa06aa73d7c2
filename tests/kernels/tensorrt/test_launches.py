"""What the plugins tell the driver: kernels, grids and arguments, against a driver that prints what it is told.

The names and orders below are the contract of kernels/gpu/README.md. No kernel runs.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from edgellm.devices.cuda import driver
from tests.conftest import ROOT

HERE = Path(__file__).parent
HEADERS = ROOT / "build" / "tensorrt" / "include"
PLUGINS = ROOT / "build" / "tensorrt" / "plugin" / "kernels" / "tensorrt" / "libedgellm_tensorrt.so"
FORMAT = {"BITS": 4, "GROUP": 64, "MINIMA": True, "N": 1, "M": 1, "OUT": False, "ACTIVATION": "none"}
POINTER = {"x": "*fp16", "tiles": "*u8", "bias": "*fp16", "residual": "*fp16", "y": "*fp16", "qkv": "*fp16"}
POINTER |= dict.fromkeys(("q_norm", "k_norm", "key", "value", "query"), "*fp16")
POINTER |= dict.fromkeys(("cos", "sin", "score", "extent", "sums", "logits"), "*fp32")
POINTER |= {"positions": "*i64", "control": "*i64", "position": "*i32", "scratch": "*i32"}
FLOATS = ("epsilon", "scale", "softcap")
KERNELS: dict[str, tuple[str, dict[str, Any]]] = {
    "nm_decode": ("x tiles bias residual y n_out k_in has_bias has_residual", FORMAT),
    "nm_rows": ("x tiles bias residual y rows n_out k_in has_bias has_residual", FORMAT | {"ROWS": 16, "PANELS": 2}),
    "commit": ("control key value position score scratch capacity planes", {"HEAD_DIM": 64}),
    "stage": (
        "qkv cos sin positions control q_norm k_norm key value position score query steps heads capacity half planes "
        "has_norm epsilon", {"HEAD_DIM": 64}),
    "attend_few": (
        "query positions control key value position extent sums logits steps heads capacity scale window softcap",
        {"HEAD_DIM": 64, "ROWS": 16}),
    "combine_few": (
        "positions control extent sums logits score y steps heads capacity planes", {"HEAD_DIM": 64, "GROUP": 4}),
    "attend_many": (
        "query positions control key value position extent y steps heads capacity scale window softcap",
        {"HEAD_DIM": 64}),
    "score_many": (
        "query positions control key position extent score steps heads capacity planes scale window softcap",
        {"HEAD_DIM": 64, "GROUP": 4}),
}  # fmt: skip


def kind(name: str) -> str:
    return POINTER.get(name, "fp32" if name in FLOATS else "i32")


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """launched("matmul", 1, …) -> the exit code, the lines of the launches, and stderr."""
    if not PLUGINS.is_file() or not HEADERS.is_dir() or shutil.which("g++") is None:
        pytest.skip("the plugins are not compiled: make tensorrt")
    folder = tmp_path_factory.mktemp("launch")
    table: dict[str, Any] = {}
    for entry, (names, constants) in KERNELS.items():
        (folder / "cubins" / "sm_87").mkdir(parents=True, exist_ok=True)
        listed = [[name, kind(name)] for name in names.split()]
        letters = "".join("p" if k[0] == "*" else "f" if k == "fp32" else "i" for _, k in listed)
        (folder / "cubins" / "sm_87" / f"{entry}.one.cubin").write_text(letters)
        shared = 65536 if entry == "attend_many" else 1024
        facts = {"entry": entry, "warps": 4, "arguments": listed, "constants": constants}
        table[f"{entry}.one"] = {**facts, "targets": {"sm_87": {"shared": shared}}}
        other = {**constants, "HEAD_DIM": 128, "BITS": 8}  # of another format, which must not be taken
        table[f"{entry}.another"] = {**facts, "constants": other, "targets": {"sm_87": {"shared": 1}}}
    (folder / "cubins" / "kernels.json").write_text(json.dumps(table, indent=1))
    stub = ["-idirafter", str(ROOT / "kernels" / "tensorrt" / "without_cuda")]
    flags = ["g++", "-std=c++17", "-w"]
    subprocess.run([*flags, "-shared", "-fPIC", HERE / "fake_cuda.cc", "-o", folder / "libcuda.so.1"], check=True)
    program = [HERE / "launch.cc", "-isystem", HEADERS, *stub, "-o", folder / "launch", "-ldl"]
    subprocess.run([*flags, *program], check=True)

    def run(what: str, tokens: int, driver: bool = True, cubins: str = "cubins") -> tuple[int, list[str], str]:
        environment = {**os.environ, "EDGELLM_CUBINS": str(folder / cubins)}
        environment["LD_LIBRARY_PATH"] = str(folder) if driver else ""
        done = subprocess.run(
            [folder / "launch", PLUGINS, what, str(tokens)],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout.splitlines(), done.stderr

    return run


def test_a_product_of_one_row_and_of_more(launched: Any) -> None:
    """n_out 200: 13 panels of 16; PANELS 2: 7 blocks. x, tiles and bias are inputs 0, 1 and 2; no residual."""
    assert launched("matmul", 1) == (
        0, ["nm_decode grid 13,1,1 threads 128 shared 1024: @1000 @2000 @3000 @0 @a000 200 128 1 0"], "")  # fmt: skip
    assert launched("matmul", 9) == (
        0, ["nm_rows grid 7,1,1 threads 128 shared 1024: @1000 @2000 @3000 @0 @a000 9 200 128 1 0"], "")  # fmt: skip


def test_decoding(launched: Any) -> None:
    """8 heads over 2; 600 slots are 3 splits; layer 3's control lies 3 rows of 13 int64 behind the first's."""
    code, lines, _ = launched("attention", 1)
    assert code == 0
    assert [line.split()[0] for line in lines] == ["commit", "stage", "attend_few", "combine_few"]
    control = f"@{0x5000 + 3 * 13 * 8:x}"
    workspace = 0x100000
    query = f"@{workspace + -(-2 * 2 * 600 * 4 // 256) * 256:x}"  # behind the scratch, from a 256-byte boundary
    buffers = "@6000 @7000 @8000"
    assert lines[0] == f"commit grid 2,1,1 threads 128 shared 1024: {control} {buffers} @9000 @{workspace:x} 600 2"
    staged = f"@1000 @2000 @3000 @4000 {control} @0 @0 {buffers} @9000 {query} 1 8 600 32 2 0 1e-05"
    assert lines[1] == f"stage grid 2,1,1 threads 128 shared 1024: {staged}"
    assert lines[2].startswith(f"attend_few grid 2,3,1 threads 128 shared 1024: {query} @4000 {control} {buffers} @")
    assert lines[2].endswith(" 1 8 600 0.125 7 30")
    assert lines[3].startswith("combine_few grid 2,3,1")
    assert lines[3].endswith(" @9000 @a000 1 8 600 2")
    extent, sums, logits = lines[2].split()[-9:-6]
    assert lines[3].split()[9:12] == [extent, sums, logits]
    places = [int(at[1:], 16) for at in (query, extent, sums, logits)]
    sizes = [2 * 4 * 64 * 2, 2 * 3 * 4 * 2 * 4, 2 * 3 * 4 * 64 * 4]
    assert all(b - a >= size for a, b, size in zip(places, places[1:], sizes, strict=False))  # none overlaps the next


def test_a_prompt(launched: Any) -> None:
    """40 tokens of 4 query heads are 160 rows, 3 blocks of 64; over 48 KiB of shared memory are asked for first."""
    code, lines, _ = launched("attention", 40)
    assert code == 0
    assert [" ".join(line.split()[:3]) for line in lines] == [
        "commit grid 2,1,1", "stage grid 2,3,1", "attend_many attribute 8", "attend_many grid 2,3,1",
        "score_many grid 2,10,1",
    ]  # fmt: skip
    assert lines[2] == "attend_many attribute 8 = 65536"


def test_what_is_missing_is_said(launched: Any) -> None:
    code, lines, said = launched("matmul", 100)  # nm_rows of 64 rows is not in the table
    assert (code, lines) == (1, [])
    assert "no kernel nm_rows of fp16 with the constants asked for" in said
    code, lines, said = launched("matmul", 1, cubins="nothing")
    assert (code, lines) == (1, [])
    assert "nothing/kernels.json" in said
    if driver() is None:
        code, lines, said = launched("matmul", 1, driver=False)
        assert (code, lines) == (1, [])
        assert "libcuda.so.1" in said
