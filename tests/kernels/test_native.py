"""The C++ operators without ONNX Runtime, built for this machine and, under qemu-user, for aarch64."""

from __future__ import annotations

import itertools
import platform
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from edgellm.export.pack import pack
from edgellm.kernels import reference, sample_reference
from edgellm.kernels.attention_reference import Cache, pruned_kv_attention
from edgellm.kernels.control import SCORE, WINDOW, Control
from edgellm.kernels.kv_rows import to_rows
from edgellm.kernels.layout import Format
from tests.conftest import ROOT
from tests.kernels.operators import random_matrix

COMPILERS = {"host": "g++", "aarch64": "aarch64-linux-gnu-g++"}
# Files that CMakeLists.txt compiles with flags of their own.
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq"]
DOTPROD = ["-march=armv8.2-a+dotprod", "-ffp-contract=off"]
FLAGS = {
    "x86_64": {
        "avx2/isa.cc": AVX2,
        "avx_vnni/isa.cc": [*AVX2, "-mavxvnni"],
        "avx512/isa.cc": AVX512,
        "avx512_vnni/isa.cc": [*AVX512, "-mavx512vnni", "-mavx512vbmi", "-mavx512vbmi2"],
    },
    "aarch64": {
        "neon/attention.cc": ["-ffp-contract=off"],
        "neon/quantize.cc": ["-ffp-contract=off"],
        "neon/unpack.cc": ["-ffp-contract=off"],
        "neon/decode.cc": DOTPROD,
        "neon/dotprod.cc": DOTPROD,
        "neon/i8mm.cc": ["-march=armv8.2-a+dotprod+i8mm", "-ffp-contract=off"],
    },
}
# An emulated processor and what it must choose, best first; what it has not it must refuse.
ARM = {
    "max": ["neon_i8mm", "neon_dotprod", "portable"],
    "cortex-a76": ["neon_dotprod", "portable"],
    "cortex-a72": ["portable"],
}
SPARSITIES = [(1, 1, "in")] + [
    (n, m, axis) for n, m in ((2, 4), (4, 8), (1, 4), (3, 4), (2, 8), (3, 16), (5, 16)) for axis in ("in", "out")
]
FORMATS = [
    Format(32, 256, bits, group, zero, n, m, axis)
    for bits in (4, 8)
    for group in (32, 64, 128)
    for zero in ("symmetric", "min")
    for n, m, axis in SPARSITIES
] + [Format(21, 64, 4, 64), Format(48, 128, 8, 32, "min"), Format(24, 128, 4, 64, "symmetric", 4, 8, "out")]
SHAPES = [(4, 2, 16, 0, 0), (3, 1, 64, 5, 0), (2, 2, 24, 0, 30), (7, 1, 128, 0, 0)]  # heads … softcap
EVICTING = [
    Control(0, 0, 0, 0, sinks=2, policy=WINDOW),
    Control(0, 0, 0, 0, sinks=2, policy=SCORE, recent=3, norm=1),
    Control(0, 0, 0, 0, policy=SCORE, forget=0, heads=1),
    Control(0, 0, 0, 0, policy=SCORE, recent=6, queries=3, anchor=1, forget=900_000, heads=2),
]
ACTIVATIONS = ["none", "silu", "gelu_tanh"]


def header(*values: int) -> bytes:
    return np.array([*values, *[0] * (16 - len(values))], np.int64).tobytes()


def facts(f: Format) -> list[int]:
    return [f.n_out, f.k_in, f.bits, f.group, f.zero == "min", f.n, f.m, f.axis == "out"]


def product(f: Format, tiles: np.ndarray, x: np.ndarray, activation: str = "none") -> bytes:
    y = reference.nm_matmul(x, tiles, f, activation).astype(np.float32)  # GELU ends in float64
    sizes = header(0, *facts(f), len(x), ACTIVATIONS.index(activation))
    return b"".join([sizes, x.tobytes(), tiles.tobytes(), y.tobytes()])


def cases() -> bytes:
    rng, parts = np.random.default_rng(0), []
    for f in FORMATS:
        q = random_matrix(rng, f)
        tiles = pack(q)
        for rows, activation in ((1, "none"), (7, "none"), (3, "silu"), (5, "gelu_tanh"), (70, "none")):
            if (activation == "none" or f.n_out % 32 == 0) and (rows < 65 or (f.bits, f.group) == (4, 64)):
                x = rng.normal(size=(rows, f.k_in)).astype(np.float32)
                x[rows // 3 :: 3, :64] = 0  # nothing to scale
                parts.append(product(f, tiles, x, activation))
        dy = rng.normal(size=(7, f.n_out)).astype(np.float32)
        dx = reference.nm_matmul_t(dy, tiles, f)
        parts += [header(4, *facts(f), len(dy)), dy.tobytes(), tiles.tobytes(), dx.tobytes()]
        ids = rng.integers(0, f.n_out, 4)
        rows_of = reference.quant_gather(ids, tiles, f)
        parts += [header(1, *facts(f), 4), ids.tobytes(), tiles.tobytes(), rows_of.tobytes()]
        if f.zero == "symmetric":  # one input dwarfs all others of its 64, and its weights are 0
            q.code[:, 5] = f.zero_point
            x = rng.normal(size=(6, f.k_in)).astype(np.float32)
            x[2, 5] = 1e5
            parts.append(product(f, pack(q), x))
    for (heads, kv_heads, dim, window, softcap), policy, bits in itertools.product(SHAPES, EVICTING, (16, 8)):
        budget, steps, capacity = 12, 4, 20
        cache = Cache.empty(kv_heads, capacity, dim, policy.planes, bits)
        for buffer in (cache.key, cache.value):
            buffer[:] = to_rows(rng.normal(size=(kv_heads, capacity, dim)).astype(np.float32), buffer.dtype)
        cache.position[:] = np.r_[0:12, 12:16, 0:4]
        cache.score[:] = rng.random(cache.score.shape)
        qkv = rng.normal(size=(steps, (heads + 2 * kv_heads) * dim)).astype(np.float32)
        angle = rng.normal(size=(steps, dim // 2)).astype(np.float32)
        inputs = [qkv, np.cos(angle), np.sin(angle), np.arange(16, 20)]
        counted = 3 if policy.planes else 0
        row = np.array(policy._replace(committed=12, accepted=4, staged=budget, budget=budget, counted=counted))
        before = [buffer.tobytes() for buffer in vars(cache).values()]
        y = pruned_kv_attention(*inputs, row, cache, dim**-0.5, window, softcap)
        sizes = header(2, heads, kv_heads, dim, steps, capacity, dim // 2, window, softcap, policy.planes, bits)
        parts += [sizes, row.tobytes(), *(i.tobytes() for i in inputs), *before, y.tobytes()]
        parts += [cache.position.tobytes(), cache.score.tobytes()]
    for size in (1, 300, 5000):
        logits = rng.normal(size=size).astype(np.float32) * 3
        seen = np.arange(size // 3, size // 2)
        for temperature, top_k, top_p, min_p in (
            (0, 0, 1, 0), (1, 0, 1, 0), (1, 0, 0.9, 0), (0.7, 40, 0.9, 0.05), (1, 0, 1, 0.1), (1, 2000, 1, 0)
        ):  # fmt: skip
            settings = (temperature, top_k, top_p, min_p, 1.3)
            uniform = rng.random()
            token = sample_reference.sample(logits, *settings, seen.tolist(), uniform)
            real = np.array([temperature, top_p, min_p, 1.3, uniform, *sample_reference.uncertainty(logits)])
            parts += [header(3, size, len(seen), top_k, token), real.tobytes(), logits.tobytes(), seen.tobytes()]
        logits[-1] = np.nan
        parts += [header(3, size, 0, 0, -1), np.ones(8).tobytes(), logits.tobytes()]
    return b"".join(parts)


@pytest.fixture(scope="module")
def cases_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("native") / "cases"
    path.write_bytes(cases())
    return path


def build(target: str, folder: Path) -> Path:
    """The program that checks: tests/native/check.cc with all kernels of the target's processors."""
    compiler = COMPILERS[target]
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not installed (Debian: g++-aarch64-linux-gnu)")
    flags = ["-std=c++17", "-O2", "-static", f"-I{ROOT}"]
    machine = platform.machine() if target == "host" else target
    objects = []
    for source, own in FLAGS.get(machine, {}).items():
        objects.append(str(folder / f"{source.replace('/', '_')}.o"))
        one = [*own, "-c", str(ROOT / "kernels/cpu" / source), "-o", objects[-1]]
        subprocess.run([compiler, *flags, *one], check=True)
    sources = [str(path) for path in (*sorted((ROOT / "kernels/cpu").glob("*.cc")), ROOT / "tests/native/check.cc")]
    subprocess.run([compiler, *flags, *sources, *objects, "-o", str(folder / "check")], check=True)
    return folder / "check"


def passes(command: list[str], cases_file: Path, instruction_set: str = "") -> str:
    """The instruction set that all cases passed with, empty where the processor has none of that name."""
    arguments = [str(cases_file), *([instruction_set] if instruction_set else [])]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True)
    if done.returncode == 3:
        return ""
    assert done.returncode == 0, done.stdout + done.stderr
    name, _, counts = done.stdout.partition(": ")
    assert "0 failed" in counts
    assert int(counts.split()[0]) > 500
    return name


def test_operators_on_this_machine(tmp_path: Path, cases_file: Path) -> None:
    program = [str(build("host", tmp_path))]
    best = passes(program, cases_file)
    for name in {best, "avx512", "avx_vnni", "avx2", "portable"}:
        assert passes(program, cases_file, name) in (name, "")


def test_operators_on_arm(tmp_path: Path, cases_file: Path) -> None:
    """Every instruction set on processors that have it; those that have not fall back."""
    emulator = shutil.which("qemu-aarch64-static")
    if emulator is None:
        pytest.skip("qemu-aarch64-static is not installed (Debian: qemu-user-static)")
    program = str(build("aarch64", tmp_path))
    for processor, names in ARM.items():
        command = [emulator, "-cpu", processor, program]
        assert passes(command, cases_file) == names[0]
        for name in ARM["max"]:
            assert passes(command, cases_file, name) == (name if name in names else "")
