"""Does the bundle say what the torch model with the same weights says? Measured before the bundle gets its name."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from edgellm.export.architectures import Architecture
from edgellm.export.checkpoint import Source
from edgellm.export.decoder import head_logits, head_name, hidden_states
from edgellm.runtime.errors import EdgellmError
from edgellm.runtime.session import Session

PROMPTS, PROMPT_TOKENS, NEW_TOKENS = 20, 24, 16
LARGEST_ERROR = 1e-2  # ||logits - torch's|| / ||torch's||; 16-bit activations and an fp16 cache cause 1e-3
LEAST_AGREEMENT = 18  # of 20 greedy texts


@dataclass(frozen=True)
class Parity:
    """logit_error: the worst prompt's ||logits - torch's|| / ||torch's||. greedy_agreement: prompts whose first
    `tokens` greedy tokens are torch's. near_ties: of the others, those that part where torch itself prefers its token
    by less than the tolerated error, so that either choice is right."""

    prompts: int
    tokens: int
    logit_error: float
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


def parity(
    arch: Architecture, source: Source, session: Session, prompts: list[list[int]], new_tokens: int = NEW_TOKENS
) -> Parity:
    """Continue every prompt greedily on the device runtime, then run torch over prompt and continuation.

    torch's greedy text has the same first n tokens exactly if its most likely token is the runtime's at each of them.
    """
    texts = continued(session, prompts, new_tokens)
    states = hidden_states(arch, source, [torch.tensor([ids]) for ids in texts])
    norm, head = source.vector("norm"), source.matrix(head_name(arch))
    return compared(session, prompts, texts, (head_logits(arch, state[0], norm, head) for state in states))


def continued(session: Session, prompts: list[list[int]], new_tokens: int = NEW_TOKENS) -> list[list[int]]:
    """Prompts and what the session makes of them greedily, token by token."""
    texts = []
    for prompt in prompts:
        ids = list(prompt)
        logits = session.extend(ids)
        for _ in range(new_tokens):
            ids.append(int(logits.argmax()))
            logits = session.step(ids[-1])
        texts.append(ids)
    return texts


def compared(
    session: Session, prompts: list[list[int]], texts: list[list[int]], references: Iterable[Tensor]
) -> Parity:
    """Parity of `continued` texts with the logits [T, V] that torch has for each of them."""
    worst, agreed, ties = 0.0, 0, 0
    for prompt, ids, expected in zip(prompts, texts, references, strict=True):
        got = torch.from_numpy(session.logits(ids))
        error = float((got - expected).norm() / expected.norm())
        worst = error if not error <= worst else worst
        rows, chosen = expected[len(prompt) - 1 : -1], torch.tensor(ids[len(prompt) :])
        missed = (rows.max(dim=-1).values - rows.gather(-1, chosen[:, None])[:, 0]).tolist()
        parted = next((gap for gap in missed if gap > 0), None)
        agreed += parted is None
        ties += parted is not None and parted <= LARGEST_ERROR * float(expected.abs().max())
    return Parity(len(prompts), len(texts[0]) - len(prompts[0]), worst, agreed, ties)
