"""report.html: what a bundle holds and what it cost, as one page that needs nothing else."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

from jinja2 import Environment

from edgellm.export.write import PartialBundle
from edgellm.runtime import manifest
from edgellm.runtime.bundle_files import REPORT, file_facts
from edgellm.runtime.commands.inspect import bits_per_weight
from edgellm.runtime.commands.inspect import facts as inspected
from edgellm.runtime.schema import Manifest, Matrix

TEMPLATE = Path(__file__).with_name("report.html.jinja")
WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 640, 240, 56, 40, 16  # of a picture, and of its margins


def write_report(bundle: PartialBundle, facts: dict[str, Any]) -> None:
    """Write the page into an unfinished bundle and list it in `facts`, its manifest."""
    bundle.write(REPORT, report(manifest.parse(facts)).encode())
    facts["files"][REPORT] = vars(file_facts(bundle.folder / REPORT))


def report(facts: Manifest) -> str:
    """The page, from the manifest alone. Names in it are escaped: they are the checkpoint's."""
    found = inspected(facts)
    page = Environment(autoescape=True).from_string(TEMPLATE.read_text(encoding="utf-8"))
    recipes = points(facts)
    return page.render(
        facts=facts,
        parts={part: size for part, size in found["bytes"].items() if part != "total"},
        total=found["bytes"]["total"],
        bits=found["bits_per_weight"],
        points=recipes,
        scatter=scatter(recipes, facts.quality.dense_perplexity) if facts.quality else None,
        layers=by_layer(facts),
        size=(WIDTH, HEIGHT),
        axes=(LEFT, HEIGHT - BOTTOM),
    )


def points(facts: Manifest) -> list[dict[str, Any]]:
    """The bundle and its references: name, bytes of the matrices, bits a weight, perplexity, loss."""
    if facts.quality is None:
        return []
    q, here = facts.quality, sum(matrix.bytes for matrix in facts.matrices)
    rows = [("this bundle", here, bits_per_weight(facts.matrices), q.perplexity)]
    rows += [(r.name, r.bytes, r.bits_per_weight, r.perplexity) for r in q.references]
    names = ("name", "bytes", "bits", "perplexity")
    return [{**dict(zip(names, row, strict=True)), "loss": row[3] / q.dense_perplexity - 1} for row in rows]


def scatter(found: list[dict[str, Any]], dense: float) -> dict[str, Any]:
    """Where the points lie: megabytes to the right from 0, the logarithm of perplexity upwards from the dense one's."""
    most = max(point["bytes"] for point in found) * 1.15
    low, high = math.log(dense), max(math.log(max(point["perplexity"], dense)) for point in found)
    span = max(high - low, 0.02) * 1.15

    def place(nbytes: float, perplexity: float) -> tuple[float, float]:
        height = (math.log(perplexity) - low) / span
        return LEFT + nbytes / most * (WIDTH - LEFT - 8), HEIGHT - BOTTOM - height * (HEIGHT - BOTTOM - TOP)

    marks = [{**point, "at": place(point["bytes"], max(point["perplexity"], dense))} for point in found]
    ticks = [(place(share * most, dense)[0], share * most / 1e6) for share in (0, 0.25, 0.5, 0.75)]
    return {"marks": marks, "ticks": ticks}


def by_layer(facts: Manifest) -> list[dict[str, Any]]:
    """Bits a weight of each layer, how far its states are off, and the bar and the point that show the two."""
    groups: dict[int, list[Matrix]] = defaultdict(list)
    for matrix in facts.matrices:
        if found := re.match(r"layers\.(\d+)\.", matrix.name):
            groups[int(found[1])].append(matrix)
    bits = [bits_per_weight(groups[layer]) for layer in sorted(groups)]
    errors = facts.quality.layer_errors if facts.quality else []
    errors = errors if len(errors) == len(bits) else []
    step, room = (WIDTH - LEFT - 8) / max(1, len(bits)), HEIGHT - BOTTOM - TOP
    most, worst = max(bits, default=1), max(errors, default=0) or 1
    return [
        {
            "bits": value,
            "bar": (LEFT + layer * step, step * 0.8, value / most * room),
            "error": errors[layer] if errors else None,
            "at": (LEFT + (layer + 0.4) * step, HEIGHT - BOTTOM - errors[layer] / worst * room) if errors else None,
        }
        for layer, value in enumerate(bits)
    ]
