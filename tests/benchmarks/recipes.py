"""Every recipe on a real model: parity with torch on 20 prompts, size, and the perplexity of the dense ones.

    python -m tests.benchmarks.recipes MODEL.gguf [--text TEXT.txt] [--calibration FILE] -o build/bench/recipes.json

Bundles are kept in build/bench/bundles and made again only with --again. TEXT's first 20k tokens in windows of 1024
give perplexity for the dense recipes and torch's float32 model alike; without TEXT that part is left out.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import torch

from edgellm.export.checkpoint import Checkpoint, open_checkpoint
from edgellm.export.config import ExportConfig, Sparsity, usual_recovery
from edgellm.export.decoder import perplexity
from edgellm.export.packed_source import PackedSource, read_placed
from edgellm.export.pipeline import export
from edgellm.export.verify import parity
from edgellm.runtime import load
from edgellm.runtime.commands.inspect import bits_per_weight
from edgellm.runtime.perplexity import score
from edgellm.runtime.session import Session
from tests.prompts import PROMPTS

WINDOW, TOKENS = 1024, 20_000


def recipes() -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and settings: dense ones first, then both widths of every N:M, DaSS's two axes and Wanda's one."""
    yield "as stored", {}
    yield "dense 8", {"bits": 8}
    yield "dense 4, head 8", {"bits": 4}
    yield "dense 4, head 4", {"bits": 4, "head_bits": 4}
    for method in ("dass", "wanda"):
        for nm in ("2:4", "4:8"):
            for bits in (8, 4):
                yield f"{method}:{nm} {bits}", {"sparsity": Sparsity.parse(f"{method}:{nm}"), "bits": bits}
    yield "wanda:2:4 all 8", {"sparsity": Sparsity.parse("wanda:2:4"), "bits": 8, "scope": "all"}
    yield "dass:4:8 all 4", {"sparsity": Sparsity.parse("dass:4:8"), "bits": 4, "scope": "all"}


def prompts(session: Session) -> list[list[int]]:
    chat = session.manifest.has_chat_template
    return [session.encode_chat([{"role": "user", "content": p}]) if chat else session.encode(p) for p in PROMPTS]


def measure(checkpoint: Checkpoint, bundle: Path, ids: list[int] | None) -> dict[str, Any]:
    session = load(bundle, kv="full", threads=torch.get_num_threads())
    manifest = session.manifest
    source = PackedSource(bundle / "model.onnx.data", read_placed(bundle))
    row: dict[str, Any] = {"bytes": sum(f.bytes for f in manifest.files.values())}
    row["bits_per_weight"] = bits_per_weight(manifest.matrices)
    for tokens in (16,) if manifest.recipe.sparsity != "none" else (16, 64):
        found = parity(checkpoint.architecture, source, session, prompts(session), tokens)
        row[f"agree_{tokens}"] = found.greedy_agreement
        row |= {"logit_error": found.logit_error, "worst_logit_error": found.worst_logit_error}
    if ids is not None:
        row["perplexity"] = score(session, ids, WINDOW).perplexity
    return row


@click.command()
@click.argument("model", type=Path)
@click.option("--text", type=Path)
@click.option("--calibration", type=Path)
@click.option("--again", is_flag=True, help="Export bundles that are there once more.")
@click.option("--only", multiple=True, help="Recipes whose name begins so; may be given again.")
@click.option("--recover", type=click.Choice(["none", "sparsegpt", "distill"]), help="Default: what export takes.")
@click.option("-o", "--output", type=Path, default=Path("build/bench/recipes.json"))
def main(
    model: Path,
    text: Path | None,
    calibration: Path | None,
    again: bool,
    only: tuple[str, ...],
    recover: str | None,
    output: Path,
) -> None:
    checkpoint = open_checkpoint(model)
    folder = output.parent / "bundles"
    folder.mkdir(parents=True, exist_ok=True)
    facts: dict[str, Any] = {"model": model.name, "prompts": len(PROMPTS), "rows": []}
    ids: list[int] | None = None
    for name, settings in recipes():
        settings["recover"] = recover or usual_recovery(calibration)
        out = folder / "".join(c if c.isalnum() else "-" for c in name)
        if only and not name.startswith(only):
            continue
        if again or not out.exists():
            export(ExportConfig(model, out, calibration=calibration, force=again, **settings))
        if text is not None and ids is None:
            ids = load(out).encode(text.read_text(encoding="utf-8"))[:TOKENS]
            facts |= {"text": text.name, "tokens": len(ids), "window": WINDOW}
            facts["torch_perplexity"] = perplexity(checkpoint.architecture, checkpoint, torch.tensor(ids), WINDOW)
        row = {"recipe": name, **measure(checkpoint, out, None if "sparsity" in settings else ids)}
        print(json.dumps(row), file=sys.stderr, flush=True)
        facts["rows"].append(row)
        output.write_text(json.dumps(facts, indent=1))


if __name__ == "__main__":
    main()
