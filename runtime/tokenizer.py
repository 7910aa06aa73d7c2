"""The bundle's tokenizer: its tables where it has them, else tokenizer.json."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from edgellm.runtime.bundle_files import AGAIN, TABLES, TOKENIZER
from edgellm.runtime.errors import BundleError


class TextTokenizer(Protocol):
    """What a session asks of tokenizers.Tokenizer."""

    def encode(self, text: str, /, *, add_special_tokens: bool = True) -> Any:
        """Something with `.ids`."""
        ...

    def decode(self, ids: Sequence[int], /, skip_special_tokens: bool = True) -> str:
        """Text of ids; those of no token are left out."""
        ...

    def id_to_token(self, number: int, /) -> str | None:
        """A token as the vocabulary writes it."""
        ...

    def get_added_tokens_decoder(self) -> dict[int, Any]:
        """The tokens that are matched before any splitting, by id; each has `.content` and `.special`."""
        ...


def read_tokenizer(folder: Path, vocabulary: int, tables: bool = False) -> TextTokenizer:
    """Read tokenizer.tables, or tokenizer.json without its padding and truncation, which are for training batches.

    Raises BundleError when it cannot be read or has more tokens than the model's `vocabulary`.
    """
    name = TABLES if tables else TOKENIZER
    try:
        tokenizer, size = _tables(folder) if tables else _whole(folder)
    except Exception as error:  # the Rust side raises plain Exception
        raise BundleError(f"{name} cannot be read: {error}", AGAIN) from None
    if not 0 < size <= vocabulary:
        raise BundleError(f"{name} has {size} tokens; the model's vocabulary is {vocabulary}", AGAIN)
    return tokenizer


def _tables(folder: Path) -> tuple[TextTokenizer, int]:
    from edgellm.runtime.vocabulary import TableTokenizer

    tokenizer = TableTokenizer(folder / TABLES, folder / TOKENIZER)
    return tokenizer, tokenizer.size


def _whole(folder: Path) -> tuple[TextTokenizer, int]:
    from tokenizers import Tokenizer

    tokenizer: Tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer, tokenizer.get_vocab_size(with_added_tokens=True)
