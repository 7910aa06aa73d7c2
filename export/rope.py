"""Rotary embedding's frequencies: plain, linear, llama3 and yarn scaling, or none at all (NoPE)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.runtime.errors import CheckpointError


@dataclass(frozen=True)
class Rope:
    """How the layers that share it rotate: the first `dims` of each head, in rotate-half order (arXiv 2104.09864).

    kind: "default"; "linear" (positions divided by a factor, arXiv 2306.15595); "llama3" (Llama 3.1's smoothed factor);
    "yarn" (arXiv 2309.00071); "none" (no rotation: frequencies are 0); "divisors" (a GGUF file's rope_freqs.weight).
    settings: the kind's numbers under Hugging Face's names. divisors: one a frequency.
    """

    theta: float
    dims: int
    kind: str = "default"
    settings: Mapping[str, Any] = field(default_factory=dict, hash=False)
    divisors: tuple[float, ...] = ()

    def frequencies(self) -> NDArray[np.float32]:
        """Radians a position, float32 [dims/2]."""
        plain = 1.0 / self.theta ** (np.arange(0, self.dims, 2, dtype=np.float64) / self.dims)
        if self.kind == "none":
            plain = np.zeros_like(plain)
        elif self.kind == "linear":
            plain = plain / float(self.settings["factor"])
        elif self.kind == "divisors":
            plain = plain / np.array(self.divisors)
        elif self.kind == "llama3":
            plain = self._llama3(plain)
        elif self.kind == "yarn":
            plain = self._yarn(plain)
        return plain.astype(np.float32)

    @property
    def magnitude(self) -> float:
        """What cos and sin are multiplied by: 1, but for yarn's attention factor."""
        if self.kind != "yarn":
            return 1.0
        given = self.settings.get("attention_factor")
        if given is not None:
            return float(given)
        factor = float(self.settings["factor"])
        one, every = self.settings.get("mscale"), self.settings.get("mscale_all_dim")
        if one and every:
            return _mscale(factor, float(one)) / _mscale(factor, float(every))
        return _mscale(factor, 1.0)

    def _llama3(self, plain: NDArray[np.float64]) -> NDArray[np.float64]:
        s = self.settings
        low, high = float(s["low_freq_factor"]), float(s["high_freq_factor"])
        turns = float(s["original_max_position_embeddings"]) * plain / (2 * math.pi)
        # Fewer turns than `low` over the old context: divided; more than `high`: kept; a ramp between.
        smooth = np.clip((turns - low) / (high - low), 0, 1)
        found: NDArray[np.float64] = (1 - smooth) * plain / float(s["factor"]) + smooth * plain
        return found

    def _yarn(self, plain: NDArray[np.float64]) -> NDArray[np.float64]:
        s = self.settings
        old = float(s["original_max_position_embeddings"])

        def dimension(turns: float) -> float:
            return self.dims * math.log(old / (turns * 2 * math.pi)) / (2 * math.log(self.theta))

        low, high = dimension(float(s.get("beta_fast") or 32)), dimension(float(s.get("beta_slow") or 1))
        if s.get("truncate", True):
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, self.dims - 1)
        ramp = np.clip((np.arange(self.dims // 2) - low) / max(high - low, 0.001), 0, 1)
        found: NDArray[np.float64] = plain / float(s["factor"]) * ramp + plain * (1 - ramp)
        return found


def parse_rope(entry: Mapping[str, Any], head_dim: int, context: int, where: str) -> Rope:
    """A Rope from Hugging Face's settings (rope_theta, rope_type and its numbers, partial_rotary_factor).

    Raises CheckpointError for a kind or a number that is missing or not implemented.
    """
    kind = str(entry.get("rope_type") or entry.get("type") or "default")
    settings = {k: v for k, v in entry.items() if k not in ("rope_type", "type", "rope_theta", "partial_rotary_factor")}
    if kind not in ("default", "linear", "llama3", "yarn"):
        raise CheckpointError(
            f'{where} asks for "{kind}" rotary scaling; default, linear, llama3 and yarn are implemented',
            "Use a model with one of these: ignoring it would change the model's answers.",
        )
    needed: tuple[str, ...] = ("factor",) if kind in ("linear", "yarn") else ()
    if kind == "llama3":
        needed = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    if kind == "yarn":
        settings.setdefault("original_max_position_embeddings", context)
    lacking = [name for name in needed if not isinstance(settings.get(name), (int, float))]
    if lacking:
        raise CheckpointError(f"{where}: {kind} rotary scaling lacks {lacking[0]}", "Download config.json again.")
    dims = int(head_dim * float(entry.get("partial_rotary_factor") or 1.0))
    return Rope(float(entry.get("rope_theta") or 10000.0), dims - dims % 2, kind, settings)


def _mscale(factor: float, weight: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0
