"""The gate: a bundle that lost more than the user allows is not written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgellm.export.config import ExportConfig
from edgellm.runtime.errors import EdgellmError


def refuse_loss(config: ExportConfig, quality: Mapping[str, Any]) -> None:
    """Raise EdgellmError when the perplexity is above 1 + config.max_loss times the dense model's, with what would
    do: the references among them that stay below, else more bits. quality: the manifest's."""
    if config.max_loss is None:
        return
    loss = quality["perplexity"] / quality["dense_perplexity"] - 1
    if loss <= config.max_loss:  # written so that NaN is refused
        return
    allowed = quality["dense_perplexity"] * (1 + config.max_loss)
    dense4 = next((r for r in quality["references"] if r["name"] == "dense 4 bits"), None)
    pruned = config.sparsity.method != "none" or config.fit is not None
    if pruned and dense4 and dense4["perplexity"] <= allowed:
        hint = f"Dense layers of 4 bits have {dense4['perplexity']:.2f}: --bits 4 without --sparsity and --fit."
    elif config.fit:
        hint = "Give --fit a larger size, a longer --calibration text, or allow more with --max-loss."
    else:
        hint = "Use --bits 8 without --sparsity, a longer --calibration text, or allow more with --max-loss."
    raise EdgellmError(
        f"the bundle's perplexity is {quality['perplexity']:.2f}, the dense model's {quality['dense_perplexity']:.2f}: "
        f"it lost {loss:.3g}, --max-loss allows {config.max_loss:g}",
        f"Nothing was written. {hint}",
    )
