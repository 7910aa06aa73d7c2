"""`edgellm eval --task`: a table of KV policies and budgets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

from edgellm.runtime import load
from edgellm.runtime.commands.output import note, print_json, progress_bar
from edgellm.runtime.errors import EdgellmError, UsageError
from edgellm.runtime.evaluation.branches import ROOM
from edgellm.runtime.evaluation.cells import cells
from edgellm.runtime.evaluation.picture import svg
from edgellm.runtime.evaluation.run import TEXT, Plan, evaluate
from edgellm.runtime.evaluation.summary import table
from edgellm.runtime.manifest import read_manifest

USUAL = ("vatp", "h2o,sinks=20", "window")


def run(
    bundle: Path, task: str, policies: Sequence[str], threads: int | None, verify: bool, as_json: bool,
    documents: Path | None, budgets: str, items: int, length: int, question: str, seed: int, against: str,
    results: Path | None, output: Path | None,
) -> None:  # fmt: skip
    """Evaluate, then say or draw the table. Raises UsageError for arguments that cannot be right."""
    if documents is None:
        raise UsageError("--task without --documents: there is no text to build it from", "Give a text or JSON file.")
    if output is not None and output.suffix != ".svg":
        raise UsageError(f"-o {output} is no .svg file", "The picture is an SVG.")
    manifest = read_manifest(bundle, verify)
    context = manifest.model.context
    wanted = cells(policies or USUAL, [one.strip() for one in budgets.split(",")], context, manifest.kv.budgets)
    session = load(bundle, kv=f"{ROOM}:{context}", threads=threads, manifest=manifest)
    plan = Plan(task, documents, length, question, seed)
    with progress_bar(task) as progress:
        found = evaluate(session, plan, wanted, items, results, progress)
    rows = table(found.rows, wanted, items, task == TEXT, against)
    prompt = float(np.mean([found.rows[item].prompt_tokens for item in range(items)]))
    score = "perplexity" if task == TEXT else "token F1" if task == "qa" else "found"
    facts = {"task": task, "question": question, "items": items, "prompt_tokens": prompt, "score": score, "cells": rows}
    if output is not None:
        try:
            output.write_text(
                svg(rows, f"{manifest.model.name}: {task}, {items} prompts of {prompt:.0f} tokens", score)
            )
        except OSError as error:
            raise EdgellmError(f"{output} cannot be written: {error.strerror}") from None
    if as_json:
        print_json(facts)
    else:
        show(rows, score)
        note(f"[{items} prompts of {prompt:.0f} tokens; 95 % intervals]")


def show(rows: Sequence[dict[str, Any]], score: str) -> None:
    """A line a cell on stdout."""
    wide = max(len(row["kv"]) for row in rows)
    click.echo(f"{'kv':{wide}}  {score:>10}  {'interval':>16}  of full")
    for row in rows:
        share = "-" if row["of_full"] is None else f"{row['of_full']:.1%}"
        line = f"{row['kv']:{wide}}  {row['score']:10.3f}  {row['low']:7.3f} - {row['high']:6.3f}  {share:>7}"
        if (paired := row.get("against")) and paired["kv"] != "full":
            line += f"  {paired['difference']:+.3f} ({paired['low']:+.3f} to {paired['high']:+.3f}) to {paired['kv']}"
        click.echo(line)
