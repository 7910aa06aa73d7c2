"""How good an answer is, and how sure a mean is."""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Sequence

import numpy as np

ARTICLES = re.compile(r"\b(?:a|an|the)\b")
Z = 1.959964  # of a 95 % interval
DRAWS = 2000  # of a bootstrap


def found(answer: str, expected: Sequence[str]) -> float:
    """The share of the expected strings that an answer has."""
    return sum(one in answer for one in expected) / len(expected)


def f1(answer: str, expected: str) -> float:
    """Token F1 as SQuAD 1.1 counts it: lower case, without punctuation and articles."""
    given, wanted = normal(answer), normal(expected)
    common = (Counter(given) & Counter(wanted)).total()
    return 2 * common / (len(given) + len(wanted)) if common else float(given == wanted)


def normal(text: str) -> list[str]:
    """Words of a text, for f1."""
    bare = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return ARTICLES.sub(" ", bare).split()


def wilson(share: float, items: int) -> tuple[float, float]:
    """95 % interval of a share over so many items (Wilson 1927)."""
    spread, width = Z * Z / items, Z * math.sqrt(share * (1 - share) / items + Z * Z / (4 * items * items))
    low, high = ((share + spread / 2 + way) / (1 + spread) for way in (-width, width))
    return max(0.0, low), min(1.0, high)  # what rounding leaves beyond


def interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the mean of values: Wilson's where all are 0 or 1, else a bootstrap's over items."""
    if set(values) <= {0.0, 1.0}:
        return wilson(float(np.mean(values)), len(values))
    return bootstrap(values)


def bootstrap(values: Sequence[float]) -> tuple[float, float]:
    """95 % percentile interval of the mean of values; of paired differences it is the paired bootstrap."""
    pick = np.random.default_rng(0).integers(len(values), size=(DRAWS, len(values)))
    low, high = np.percentile(np.asarray(values)[pick].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)
