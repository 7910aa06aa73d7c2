"""The policies and budgets that a table has: in tokens, or in percent of the prompt."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from edgellm.runtime.errors import UsageError
from edgellm.runtime.kv_policy import KVPolicy, parse_kv

BUDGET = re.compile(r"(\d+(?:\.\d+)?%|\d+)")
FULL = "full"


@dataclass(frozen=True)
class Cell:
    """A policy with its settings, as --kv has it, and its budget: "512", "25%", or "" (full)."""

    policy: str
    budget: str

    def __str__(self) -> str:
        name, comma, settings = self.policy.partition(",")
        return f"{name}:{self.budget}{comma}{settings}" if self.budget else self.policy

    def of(self, prompt: int, context: int, needs: Sequence[int] = ()) -> KVPolicy:
        """The policy for a prompt of so many tokens; needs: the bundle's budgets a layer. Raises as parse_kv does."""
        tokens = self.budget
        if tokens.endswith("%"):
            tokens = str(round(prompt * float(tokens[:-1]) / 100))
        return parse_kv(str(Cell(self.policy, tokens)), context, needs)


def cells(given: Sequence[str], budgets: Sequence[str], context: int, needs: Sequence[int] = ()) -> list[Cell]:
    """A full cache, then every POLICY:BUDGET given, and every POLICY without one at every budget.

    Raises UsageError for what parse_kv refuses at a prompt as long as the context.
    """
    found = [Cell(FULL, "")]
    for text in given:
        head, comma, settings = text.strip().partition(",")
        name, colon, budget = head.partition(":")
        for one in [budget] if colon else [""] if name == FULL else budgets:
            if not BUDGET.fullmatch(one) and (colon or name != FULL):
                raise UsageError(f'KV budget "{one}" is not a number of tokens', "Or a share of the prompt, as 25%.")
            found.append(Cell(f"{name}{comma}{settings}", one))
    for cell in found:
        cell.of(context, context, needs)
    return list(dict.fromkeys(found))
