"""SentencePiece's BPE vocabularies (Gemma, Llama 2) as a `tokenizers` BPE: merges are won back from scores.

SentencePiece joins, of all neighbours whose joint text is a piece, the pair with the best score. A BPE that lists every
split of every piece into two pieces, in order of the piece's score, does the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers

from edgellm.runtime.errors import CheckpointError

_NORMAL, _UNKNOWN = 1, 2  # llama.cpp's token types
_SPACE = "\u2581"  # the mark that stands for a space


def sentencepiece_bpe(metadata: Mapping[str, Any], tokens: list[str]) -> Tokenizer:
    """The tokenizer of a GGUF file whose tokenizer.ggml.model is "llama", without its added tokens.

    Raises CheckpointError when scores or types are missing or of another length.
    """
    scores, kinds = metadata.get("tokenizer.ggml.scores"), metadata.get("tokenizer.ggml.token_type")
    if not isinstance(scores, list) or not isinstance(kinds, list) or not len(scores) == len(kinds) == len(tokens):
        raise CheckpointError("the file lacks tokenizer.ggml.scores or token_type", "Convert it with its tokenizer.")
    vocabulary = {token: index for index, token in enumerate(tokens)}
    unknown = next((token for token, kind in zip(tokens, kinds, strict=True) if kind == _UNKNOWN), None)
    unknown_id = metadata.get("tokenizer.ggml.unknown_token_id")
    if unknown is None and unknown_id is not None:
        unknown = tokens[int(unknown_id)]
    pieces = [i for i, kind in enumerate(kinds) if kind == _NORMAL and len(tokens[i]) > 1]
    merges = pairs(vocabulary, tokens, sorted(pieces, key=lambda i: -scores[i]))
    built = Tokenizer(models.BPE(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    prefix = bool(metadata.get("tokenizer.ggml.add_space_prefix", True))
    spaces: normalizers.Normalizer = normalizers.Replace(" ", _SPACE)
    built.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), spaces]) if prefix else spaces
    steps = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    built.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
    return built


def pairs(vocabulary: Mapping[str, int], tokens: list[str], pieces: list[int]) -> list[tuple[str, str]]:
    """Every split of the pieces (ids, best first) into two entries of the vocabulary, the lower left id first."""
    found = []
    for piece in pieces:
        text = tokens[piece]
        splits = [(text[:cut], text[cut:]) for cut in range(1, len(text))]
        known = [split for split in splits if split[0] in vocabulary and split[1] in vocabulary]
        found += sorted(known, key=lambda split: (vocabulary[split[0]], vocabulary[split[1]]))
    return found
