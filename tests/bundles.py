"""Tiny bundles made in a second, for tests of everything that needs one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgellm.export.config import ExportConfig, Sparsity
from edgellm.export.pipeline import export

TEXT = (
    "A lighthouse keeper counts ships: 12 in March, 31 in April. The sea is grey, the lamp is bright, and the stairs "
    "are many. He writes letters that nobody reads; he reads books that nobody wrote. Naïve, 🌍, and so on.\n"
)


def calibration_file(folder: Path) -> Path:
    path = folder / "calibration.txt"
    path.write_text(TEXT * 30, encoding="utf-8")
    return path


def make_bundle(source: Path, out: Path, sparsity: str = "none", **settings: Any) -> dict[str, Any]:
    """Export with a text file beside OUT, so that nothing is sampled."""
    settings.setdefault("calibration", calibration_file(out.parent))
    return export(ExportConfig(source, out, Sparsity.parse(sparsity), **settings))
