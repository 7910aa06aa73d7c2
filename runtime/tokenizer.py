"""The bundle's tokenizer.json."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer

from edgellm.runtime.bundle_files import AGAIN, TOKENIZER
from edgellm.runtime.errors import BundleError


def read_tokenizer(folder: Path, vocabulary: int) -> Tokenizer:
    """Read tokenizer.json without its padding and truncation, which are for training batches.

    Raises BundleError when it cannot be read or has ids that the model's `vocabulary` lacks.
    """
    try:
        tokenizer: Tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
    except Exception as error:  # the Rust side raises plain Exception
        raise BundleError(f"{TOKENIZER} cannot be read: {error}", AGAIN) from None
    tokenizer.no_padding()
    tokenizer.no_truncation()
    highest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
    if not 0 <= highest < vocabulary:
        raise BundleError(f"{TOKENIZER} has ids up to {highest}; the model's vocabulary is {vocabulary}", AGAIN)
    return tokenizer
