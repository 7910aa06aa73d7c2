"""The bundle's tokenizer.json."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer

from edgellm.runtime.bundle_files import AGAIN, TOKENIZER
from edgellm.runtime.errors import BundleError


def read_tokenizer(folder: Path, vocabulary: int) -> Tokenizer:
    """Read tokenizer.json without its padding and truncation, which are for training batches.

    Raises BundleError when it cannot be read or has more tokens than the model's `vocabulary`.
    """
    try:
        tokenizer: Tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
    except Exception as error:  # the Rust side raises plain Exception
        raise BundleError(f"{TOKENIZER} cannot be read: {error}", AGAIN) from None
    tokenizer.no_padding()
    tokenizer.no_truncation()
    size = tokenizer.get_vocab_size(with_added_tokens=True)
    if not 0 < size <= vocabulary:
        raise BundleError(f"{TOKENIZER} has {size} tokens; the model's vocabulary is {vocabulary}", AGAIN)
    return tokenizer
