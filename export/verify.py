"""Does the bundle say what the torch model with the same weights says? Measured before the bundle gets its name."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from edgellm.export.architectures import Architecture
from edgellm.export.checkpoint import Source
from edgellm.export.decoder import final_norm, hidden_states
from edgellm.export.vocabulary import Head, head_slabs
from edgellm.runtime.errors import EdgellmError
from edgellm.runtime.session import Session

PROMPTS, PROMPT_TOKENS, NEW_TOKENS = 20, 24, 16
LARGEST_ERROR = 1e-2  # ||logits - torch's|| / ||torch's||; 16-bit activations cause less than 1e-3
LEAST_AGREEMENT = 18  # of 20 greedy texts
LOGITS_AT_ONCE = 1 << 27  # bytes


@dataclass(frozen=True)
class Parity:
    """logit_error: ||logits - torch's|| / ||torch's|| over all prompts; worst_logit_error: of one prompt.
    greedy_agreement: prompts whose first
    `tokens` greedy tokens are torch's. near_ties: of the others, those that part where torch itself prefers its token
    by less than the tolerated error, so that either choice is right."""

    prompts: int
    tokens: int
    logit_error: float
    worst_logit_error: float
    greedy_agreement: int
    near_ties: int = 0

    def check(self) -> None:
        """Raise EdgellmError when the bundle strays from the torch model beyond tolerance."""
        least = LEAST_AGREEMENT * self.prompts // PROMPTS
        # Written so that NaN fails.
        if not self.logit_error <= LARGEST_ERROR or self.greedy_agreement + self.near_ties < least:
            raise EdgellmError(
                f"the bundle does not match the torch model with the same weights: logit error {self.logit_error:.2g} "
                f"(at most {LARGEST_ERROR:g}), {self.greedy_agreement} of {self.prompts} greedy texts equal and "
                f"{self.near_ties} part at a tie (at least {least})",
                "Nothing was written. Run edgellm doctor, then report this with the model's name.",
            )


def prompts_from(ids: Tensor) -> list[list[int]]:
    """20 prompts of up to 24 tokens cut from a text, int64 [L], evenly apart."""
    flat = ids.flatten()
    length = min(PROMPT_TOKENS, max(1, flat.numel() // PROMPTS))
    starts = torch.linspace(0, flat.numel() - length, PROMPTS).long().tolist()
    return [flat[start : start + length].tolist() for start in starts]


def continued(
    session: Session, prompts: list[list[int]], new_tokens: int = NEW_TOKENS, quicker: Session | None = None
) -> list[list[int]]:
    """Every prompt with its greedy continuation on the device runtime.

    quicker: one that mostly says the same; what it says is checked in one run, and kept as far as it is right.
    """
    texts = []
    for prompt in prompts:
        ids = [*prompt, *(_agreed(session, quicker, prompt, new_tokens) if quicker else [])]
        while len(ids) < len(prompt) + new_tokens:
            ids.append(int(session.extend(ids, keep=True).argmax()))
        texts.append(ids)
    return texts


def _agreed(session: Session, quicker: Session, prompt: list[int], new_tokens: int) -> list[int]:
    """The greedy continuation by session, as far as quicker says the same, and one more where they part."""
    (draft,) = continued(quicker, [prompt], new_tokens)
    choices = session.logits(draft)[len(prompt) - 1 : -1].argmax(axis=-1).tolist()
    parted = (i + 1 for i, pair in enumerate(zip(choices, draft[len(prompt) :], strict=True)) if pair[0] != pair[1])
    return list(choices[: next(parted, new_tokens)])


@torch.no_grad()
def parity(
    arch: Architecture, source: Source, session: Session, prompts: list[list[int]], new_tokens: int = NEW_TOKENS,
    kv_bits: int = 16, quicker: Session | None = None,
) -> Parity:  # fmt: skip
    """Continue every prompt greedily on the device runtime, then run torch over prompt and continuation.

    quicker: see `continued`.

    torch rounds keys and values as the device's cache does, of kv_bits: where coarse weights leave a model on an
    edge (Qwen2.5-Coder-0.5B at 4 bits, head included), that rounding alone moves one prompt's logits by a quarter, and
    a bundle that does the same is right.
    torch's greedy text has the same first n tokens exactly if its most likely token is the runtime's at each of them.
    The head passes in slabs beside the logits of as many texts as LOGITS_AT_ONCE holds.
    """
    texts = continued(session, prompts, new_tokens, quicker)
    states = hidden_states(arch, source, [torch.tensor([ids]) for ids in texts], kv_bits)
    normed = [final_norm(arch, source, state[0]) for state in states]
    at_once = max(1, LOGITS_AT_ONCE // (4 * arch.vocabulary * max(map(len, texts))))
    found = []
    for start in range(0, len(texts), at_once):
        group = slice(start, start + at_once)
        got = [torch.from_numpy(session.logits(ids)) for ids in texts[group]]
        found += _compare(head_slabs(arch, source), normed[group], got, texts[group], new_tokens)
    return _overall(found, new_tokens)


def compared(session: Session, texts: list[list[int]], references: Iterable[Tensor], new_tokens: int) -> Parity:
    """Parity of `continued` texts with the logits [T, V] that torch has for each of them."""
    found = []
    for ids, expected in zip(texts, references, strict=True):
        whole = [(slice(0, expected.shape[1]), lambda logits: logits)]
        found += _compare(whole, [expected], [torch.from_numpy(session.logits(ids))], [ids], new_tokens)
    return _overall(found, new_tokens)


@dataclass(frozen=True)
class _Compared:
    """off: ||logits - torch's||^2. norm: ||torch's||^2. gap: where the texts first part, by how much torch prefers its
    own token; 0: nowhere. largest: of torch's logits, by magnitude."""

    off: float
    norm: float
    gap: float
    largest: float


def _overall(compared: list[_Compared], new_tokens: int) -> Parity:
    overall = _relative(sum(one.off for one in compared), sum(one.norm for one in compared))
    errors = [_relative(one.off, one.norm) for one in compared]
    worst = max(errors, key=lambda error: math.inf if math.isnan(error) else error)
    parted = [one for one in compared if one.gap > 0]
    ties = sum(one.gap <= LARGEST_ERROR * one.largest for one in parted)
    return Parity(len(compared), new_tokens, overall, worst, len(compared) - len(parted), ties)


def _relative(off: float, norm: float) -> float:
    return math.sqrt(off / norm) if norm else math.nan


def _compare(
    slabs: Iterable[tuple[slice, Head]], normed: list[Tensor], got: list[Tensor], texts: list[list[int]], new: int
) -> list[_Compared]:
    """Texts against torch; got: the runtime's logits [T, V] each. Sums over the vocabulary grow slab by slab."""
    squares = torch.zeros(len(texts), 2, dtype=torch.float64)
    largest = torch.zeros(len(texts))
    tops = [torch.full((new,), -torch.inf) for _ in texts]
    chosen = [torch.zeros(new) for _ in texts]
    for rows, head in slabs:
        for i, ids in enumerate(texts):
            expected = head(normed[i])
            squares[i, 0] += (got[i][:, rows] - expected).square().sum(dtype=torch.float64)
            squares[i, 1] += expected.square().sum(dtype=torch.float64)
            largest[i] = torch.maximum(largest[i], expected.abs().max())
            deciding, tokens = expected[-new - 1 : -1], torch.tensor(ids[-new:])
            tops[i] = torch.maximum(tops[i], deciding.max(dim=-1).values)
            here = (tokens >= rows.start) & (tokens < rows.stop)
            chosen[i][here] = deciding[here, tokens[here] - rows.start]
    gaps = [next((gap for gap in (top - own).tolist() if gap > 0), 0.0) for top, own in zip(tops, chosen, strict=True)]
    return [_Compared(*one) for one in zip(*squares.T.tolist(), gaps, largest.tolist(), strict=True)]
