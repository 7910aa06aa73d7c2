"""The C++ operators without ONNX Runtime, built for this machine and, under qemu-user, for aarch64."""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from edgellm.export.pack import pack
from edgellm.kernels import reference
from edgellm.kernels.layout import Format
from edgellm.kernels.reference import Cache
from tests.conftest import ROOT
from tests.kernels.operators import random_matrix

TARGETS = {"host": ("g++", []), "aarch64": ("aarch64-linux-gnu-g++", ["qemu-aarch64-static"])}
# Files that CMakeLists.txt compiles with flags of their own.
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq"]
FLAGS = {
    "x86_64": {
        "avx2/isa.cc": AVX2,
        "avx_vnni/isa.cc": [*AVX2, "-mavxvnni"],
        "avx512/isa.cc": AVX512,
        "avx512_vnni/isa.cc": [*AVX512, "-mavx512vnni", "-mavx512vbmi", "-mavx512vbmi2"],
    }
}
FORMATS = [
    Format(48, 128, bits, group, zero, n, m, axis)
    for bits, group in ((4, 64), (8, 32), (4, 128))
    for zero in ("symmetric", "min")
    for n, m, axis in ((1, 1, "in"), (2, 4, "in"), (4, 8, "in"), (2, 4, "out"), (4, 8, "out"), (3, 16, "in"))
] + [Format(21, 64, 4, 64), Format(32, 64, 8, 64)]


def header(*values: int) -> bytes:
    return np.array([*values, *[0] * (16 - len(values))], np.int64).tobytes()


def facts(f: Format) -> list[int]:
    return [f.n_out, f.k_in, f.bits, f.group, f.zero == "min", f.n, f.m, f.axis == "out"]


def cases() -> bytes:
    rng, parts = np.random.default_rng(0), []
    for f in FORMATS:
        tiles = pack(random_matrix(rng, f))
        for rows, activation in ((1, "none"), (5, "none"), (31, "none"), (3, "silu")):
            if activation == "none" or f.n_out % 32 == 0:
                x = rng.normal(size=(rows, f.k_in)).astype(np.float32)
                x[rows // 2, 5] *= 1e4 if rows == 5 else 1  # dwarfs its neighbours: a second plane
                y = reference.nm_matmul(x, tiles, f, activation)
                parts += [header(0, *facts(f), rows, activation == "silu"), x.tobytes(), tiles.tobytes(), y.tobytes()]
        ids = rng.integers(0, f.n_out, 4)
        rows_of = reference.quant_gather(ids, tiles, f)
        parts += [header(1, *facts(f), 4), ids.tobytes(), tiles.tobytes(), rows_of.tobytes()]
    for heads, kv_heads, dim, window, softcap in (
        (4, 2, 16, 0, 0),
        (3, 1, 64, 5, 0),
        (9, 1, 80, 0, 0),
        (7, 7, 24, 0, 30),
    ):
        budget, steps, capacity = 12, 4, 20
        shape = (kv_heads, capacity, dim)
        cache = Cache(*(rng.normal(size=shape).astype(np.float16) for _ in "kv"), np.zeros(shape[:2], np.int32))
        cache.position[:] = np.r_[0:12, 12:16, 0:4]
        draw = [rng.normal(size=(steps, n * dim)).astype(np.float32) for n in (heads, kv_heads, kv_heads)]
        angle = rng.normal(size=(steps, dim // 2)).astype(np.float32)
        inputs = [*draw, np.cos(angle), np.sin(angle), np.arange(16, 20)]
        control = np.array([12, 4, budget, 2, reference.WINDOW])
        before = [cache.key.tobytes(), cache.value.tobytes(), cache.position.tobytes()]
        y = reference.pruned_kv_attention(*inputs, control, cache, dim**-0.5, window, softcap)
        sizes = header(2, heads, kv_heads, dim, steps, capacity, dim // 2, window, softcap, *control)
        parts += [sizes, *(i.tobytes() for i in inputs), *before, y.tobytes()]
    return b"".join(parts)


@pytest.mark.parametrize("target", TARGETS)
def test_operators(target: str, tmp_path: Path) -> None:
    compiler, emulator = TARGETS[target]
    for tool in (compiler, *emulator):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed (Debian: g++-aarch64-linux-gnu, qemu-user-static)")
    sources = sorted((ROOT / "kernels/cpu").glob("*.cc"))
    flags = ["-std=c++17", "-O2", "-static", f"-I{ROOT}"]
    objects: list[str] = []
    for source, own in FLAGS.get(platform.machine() if target == "host" else target, {}).items():
        objects.append(str(tmp_path / f"{source.replace('/', '_')}.o"))
        one = [*own, "-c", str(ROOT / "kernels/cpu" / source), "-o", objects[-1]]
        subprocess.run([compiler, *flags, *one], check=True)
    program = tmp_path / "check"
    built = [str(path) for path in (*sources, ROOT / "tests/native/check.cc")]
    subprocess.run([compiler, *flags, *built, *objects, "-o", str(program)], check=True)
    (tmp_path / "cases").write_bytes(cases())
    done = subprocess.run([*emulator, str(program), str(tmp_path / "cases")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert "0 failed" in done.stdout
    assert int(done.stdout.split(": ")[1].split()[0]) > 100
