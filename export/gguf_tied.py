"""A tied matrix that a GGUF file holds twice, embedding and head at two precisions (Qwen2.5-Coder): it is read once.

Converters store the head apart to give it more bits. Both copies in a bundle would be a fifth of its bytes for nothing:
the better one stands for both.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from gguf.quants import dequantize

ROWS = 1024  # compared
APART = 0.02  # of the variance: rounding to 4 or 5 bits stays below, two different matrices are near 2


def tie(tensors: dict[str, Any], embedding: str, head: str) -> None:
    """Leave one of two copies of a matrix in a file's tensors (gguf's ReaderTensor by name), as `embedding`, in place.

    Nothing happens where there is no head of its own, or another matrix, or one of a type that cannot be read.
    """
    if embedding in tensors and head in tensors and same(tensors[embedding], tensors[head]):
        copies = tensors[embedding], tensors.pop(head)
        tensors[embedding] = max(copies, key=lambda tensor: int(tensor.n_bytes))


def same(one: Any, other: Any) -> bool:
    """Whether two tensors are one matrix but for rounding; their first rows tell."""
    if list(one.shape) != list(other.shape):
        return False
    try:
        with np.errstate(all="ignore"):  # whoever reads checks for NaN and infinities
            a, b = (dequantize(tensor.data[:ROWS], tensor.tensor_type) for tensor in (one, other))
            return bool(np.square(a - b).mean() < APART * b.var())
    except NotImplementedError:
        return False
