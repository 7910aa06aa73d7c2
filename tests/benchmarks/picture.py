"""What `make bench` found, as a picture: speed, prefill, memory and start, a bar a contender."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

OURS, THEIRS = "#c1440e", "#7d8ca3"


def draw(facts: dict[str, Any], path: Path) -> None:
    """A PNG of the medians so far; nothing where there are none."""
    rows = facts["contenders"]
    cases = list(dict.fromkeys(name for row in rows.values() for name in row["cases"]))
    if not cases:
        return
    panels = [
        (f"{case} tokens/s", case, "prefill_tokens_per_s", 1.0)
        if case.startswith("prefill")
        else (f"decode after {case}, tokens/s", case, "decode_tokens_per_s", 1.0)
        for case in cases
    ]
    panels += [
        ("start to first token, s", cases[0], "start_s", 1.0),
        ("peak memory, MB", cases[0], "peak_rss_bytes", 1e6),
    ]
    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    size = (4.5 * columns + 2, (0.28 * len(rows) + 0.9) * lines)
    figure = Figure(size, layout="constrained")
    axes = figure.subplots(lines, columns, sharey=True, squeeze=False)
    names = list(rows)[::-1]
    for axis, (title, case, metric, unit) in zip(axes.flat, panels, strict=False):
        values = [rows[name]["cases"].get(case, {}).get(metric, 0) / unit for name in names]
        bars = axis.barh(names, values, color=[OURS if name.startswith("edgellm") else THEIRS for name in names])
        axis.bar_label(bars, [f"{value:.3g}" if value else "" for value in values], fontsize=7, padding=2)
        axis.set_title(title, fontsize=9)
        axis.tick_params(labelsize=8)
        axis.margins(x=0.15)
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    figure.suptitle(f"{facts['model']}, {facts['threads']} threads, {facts['processor']}", fontsize=10)
    figure.savefig(path, dpi=150)
