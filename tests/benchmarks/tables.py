"""What `make bench` found, as tables for people."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

SHOWN = {
    "decode_tokens_per_s": "decode",
    "prefill_tokens_per_s": "prefill",
    "start_s": "start",
    "peak_rss_bytes": "memory",
    "own_rss_bytes": "own memory",
}


def show(facts: dict[str, Any]) -> None:
    """On stdout: the contenders, the ratios' medians, and who was left out."""
    console = Console(markup=False, emoji=False, highlight=False)
    if not console.is_terminal:
        console.width = 160
    console.print(contenders(facts))
    console.print(ratio_table(facts))
    for name, why in facts["skipped"].items():
        console.print(f"skipped: {name}: {why}")


def contenders(facts: dict[str, Any]) -> Table:
    cases = list(dict.fromkeys(name for row in facts["contenders"].values() for name in row["cases"]))
    shortest = cases[0] if cases else ""
    table = Table(box=None, title=f"{facts['model']}, {facts['threads']} threads, tokens/s", title_justify="left")
    table.add_column("contender")
    rest = ("start s", "RSS MB", "own MB", "perplexity", "long/short", "busy/quiet", "quiet rounds")
    for name in ("file MB", *cases, *rest):
        table.add_column(name, justify="right")
    for name, row in facts["contenders"].items():
        found = row["cases"].get(shortest, {})
        speeds = [number(row["cases"].get(case, {}), *metric(case)) for case in cases]
        told = [number(found, "start_s", 1, 2)]
        told += [number(found, key, 1e6) for key in ("peak_rss_bytes", "own_rss_bytes")]
        told += [number(row, key, 1, 2) for key in ("perplexity", "growth", "busy")]
        quiet = "/".join(str(case.get("quiet_rounds", "-")) for case in row["cases"].values())
        table.add_row(name, f"{row['model_bytes'] / 1e6:.0f}", *speeds, *told, quiet)
    return table


def ratio_table(facts: dict[str, Any]) -> Table:
    table = Table(box=None, title="ours / peer, medians of the rounds' ratios", title_justify="left")
    for name in ("ours", "peer", "case"):
        table.add_column(name)
    for name in SHOWN.values():
        table.add_column(name, justify="right")
    for case, rows in facts["ratios"].items():
        pairs = dict.fromkeys((row["ours"], row["peer"]) for row in rows)
        for pair in pairs:
            found = {row["metric"]: row["median"] for row in rows if (row["ours"], row["peer"]) == pair}
            table.add_row(*pair, case, *(f"{found[m]:.2f}" if m in found else "-" for m in SHOWN))
    return table


def metric(case: str) -> tuple[str, float, int]:
    """What a case is about: the metric, its unit, its decimals."""
    return ("prefill_tokens_per_s" if case.startswith("prefill") else "decode_tokens_per_s", 1, 1)


def number(row: dict[str, Any], key: str, unit: float = 1, decimals: int = 0) -> str:
    return f"{row[key] / unit:.{decimals}f}" if row.get(key) is not None else "-"
