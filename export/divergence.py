"""How far assembled models are from the dense one: KL(dense || model) of the next token, in nats a token."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from edgellm.export.allocate import Choice
from edgellm.export.bank import DENSE, Bank
from edgellm.export.decoder import final_norm, load_block, propagate
from edgellm.export.units import NODES
from edgellm.export.vocabulary import ROWS_AT_ONCE, embed, head_slabs


class Divergence:
    """From the dense model on one text, int64 [N, T]. Memory: a block, and the states of every choice that is asked
    for at once; choices that begin alike share the layers in which they do."""

    @torch.no_grad()
    def __init__(self, bank: Bank, ids: Tensor) -> None:
        self._bank = bank
        self._ids = ids
        dense = tuple(DENSE for _ in bank.units)
        self._source = bank.source(dense)
        self._normed = self._states([dense])[dense]
        self._total = torch.full((len(self._normed),), -torch.inf)
        for _, head in head_slabs(bank.arch, self._source):
            for rows in _parts(len(self._normed)):
                self._total[rows] = torch.logaddexp(self._total[rows], head(self._normed[rows]).logsumexp(dim=-1))

    @torch.no_grad()
    def of(self, choices: Sequence[Choice]) -> list[float]:
        """The mean over the text's tokens, for each choice."""
        states = self._states(choices)
        found = {choice: (torch.zeros(len(x)), torch.full((len(x),), -torch.inf)) for choice, x in states.items()}
        arch = self._bank.arch
        heads = zip(
            head_slabs(arch, self._source), *(head_slabs(arch, self._bank.source(c)) for c in found), strict=True
        )
        for (_, dense), *others in heads:
            for rows in _parts(len(self._normed)):
                logits = dense(self._normed[rows])
                probability = (logits - self._total[rows, None]).exp()
                for (choice, (cross, total)), (_, head) in zip(found.items(), others, strict=True):
                    own = head(states[choice][rows])
                    cross[rows] += (probability * (logits - own)).sum(dim=-1)
                    total[rows] = torch.logaddexp(total[rows], own.logsumexp(dim=-1))
        means = {c: float((cross + total - self._total).double().mean()) for c, (cross, total) in found.items()}
        return [means[choice] for choice in choices]

    def _states(self, choices: Sequence[Choice]) -> dict[Choice, Tensor]:
        """What each choice's head reads, float32 [tokens, hidden]."""
        arch, step = self._bank.arch, len(NODES)
        states: dict[Choice, Tensor] = {}
        for choice in choices:
            if choice[:1] not in states:
                states[choice[:1]] = embed(arch, self._bank.source(choice), self._ids)
        for layer in range(arch.layers):
            begun, states = states, {}
            for choice in choices:
                known = choice[: 1 + step * layer]
                here = choice[: 1 + step * (layer + 1)]
                if here not in states:
                    block = load_block(arch, self._bank.source(choice), layer)
                    states[here] = propagate(arch, layer, block, begun[known].clone())
        flat = {key: final_norm(arch, self._source, x).flatten(0, 1) for key, x in states.items()}
        return {choice: flat[choice[: 1 + step * arch.layers]] for choice in choices}


def _parts(tokens: int) -> list[slice]:
    return [slice(start, start + ROWS_AT_ONCE) for start in range(0, tokens, ROWS_AT_ONCE)]
