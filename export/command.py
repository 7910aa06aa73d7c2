"""`edgellm export`: options, progress, and the report of what the bundle cost."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from edgellm.export.config import ExportConfig, Sparsity
from edgellm.export.pipeline import export
from edgellm.runtime.commands.output import print_json
from edgellm.runtime.errors import EdgellmError

_EXAMPLE = """\b
Examples:
  edgellm export SmolLM2-135M-Instruct.Q4_1.gguf bundle
  edgellm export ./SmolLM2-135M-Instruct bundle --sparsity dass:4:8 --bits 8 --calibration text.jsonl
"""


@click.command(name="export", epilog=_EXAMPLE)
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--sparsity", default="none", show_default=True, metavar="METHOD:N:M",
              help="Keep N of every M weights: dass:2:4, wanda:4:8, magnitude:2:4, none.")  # fmt: skip
@click.option("--scope", type=click.Choice(["mlp", "all"]), default="mlp", show_default=True,
              help="Prune the MLP only, or attention too.")  # fmt: skip
@click.option("--bits", type=click.Choice(["4", "8"]),
              help="Bits a weight. Default: what the file stores, if a tile can hold it, else 8.")  # fmt: skip
@click.option("--head-bits", type=click.Choice(["4", "8"]),
              help="Bits of embedding and head. Default: 8 with --bits, else as stored.")  # fmt: skip
@click.option("--kv", default="full", show_default=True, metavar="POLICY:BUDGET",
              help="The bundle's default KV cache: full, full:2048, window:512.")  # fmt: skip
@click.option("--calibration", type=click.Path(path_type=Path), metavar="FILE",
              help="Text, JSON list or JSON lines. Default: the dense model writes its own.")  # fmt: skip
@click.option("--seed", type=int, default=0, show_default=True, help="Of the text the model writes itself.")
@click.option("--force", is_flag=True, help="Replace OUT if it is a bundle.")
@click.option("--json", "as_json", is_flag=True, help="Print the manifest as one JSON object.")
def command(
    source: Path, out: Path, sparsity: str, scope: str, bits: str | None, head_bits: str | None, kv: str,
    calibration: Path | None, seed: int, force: bool, as_json: bool,
) -> None:  # fmt: skip
    """Turn a checkpoint into a bundle: SOURCE is a Hugging Face folder or a .gguf file, OUT the bundle's folder."""
    config = ExportConfig(
        source, out, Sparsity.parse(sparsity), scope, int(bits) if bits else None,
        int(head_bits) if head_bits else None, kv, calibration, seed, force,
    )  # fmt: skip
    started = time.perf_counter()
    console = Console(stderr=True)
    columns = TextColumn("{task.description:<20}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console) as bars:
        tasks: dict[str, Any] = {}

        def progress(step: str, done: int, total: int) -> None:
            if step not in tasks:
                tasks[step] = bars.add_task(step, total=total)
            bars.update(tasks[step], completed=done)

        try:
            facts = export(config, progress)
        except OSError as error:
            what = f"cannot read or write {error.filename or 'the bundle'}: {error.strerror or error}"
            raise EdgellmError(what, "Nothing was written. Free some space or give another OUT.") from error
    if as_json:
        print_json(facts)
        return
    report(facts, out, time.perf_counter() - started)


def report(facts: dict[str, Any], out: Path, seconds: float) -> None:
    """Print what the bundle weighs and what it lost, on stdout."""
    quality, parity = facts["quality"], facts["parity"]
    weights = sum(m["n_out"] * m["k_in"] for m in facts["matrices"])
    stored = sum(m["bytes"] for m in facts["matrices"])
    rows = [
        ("bundle", f"{out}, {sum(f['bytes'] for f in facts['files'].values()) / 1e6:.1f} MB in {seconds:.0f} s"),
        ("bits a weight", f"{8 * stored / weights:.2f} ({facts['recipe']['sparsity']}, bits {facts['recipe']['bits']}, "
                          f"head {facts['recipe']['head_bits']})"),
        ("perplexity", f"{quality['perplexity']:.2f}, dense model {quality['dense_perplexity']:.2f} "
                       f"({quality['tokens']} tokens {quality['text']})"),
        ("parity with torch", f"logits within {parity['logit_error']:.1e}, {parity['greedy_agreement']} of "
                              f"{parity['prompts']} greedy texts equal for {parity['tokens']} tokens"),
        ("next", f'edgellm generate {out} -p "Once upon a time"'),
    ]  # fmt: skip
    table = Table(show_header=False, box=None)
    for name, text in rows:
        table.add_row(name, text)
    Console().print(table)
