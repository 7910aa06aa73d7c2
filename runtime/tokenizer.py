"""The bundle's tokenizer: its tables where it has them, else tokenizer.json."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, Protocol

from edgellm.runtime.bundle_files import AGAIN, TOKENIZER
from edgellm.runtime.errors import BundleError, UsageError


class TextTokenizer(Protocol):
    """What a session asks of tokenizers.Tokenizer."""

    def encode(self, text: str, /, *, add_special_tokens: Literal[False]) -> Any:
        """Something with `.ids`."""
        ...

    def decode(self, ids: Sequence[int], /, skip_special_tokens: bool = True) -> str:
        """Text of ids; those of no token are left out."""
        ...

    def id_to_token(self, number: int, /) -> str | None:
        """A token as the vocabulary writes it."""
        ...


def read_tokenizer(folder: Path, vocabulary: int, tables: bool = False) -> TextTokenizer:
    """Read tokenizer.tables, if the bundle has them and the native library reads their kind; else tokenizer.json,
    without its padding and truncation, which are for training batches.

    Raises BundleError when it cannot be read or has more tokens than the model's `vocabulary`.
    """
    if tables:
        from edgellm.runtime.vocabulary import TableTokenizer

        with suppress(UsageError, OSError):  # a kind that it does not read, or no library
            return TableTokenizer(folder, vocabulary)
    return _whole(folder, vocabulary)


def _whole(folder: Path, vocabulary: int) -> TextTokenizer:
    from tokenizers import Tokenizer  # late: 5 MB that sessions of tables do without

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
