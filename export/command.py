"""`edgellm export`: options, progress, and the report of what the bundle cost."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from edgellm.devices.profile import HOST, Recipe
from edgellm.export.budget import Budget
from edgellm.export.config import FIT_MINUTES, RECOVER, ExportConfig, usual_recovery
from edgellm.export.distill import parse
from edgellm.export.estimate import Estimate
from edgellm.export.fit import size
from edgellm.export.level import GROUP, Sparsity
from edgellm.export.pipeline import export
from edgellm.kernels.layout import GROUPS
from edgellm.runtime.bundle_files import ENGINE, ENGINE_GRAPH
from edgellm.runtime.commands.devices import find_device
from edgellm.runtime.commands.inspect import bits_per_weight
from edgellm.runtime.commands.output import print_json
from edgellm.runtime.engine_build import build_estimate
from edgellm.runtime.errors import EdgellmError
from edgellm.runtime.schema import ENGINE_OPERATORS, ENGINES, Matrix
from edgellm.runtime.tensorrt_module import installed

_EXAMPLE = """\b
Examples:
  edgellm export SmolLM2-135M-Instruct.Q4_1.gguf bundle
  edgellm export ./SmolLM2-135M-Instruct bundle --sparsity dass:4:8 --bits 8 --calibration text.jsonl
  edgellm export ./SmolLM2-135M-Instruct bundle --fit 70MB --calibration text.jsonl --max-loss 0.2
"""


@click.command(name="export", epilog=_EXAMPLE)
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--device", "device_name", default=HOST, show_default=True, metavar="NAME",
              help="What the bundle must fit, and where defaults come from: a name from edgellm devices.")  # fmt: skip
@click.option("--sparsity", metavar="METHOD:N:M",
              help="Keep N of every M weights: dass:2:4, wanda:4:8, none. Default: the device's.")  # fmt: skip
@click.option("--scope", type=click.Choice(["mlp", "all"]), default="mlp", show_default=True,
              help="Prune the MLP only, or attention too.")  # fmt: skip
@click.option("--bits", type=click.Choice(["4", "8"]),
              help="Bits a weight. Default: what the file stores, if a tile can hold it, else 8.")  # fmt: skip
@click.option("--head-bits", type=click.Choice(["4", "8"]),
              help="Bits of embedding and head. Default: 8 with --bits, else as stored.")  # fmt: skip
@click.option("--group", type=click.Choice([str(group) for group in GROUPS]), default=str(GROUP), show_default=True,
              help="Inputs that share a scale: more take less room, and lose more.")  # fmt: skip
@click.option("--symmetric", is_flag=True,
              help="No minima beside the scales of dense weights at 4 bits: 4.25 bits a weight for 4.5, 4.125 with "
                   "--group 128.")  # fmt: skip
@click.option("--kv", metavar="POLICY:BUDGET",
              help="The bundle's default KV cache: full, or POLICY:BUDGET[,SETTING=VALUE], e.g. vatp:512. "
                   "Default: the device's.")  # fmt: skip
@click.option("--kv-bits", type=click.Choice(["16", "8"]), default="16", show_default=True,
              help="Bits of the cache's keys and values: 8 is about half the memory.")  # fmt: skip
@click.option("--calibration", type=click.Path(path_type=Path), metavar="FILE",
              help="Text, JSON list or JSON lines. Default: the dense model writes its own.")  # fmt: skip
@click.option("--recover", type=click.Choice(RECOVER),
              help="What wins back the loss below 8 bits and of pruning: sparsegpt lets later weights make good what "
                   "earlier ones lost; distill also trains them towards the dense model; none searches scales "
                   "only. Default: distill with --calibration or --recover-minutes, else sparsegpt.")  # fmt: skip
@click.option("--distill", metavar="LIST", default=",".join(ExportConfig.distill), show_default=True,
              help="With --recover distill: coarse (soft labels, final states), fine (states after every block, and "
                   "training block by block first), self (the student's own average).")  # fmt: skip
@click.option("--recover-minutes", type=float, default=ExportConfig.recover_minutes, show_default=True,
              help="With --recover distill: time for training the whole model, after its blocks; 0: none.")  # fmt: skip
@click.option("--fit", metavar="SIZE",
              help="Search the recipe that loses least in a bundle of at most SIZE, 70MB, or bits a weight, 4.5bits: "
                   "each matrix dense, 4:8 or 2:4, at 8 or 4 bits.")  # fmt: skip
@click.option("--fit-minutes", type=float, default=FIT_MINUTES, show_default=True,
              help="What the search may take after its levels are compressed and measured.")  # fmt: skip
@click.option("--max-loss", type=float, metavar="R",
              help="Write nothing if perplexity is above 1 + R times the dense model's on held-out text.")  # fmt: skip
@click.option("--references/--no-references", default=None,
              help="Measure dense layers of 4 and 3 bits beside. Default: where matrices are corrected.")  # fmt: skip
@click.option("--adapt", is_flag=True,
              help="Also write what test-time adaptation needs: the gradient graph, and when to adapt.")  # fmt: skip
@click.option("--engine", type=click.Choice(["none", *ENGINES]), default="none", show_default=True,
              help="Also a graph for TensorRT, and its engine where it can be built here: tensorrt-rtx for a PC's RTX "
                   "card, tensorrt for a Jetson, where edgellm build-engine finishes it.")  # fmt: skip
@click.option("--engine-operators", type=click.Choice(ENGINE_OPERATORS), default="standard", show_default=True,
              help="What that graph is made of: standard operators with a full KV cache, or our plugins.")  # fmt: skip
@click.option("--seed", type=int, default=0, show_default=True,
              help="Of the text the model writes itself, of training and of the search.")  # fmt: skip
@click.option("--force", is_flag=True, help="Replace OUT if it is a bundle.")
@click.option("--json", "as_json", is_flag=True, help="Print the manifest as one JSON object.")
def command(
    source: Path, out: Path, device_name: str, sparsity: str | None, scope: str, bits: str | None,
    head_bits: str | None, group: str, symmetric: bool, kv: str | None, kv_bits: str, calibration: Path | None,
    recover: str | None, distill: str, recover_minutes: float, fit: str | None, fit_minutes: float,
    max_loss: float | None, references: bool | None, adapt: bool, engine: str, engine_operators: str, seed: int,
    force: bool, as_json: bool,
) -> None:  # fmt: skip
    """Turn a checkpoint into a bundle: SOURCE is a Hugging Face folder or a .gguf file, OUT the bundle's folder."""
    device = find_device(device_name)
    preset = Recipe() if fit else device.recipe  # which says nothing of what the search chooses
    config = ExportConfig(
        source, out, Sparsity.parse(sparsity or preset.sparsity), scope, int(bits) if bits else preset.bits,
        int(head_bits) if head_bits else None, kv, calibration, seed, force,
        recover or usual_recovery(calibration, recover_minutes), device,
        kv_bits=int(kv_bits), adapt=adapt, fit=Budget.parse(fit) if fit else None, fit_minutes=fit_minutes,
        max_loss=max_loss, references=references, distill=parse(distill), recover_minutes=recover_minutes,
        engine=engine, engine_operators=engine_operators, group=int(group), symmetric=symmetric,
    )  # fmt: skip
    started = time.perf_counter()
    console = Console(stderr=True)
    columns = TextColumn("{task.description:<20}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console) as bars:
        tasks: dict[str, Any] = {}
        told: list[Estimate] = []

        def progress(step: str, done: int, total: int) -> None:
            if step not in tasks:
                tasks[step] = bars.add_task(step, total=total)
            bars.update(tasks[step], completed=done)

        def announce(expected: Estimate) -> None:
            told.append(expected)
            bars.console.print(estimate_table(expected, config))

        try:
            facts = export(config, progress, announce)
        except OSError as error:
            what = f"cannot read or write {error.filename or 'the bundle'}: {error.strerror or error}"
            raise EdgellmError(what, "Nothing was written. Free some space or give another OUT.") from error
        except KeyboardInterrupt:
            raise EdgellmError("interrupted", "The same command goes on after the last finished layer.") from None
    if as_json:
        print_json({**facts, "estimate": asdict(told[0]) if told else None})
        return
    report(facts, out, time.perf_counter() - started)


def estimate_table(expected: Estimate, config: ExportConfig) -> Table:
    """What the export will give and take, for people."""
    device = config.device
    room = "" if device.usable_bytes is None else f" of {size(device.usable_bytes)} for a model"
    speed = f"not known: the bandwidth of {device.name} is not"
    if expected.tokens_per_s is not None and expected.tokens_per_s_full_cache is not None:
        speed = (
            f"at most {expected.tokens_per_s:.0f} tokens/s, {expected.tokens_per_s_full_cache:.0f} with a full cache"
        )
        speed += f" ({device.bandwidth_gb_s:g} GB/s)"
    work = f", and {size(expected.work_bytes)} beside it while it is made" if expected.work_bytes else ""
    rows = [
        ("device", device.name if device.name == device.title else f"{device.name}: {device.title}"),
        ("bundle", size(expected.bundle_bytes) + work),
        ("memory there", f"{size(expected.device_bytes)}{room}; KV cache {size(expected.kv_bytes)} ({expected.kv})"),
        ("speed there", speed),
        ("memory here", f"{size(expected.host_bytes)}, {size(expected.host_mapped_bytes)} of it mapped files"),
        ("time here", f"roughly {duration(expected.seconds)}"),
    ]
    if config.engine != "none":
        there = "here" if installed(config.engine) else "on the device"
        takes = f"building it takes about {size(build_estimate(expected.weight_bytes))} of memory {there}"
        rows.append(("engine", takes if config.engine_operators == "standard" else "weights stay outside of it"))
    table = Table(show_header=False, box=None, title="estimate", title_justify="left")
    for row in rows:
        table.add_row(*row)
    return table


def duration(seconds: float) -> str:
    """Seconds for people, as rough as the estimate: "40 s", "7 min", "3 h"."""
    if seconds < 90:
        return f"{max(1, round(seconds, -1)):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.0f} h"


def engine_line(engine: dict[str, Any], files: dict[str, Any], out: Path) -> str:
    """What became of --engine, in one line."""
    checked = engine["parity"] and f"; its graph is within {engine['parity']['logit_error']:.1e} of torch"
    if engine["built"] is None:
        return f"{ENGINE_GRAPH}{checked or ''}. On the device: edgellm build-engine {out}"
    made = f"{files[ENGINE]['bytes'] / 1e6:.1f} MB, {engine['kind']} {engine['built']['version']}"
    return f"{made} for {', '.join(engine['built']['compute_capabilities'])}{checked or ''}"


def report(facts: dict[str, Any], out: Path, seconds: float) -> None:
    """Print what the bundle weighs and what it lost, on stdout."""
    quality, parity, recipe = facts["quality"], facts["parity"], facts["recipe"]
    matrices = [Matrix(**matrix) for matrix in facts["matrices"]]
    made = f"{recipe['sparsity']}, bits {recipe['bits']}, head {recipe['head_bits']}"
    made = f"searched for {recipe['fit']}" if recipe.get("fit") else made
    dense = quality["dense_perplexity"]

    def lost(perplexity: float) -> str:
        return f"{perplexity:.2f}, {100 * (perplexity / dense - 1):+.1f} %"

    rows = [
        ("bundle", f"{out}, {sum(f['bytes'] for f in facts['files'].values()) / 1e6:.1f} MB in {seconds:.0f} s"),
        ("bits a weight", f"{bits_per_weight(matrices):.2f} ({made})"),
        ("perplexity", f"{lost(quality['perplexity'])}; dense model {dense:.2f} "
                       f"({quality['tokens']} tokens {quality['text']})"),
        *((one["name"], f"{lost(one['perplexity'])}, at {one['bits_per_weight']:.2f} bits a weight, "
                        f"{one['bytes'] / 1e6:.1f} MB of weights") for one in quality.get("references", ())),
        ("parity with torch", f"logits within {parity['logit_error']:.1e}, {parity['greedy_agreement']} of "
                              f"{parity['prompts']} greedy texts equal for {parity['tokens']} tokens"),
        ("next", f'edgellm generate {out} -p "Once upon a time"'),
    ]  # fmt: skip
    if engine := facts["engine"]:
        rows.insert(-1, ("engine", engine_line(engine, facts["files"], out)))
    table = Table(show_header=False, box=None)
    if facts["graph"] == "optimum":
        rows[-2] = ("parity with torch", f"{rows[-2][1]}, before rounding")
        named = f'"{facts["model"]["architecture"]}" is not in the table'
        rows.insert(0, ("fallback", f"{named}: Optimum's graph, dense, of standard operators"))
    for name, text in rows:
        table.add_row(name, text)
    Console().print(table)
