"""Score against budget, a line a policy, as an SVG written by hand: a device has no plotting library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from xml.sax.saxutils import escape

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 860, 420, 60, 330, 50, 50  # pixels; lines' names are on the right
COLOURS = ("#c1440e", "#1f6f8b", "#6a8d3f", "#8757a5", "#b8860b", "#d0658b", "#4c566a", "#2a9d8f", "#7f5539")


def svg(cells: Sequence[Mapping[str, Any]], title: str, score: str) -> str:
    """The picture of summary.table's cells. Budgets are ticks at equal distances, the smallest at the left; the full
    cache is a dashed line; bars are 95 % intervals."""
    budgets = sorted({cell["budget"] for cell in cells if cell["budget"]}, key=lambda text: float(text.rstrip("%")))
    top = max(1.0, *(cell["high"] for cell in cells))
    low = min(cell["low"] for cell in cells) if top > 1 else 0.0  # perplexity has no zero to begin at
    places = {budget: LEFT + (i + 0.5) * (WIDTH - LEFT - RIGHT) / len(budgets) for i, budget in enumerate(budgets)}

    def y(value: float) -> float:
        return float(TOP + (HEIGHT - TOP - BOTTOM) * (top - value) / (top - low or 1))

    parts = [_text(LEFT, 22, title, 15), _text(LEFT, HEIGHT - 8, "budget", 12), _text(8, TOP - 12, score, 12)]
    for i in range(5):
        value = low + (top - low) * i / 4
        parts += [_line(LEFT, y(value), WIDTH - RIGHT, y(value), "#ddd"), _text(8, y(value) + 4, f"{value:.3g}", 11)]
    parts += [_text(x - 12, HEIGHT - BOTTOM + 18, budget, 12) for budget, x in places.items()]
    policies = dict.fromkeys(cell["policy"] for cell in cells)
    for number, policy in enumerate(policies):
        colour = COLOURS[number % len(COLOURS)]
        own = sorted((c for c in cells if c["policy"] == policy), key=lambda c: places.get(c["budget"], 0))
        shift = 3 * (number - len(policies) / 2)  # so that intervals lie side by side
        points = [(places[c["budget"]] + shift, c) for c in own if c["budget"]]
        line = " ".join(f"{x:.1f},{y(c['score']):.1f}" for x, c in points)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        for x, c in points:
            parts += [_line(x, y(c["low"]), x, y(c["high"]), colour), _dot(x, y(c["score"]), colour)]
        parts += [
            _line(LEFT, y(c["score"]), WIDTH - RIGHT, y(c["score"]), colour, "6 4") for c in own if not c["budget"]
        ]
        at = TOP + 18 * number
        parts += [
            _line(WIDTH - RIGHT + 12, at, WIDTH - RIGHT + 32, at, colour),
            _text(WIDTH - RIGHT + 38, at + 4, policy, 12),
        ]
    body = "\n".join(parts)
    size = f'width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}"'
    ground = '<rect width="100%" height="100%" fill="white"/>'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif">\n{ground}\n{body}\n</svg>\n'


def _text(x: float, y: float, text: str, size: int) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}">{escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, dashes: str = "none") -> str:
    ends = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line {ends} stroke="{colour}" stroke-width="1.5" stroke-dasharray="{dashes}"/>'


def _dot(x: float, y: float, colour: str) -> str:
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>'
