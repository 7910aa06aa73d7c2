"""Every peer's files of a model, from the same GGUF file, under build/peers-models; and why some could not be made.

    python -m tests.benchmarks.peer_files MODEL.gguf

What is there is kept. A GGUF file that already is of the wanted kind (SmolLM2's Q4_1) is linked, not rounded again.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click

from tests.benchmarks.tied_gguf import tied

ROOT = Path(__file__).parents[2]
PEERS = ROOT / "build/peers"
PYTHON = PEERS / "bin/python"
OUT = ROOT / "build/peers-models"
Make = Callable[[Path, Path], None]  # (the GGUF file, what to write)


class NotMade(Exception):
    """A tool failed, in its own words."""


def run(*command: object) -> None:
    """Run a tool of the peers' environment, or ours. Raises NotMade with the last line it said."""
    if not Path(str(command[0])).exists():
        raise NotMade(f"{Path(str(command[0])).name} is not installed: make {PEERS.relative_to(ROOT)}/.ready")
    done = subprocess.run([*map(str, command)], cwd=ROOT, capture_output=True, text=True, errors="replace")
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise NotMade(said[-1][:300] if said else f"exit code {done.returncode}")


def packages() -> Path:
    """The peers' site-packages."""
    return next(iter((PEERS / "lib").glob("python3*/site-packages")), PEERS / "none")


def llama_cpp(kind: str) -> Make:
    """A GGUF file by llama.cpp's quantizer."""

    def make(source: Path, out: Path) -> None:
        if kind in source.name:
            out.symlink_to(source.resolve())
        else:
            run(PYTHON, "-m", "tests.benchmarks.peers.quantize", source, out, kind)

    return make


def ik_llama(kind: str) -> Make:
    """A GGUF file by ik_llama.cpp's quantizer."""

    def make(source: Path, out: Path) -> None:
        run(packages() / "ik_llama_cpp/bin/llama-quantize", "--allow-requantize", source, out, kind)

    return make


def hf_folder(source: Path) -> Path:
    """The Hugging Face folder of a GGUF file, made once."""
    out = OUT / source.stem / "hf"
    if not (out / "config.json").exists():
        run(sys.executable, "-m", "tests.benchmarks.hf_folder", source, out)
    return out


def ort_genai(precision: str, *options: str) -> Make:
    """A folder by ONNX Runtime GenAI's builder, run by our Python: it needs torch and transformers."""

    def make(source: Path, out: Path) -> None:
        builder = packages() / "onnxruntime_genai/models/builder.py"
        extra = ("--extra_options", *options) if options else ()
        cache = OUT / "cache"
        run(
            sys.executable,
            builder,
            "-i",
            hf_folder(source),
            "-o",
            out,
            "-p",
            precision,
            "-e",
            "cpu",
            "-c",
            cache,
            *extra,
        )

    return make


def openvino(kind: str) -> Make:
    """A folder by OpenVINO GenAI, of the Q4_0 or Q8_0 file that llama.cpp made."""

    def make(source: Path, out: Path) -> None:
        out.mkdir()
        gguf = out / "source.gguf"
        gguf.symlink_to((OUT / source.stem / f"llama_cpp-{kind}.gguf").resolve())
        run(PYTHON, "-m", "tests.benchmarks.peers.openvino_folder", gguf)
        gguf.unlink()

    return make


FILES: dict[str, Make] = {
    "llama_cpp-Q4_0.gguf": llama_cpp("Q4_0"),
    "llama_cpp-Q4_1.gguf": llama_cpp("Q4_1"),
    "llama_cpp-Q8_0.gguf": llama_cpp("Q8_0"),
    "ik_llama-Q4_0.gguf": ik_llama("Q4_0"),
    "ort_genai-int4": ort_genai("int4"),
    "ort_genai-int4-head8": ort_genai("int4", "algo_config=rtn", "matmul_mixed_precision=last_matmul:int8"),
    "ort_genai-int8": ort_genai("int8"),
    "openvino-int4": openvino("Q4_0"),
    "openvino-int8": openvino("Q8_0"),
}


def make_all(source: Path, files: dict[str, Make] = FILES) -> dict[str, str]:
    """Make what is missing; why not, by file, for what could not be made. Half-made files do not stay."""
    folder = OUT / source.stem
    folder.mkdir(parents=True, exist_ok=True)
    if not all((folder / name).exists() for name in files):
        source = tied(source, folder / "tied" / source.name)
    failed: dict[str, str] = {}
    for name, make in files.items():
        out, partial = folder / name, folder / f"partial-{name}"
        if out.exists():
            continue
        click.echo(f"making {name}", err=True)
        try:
            remove(partial)
            make(source, partial)
            os.rename(partial, out)
        except (NotMade, OSError) as error:
            failed[name] = str(error)
            remove(partial)
    return failed


def remove(path: Path) -> None:
    """Whatever is there, a folder's contents included."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@click.command()
@click.argument("source", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def main(source: Path) -> None:
    for name, why in make_all(source.absolute()).items():
        click.echo(f"not made: {name}: {why}", err=True)


if __name__ == "__main__":
    main()
