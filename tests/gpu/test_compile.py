"""Compiling ahead of time, in processes of their own: there triton compiles, here it interprets."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgellm.kernels.gpu.compile import summary
from edgellm.kernels.gpu.variants import HEADS, TARGETS, WEIGHTS, chosen, format_name, format_named
from edgellm.kernels.layout import Format
from tests.conftest import ROOT

MAIN = "import runpy; runpy.run_module('edgellm.kernels.gpu.compile', run_name='__main__', alter_sys=True)"
ONE = """
from pathlib import Path
from edgellm.kernels.gpu.compile import write
from edgellm.kernels.gpu.variants import of_weights
write(Path(sys.argv[1]), of_weights("4g64-2of4out.bf16.fp32")[:1], (87, 120))
"""


def compile_to(out: Path, *options: str, code: str = MAIN) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(out.parent / "cache")}
    command = [sys.executable, "-c", f"import sys\n{code}", str(out), *options]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


def test_a_kernel_compiles_for_two_targets(tmp_path: Path) -> None:
    pytest.importorskip("triton", reason="triton is not installed: pip install 'edgellm[gpu-kernels]'")
    tmp_path = tmp_path / "out"
    done = compile_to(tmp_path, code=ONE)
    assert done.returncode == 0, done.stderr
    table = json.loads((tmp_path / "kernels.json").read_text())
    assert list(table) == ["nm_decode.4g64-2of4out.bf16.fp32"]
    decode = table["nm_decode.4g64-2of4out.bf16.fp32"]
    assert decode["arguments"] == [
        ["x", "*bf16"], ["tiles", "*u8"], ["bias", "*bf16"], ["residual", "*bf16"], ["y", "*fp32"],
        ["n_out", "i32"], ["k_in", "i32"], ["has_bias", "i32"], ["has_residual", "i32"],
    ]  # fmt: skip
    assert {**decode["constants"]} == {
        "BITS": 4, "GROUP": 64, "MINIMA": False, "N": 2, "M": 4, "OUT": True, "ACTIVATION": "none", "TILES": 4
    }  # fmt: skip
    for target in ("sm_87", "sm_120"):
        cubin = (tmp_path / target / "nm_decode.4g64-2of4out.bf16.fp32.cubin").read_bytes()
        assert cubin[:4] == b"\x7fELF"
        assert decode["entry"].encode() in cubin
        facts = decode["targets"][target]
        assert 16 < facts["registers"] <= 255
        assert facts["shared"] <= 48 * 1024  # weights are unpacked in registers: only sums and scales pass through it
        assert facts["spills"] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--targets", "75"], "targets are of 80, 86"),
        (["--weights", "4g64.relu"], "expected FORMAT"),
        (["--weights", "4g63"], "group is 63"),
        (["--heads", "64"], "expected HEAD_DIM:GROUP"),
    ],
)
def test_what_cannot_be_compiled_is_refused(tmp_path: Path, options: list[str], message: str) -> None:
    done = compile_to(tmp_path / "out", *options)
    assert done.returncode == 2
    assert message in done.stderr
    assert not (tmp_path / "out").exists()


def test_without_triton_the_error_says_what_to_install(tmp_path: Path) -> None:
    done = compile_to(tmp_path / "out", code=f"sys.modules['triton'] = None\n{MAIN}")
    assert done.returncode == 1
    assert "pip install 'edgellm[gpu-kernels]'" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_the_summary_has_a_line_a_kernel_and_tells_spills() -> None:
    facts = {"registers": 80, "shared": 2048, "spills": 0, "instructions": 9}
    table = {"a": {"warps": 4, "targets": {"sm_80": facts, "sm_87": facts | {"spills": 6}}}}
    assert summary(table).splitlines()[2] == "| a | 4 | 80, 2 | 80, 2, 6 spills |"


def test_names_of_formats_are_read_as_they_are_written() -> None:
    for f in (Format(16, 128, 8, 32), Format(16, 128, 4, 64, "min"), Format(16, 128, 4, 128, "symmetric", 4, 8, "out")):
        assert format_named(format_name(f)) == f


def test_what_is_usual_has_every_head_size_and_kernel() -> None:
    variants = chosen(WEIGHTS, HEADS)
    assert {v.constants["HEAD_DIM"] for v in variants if "HEAD_DIM" in v.constants} == {64, 80, 96, 128, 256}
    assert {v.entry for v in variants} == {
        "nm_decode", "nm_rows", "quant_gather", "commit", "stage", "attend_few", "combine_few", "attend_many",
        "score_many",
    }  # fmt: skip
    assert len(TARGETS) == 8
