"""`edgellm inspect`: what a bundle holds."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from edgellm.runtime.bundle_files import (
    ADAPT,
    CHAT_TEMPLATE,
    GRAPH,
    HEAD,
    LORA,
    LORA_GRAPH,
    REPORT,
    SOFT,
    TABLES,
    TOKENIZER,
    WEIGHTS,
)
from edgellm.runtime.commands.options import bundle_argument, json_option, verify_option
from edgellm.runtime.commands.output import print_json
from edgellm.runtime.manifest import read_manifest
from edgellm.runtime.schema import Manifest, Matrix

PARTS = {WEIGHTS: "weights", GRAPH: "graph", TOKENIZER: "tokenizer", TABLES: "tokenizer"}
PARTS |= {CHAT_TEMPLATE: "chat_template", REPORT: "report"}
PARTS |= dict.fromkeys((ADAPT, SOFT, LORA, LORA_GRAPH, HEAD), "adapt")
GROUPS = {"q": "attention", "k": "attention", "v": "attention", "o": "attention", "qkv": "attention"}
GROUPS |= {"gate": "mlp", "up": "mlp", "gate_up": "mlp", "down": "mlp"}


@click.command("inspect")
@bundle_argument
@verify_option
@json_option
def command(bundle: Path, verify: bool, as_json: bool) -> None:
    """Show a bundle's model, recipe, quality and sizes. Reads no weights, unless to --verify them.

    \b
    edgellm inspect bundle --verify
    """
    manifest = read_manifest(bundle, verify)
    if as_json:
        print_json(facts(manifest))
    else:
        show(bundle, manifest, verify)


def facts(manifest: Manifest) -> dict[str, Any]:
    """The keys of `inspect --json`: the manifest's own, "bytes" by part, and "bits_per_weight" by layer group."""
    groups: dict[str, list[Matrix]] = defaultdict(list)
    for matrix in manifest.matrices:
        groups[GROUPS.get(role(matrix), role(matrix))].append(matrix)
    sizes: dict[str, int] = defaultdict(int)
    for name, file in manifest.files.items():
        sizes[PARTS.get(name, "other")] += file.bytes
    sizes["total"] = sum(file.bytes for file in manifest.files.values())
    bits = {"overall": bits_per_weight(manifest.matrices)}
    bits |= {group: bits_per_weight(members) for group, members in groups.items()}
    return {**asdict(manifest), "bytes": dict(sizes), "bits_per_weight": bits}


def role(matrix: Matrix) -> str:
    """ "layers.3.q" -> "q"; "embedding" stays."""
    return re.sub(r"^layers\.\d+\.", "", matrix.name)


def bits_per_weight(matrices: Iterable[Matrix]) -> float:
    """Stored bits, scales and masks included, a weight of the dense matrix; 0 for none."""
    found = list(matrices)
    weights = sum(m.n_out * m.k_in for m in found)
    return sum(m.bytes for m in found) * 8 / weights if weights else 0.0


def show(bundle: Path, manifest: Manifest, verified: bool) -> None:
    """The table for people, on stdout."""
    from rich.console import Console
    from rich.table import Table

    model, recipe, kv, found = manifest.model, manifest.recipe, manifest.kv, facts(manifest)
    table = Table(show_header=False, box=None, title=f"{bundle}  ({model.name})", title_justify="left")
    sizes = f"{model.layers} layers, hidden {model.hidden}, {model.heads}/{model.kv_heads} heads, ff {model.ff}"
    table.add_row("model", f"{model.architecture}, {model.parameters / 1e6:.1f} M parameters, {sizes}")
    if manifest.graph == "optimum":
        told = (
            "Optimum's, a fallback: the architecture is outside edgellm's table. Dense, standard operators, full cache"
        )
        table.add_row("graph", told)
    table.add_row("context", f"{model.context} tokens, vocabulary {model.vocabulary}")
    scope = f", {recipe.scope}" if recipe.sparsity != "none" else ""
    updated = f", {recipe.recover}" if recipe.recover != "none" else ""
    made = f"{recipe.sparsity}{scope}, {recipe.bits} bits, head {recipe.head_bits} bits"
    table.add_row("recipe", (f"searched for {recipe.fit}" if recipe.fit else made) + updated)
    table.add_row("source", f"{recipe.source}, edgellm {manifest.tool}, {manifest.created}")
    spread = f" ({min(kv.budgets)} to {max(kv.budgets)} a layer)" if kv.budgets else ""
    table.add_row("KV cache", f"{kv.policy}, {kv.budget} tokens{spread}, {kv.bits} bits")
    if manifest.adapt and (gate := manifest.adapt.gate):
        asked = f"{gate.prompts} questions" if gate.chat else f"{gate.prompts} pieces of text"
        told = f"where doubt is above {gate.entropy:.2f} and surprise above {gate.nll:.2f} nats a token ({asked})"
        table.add_row("adapts", told)
    table.add_row("files", ", ".join(f"{part} {size / 1e6:.1f} MB" for part, size in found["bytes"].items()))
    if quality := manifest.quality:
        against = f"{quality.perplexity:.3f}, dense {quality.dense_perplexity:.3f}"
        table.add_row("perplexity", f"{against} ({quality.tokens} tokens of {quality.text})")
        for one in quality.references:
            table.add_row(one.name, f"{one.perplexity:.3f} at {one.bits_per_weight:.2f} bits a weight")
    if parity := manifest.parity:
        agree = f"{parity.greedy_agreement} of {parity.prompts} prompts agree greedily"
        before = " (before rounding)" if manifest.graph == "optimum" else ""
        table.add_row("parity", f"logit error {parity.logit_error:.1e}, {agree}{before}")
    if verified:
        table.add_row("verified", "every file's SHA-256 is the manifest's")
    console = Console(markup=False, emoji=False, highlight=False)  # names are the checkpoint's, not ours
    if not console.is_terminal:
        console.width = 120
    console.print(table)
    console.print(_matrices(manifest))


def _matrices(manifest: Manifest) -> Any:
    from rich.table import Table

    rows: dict[tuple[str, str, str], list[Matrix]] = defaultdict(list)
    for m in manifest.matrices:
        sparsity = "dense" if m.n == m.m else f"{m.n}:{m.m} {m.axis}"
        form = f"{m.bits} bits, groups of {m.group}, {m.zero}, {sparsity}" if m.group > 1 else f"float{m.bits}"
        rows[role(m), f"{m.n_out} x {m.k_in}", form].append(m)
    table = Table(box=None)
    for name in ("matrix", "count", "shape", "format", "MB", "bits/weight"):
        table.add_column(name, justify="right" if name in ("count", "MB", "bits/weight") else "left")
    for (name, shape, form), members in rows.items():
        size = sum(m.bytes for m in members) / 1e6
        table.add_row(name, str(len(members)), shape, form, f"{size:.2f}", f"{bits_per_weight(members):.3f}")
    total = sum(m.bytes for m in manifest.matrices) / 1e6
    overall = bits_per_weight(manifest.matrices)
    table.add_row("all", str(len(manifest.matrices)), "", "", f"{total:.2f}", f"{overall:.3f}")
    return table
