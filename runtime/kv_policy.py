"""Which tokens a KV cache of a fixed budget keeps: the policies by their names, their papers' defaults, --kv."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from edgellm.kernels.control import FULL, HEADS, MILLION, SCORE, WINDOW, Control
from edgellm.runtime.errors import UsageError
from edgellm.runtime.layer_budgets import spread

SINKS = 4  # StreamingLLM (arXiv:2309.17453) keeps the first four tokens
POLICIES: dict[str, dict[str, Any]] = {
    "full": {"sinks": SINKS},
    "window": {"sinks": SINKS},
    # Official code: half of the budget is recent tokens; the first 20 are never evicted.
    "vatp": {"sinks": 20, "recent": 0.5},
    "vatp-window": {"sinks": 20, "recent": 10, "queries": 400},
    "h2o": {"sinks": 0, "recent": 0.5},
    "a2sf": {"sinks": 0, "forget": 0.99},  # ours: the paper's factor could not be looked up
    "tova": {"sinks": 0, "forget": 0.0},
}
"""Every policy with the settings in which it differs from KVPolicy's defaults."""
NORMED = ("vatp", "vatp-window")  # the policies that multiply by the value's l1 norm: VATP (arXiv:2406.12335)
PREFILLS = ("chunked", "whole")
LAYERS = ("alike", "prefix")
SETTINGS = {
    "sinks": int, "recent": float, "forget": float, "queries": int, "heads": str, "prefill": str, "layers": str,
    "pool": int,
}  # fmt: skip
FORMS = (
    "Expected full, or POLICY:BUDGET with POLICY one of full, window, vatp, vatp-window, h2o, a2sf, tova, "
    "e.g. --kv vatp:512 or --kv h2o:512,sinks=20"
)


@dataclass(frozen=True)
class KVPolicy:
    """Which tokens stay where more than `budget` came, each KV head by itself; all but the last field are uniform.

    name: `full` evicts nothing, `window` all but the first `sinks` and the newest. The others keep these sinks, the
    `recent` newest (below 1 a share of the budget, else tokens), and of the rest the best scored: attention received,
    of which a share `forget` stays with every later query, over the last `queries` queries to twice as many (0: all);
    `heads`: "sum" | "mean" | "max" over the query heads of a KV head. TOVA's paper evicts in all heads alike.
    prefill: "chunked" evicts while a prompt is read, in bounded memory; "whole" after it was read, as the papers do:
    until the next run the cache is as long as the prompt. layers: "alike", or "prefix": each has a budget of its own,
    `budget` being their mean (edgellm.export.prefix_kv). pool: when a prompt that was read whole is pruned, a token
    counts as much as the best of the `pool` ones around it (SnapKV, arXiv 2404.14469; 0: only itself). budgets: one a
    layer, or none: `budget` for all.
    """

    name: str
    budget: int
    sinks: int
    recent: float = 0
    forget: float = 1.0
    queries: int = 0
    heads: str = "sum"
    prefill: str = "chunked"
    layers: str = "alike"
    pool: int = 0
    budgets: tuple[int, ...] = ()

    @property
    def number(self) -> int:
        """The operator's code of the policy."""
        return {"full": FULL, "window": WINDOW}.get(self.name, SCORE)

    @property
    def planes(self) -> int:
        """Planes of the score buffer: floats a token and KV head."""
        return self.control(self.budget).planes

    def layer_budgets(self, layers: int) -> tuple[int, ...]:
        """The budget of every layer."""
        return self.budgets or (self.budget,) * layers

    @property
    def least(self) -> int:
        """The smallest budget that holds sinks, recent tokens and one more."""
        if self.recent < 1:
            return math.ceil((self.sinks + 1) / (1 - self.recent))
        return self.sinks + int(self.recent) + 1

    def recent_tokens(self, budget: int) -> int:
        """`recent` in tokens."""
        return int(self.recent * budget) if self.recent < 1 else int(self.recent)

    def control(self, budget: int) -> Control:
        """What is always the same in a layer's row of `control`."""
        row = Control(0, 0, 0, budget, self.sinks, self.number)
        if self.number != SCORE:
            return row
        return row._replace(
            recent=self.recent_tokens(budget),
            forget=round(self.forget * MILLION),
            queries=self.queries,
            heads=HEADS.index(self.heads),
            norm=int(self.name in NORMED),
        )

    def __str__(self) -> str:
        usual = KVPolicy(**{"name": self.name, "budget": self.budget, **POLICIES[self.name]})
        changed = [(name, getattr(self, name)) for name in SETTINGS if getattr(self, name) != getattr(usual, name)]
        return f"{self.name}:{self.budget}" + "".join(f",{name}={value}" for name, value in changed)


def kv_policy(name: str, budget: int, context: int, budgets: Sequence[int] = (), **settings: Any) -> KVPolicy:
    """A checked policy for a model of `context` tokens; settings: fields of KVPolicy, by default the paper's.

    Raises UsageError for unknown names and settings, values out of range, and budgets that cannot hold sinks and recent
    tokens or exceed the context.
    """
    if name not in POLICIES:
        raise UsageError(f'KV policy "{name}" is unknown', FORMS)
    allowed = {"full": (), "window": ("sinks", "prefill")}.get(name, tuple(SETTINGS))
    wrong = next((key for key in settings if key not in allowed and settings[key] != POLICIES[name].get(key)), None)
    if wrong is not None:
        raise UsageError(f'KV policy "{name}" has no setting "{wrong}"', f"It has: {', '.join(allowed) or 'none'}.")
    if settings.get("recent", 0) >= 1:  # tokens; NaN and what is negative are told below
        settings["recent"] = int(min(settings["recent"], 2**31))
    policy = KVPolicy(**{"name": name, "budget": budget, "budgets": tuple(budgets), **POLICIES[name], **settings})
    _check_settings(policy)
    if name == "full" and budgets:
        raise UsageError('KV policy "full" has one budget for all layers')
    for one in {budget, *budgets}:
        _check_budget(policy, one, context)
    return policy


def _check_settings(policy: KVPolicy) -> None:
    if policy.sinks < 0:
        raise UsageError(f"{policy.sinks} sink tokens; expected 0 or more")
    if not (math.isfinite(policy.recent) and 0 <= policy.recent < 2**31):
        raise UsageError(f"recent={policy.recent}; expected a share of the budget below 1, or a number of tokens")
    if not 0 <= policy.forget <= 1:
        raise UsageError(f"forget={policy.forget}; expected 0 (only the last query counts) to 1 (all alike)")
    if not 0 <= policy.queries < 2**31:
        raise UsageError(f"queries={policy.queries}; expected 0 (all) or how many of the last ones count")
    if policy.pool and (policy.pool % 2 == 0 or policy.pool > 99):
        raise UsageError(f"pool={policy.pool}; expected 0, or an odd number of tokens below 100")
    if policy.pool and policy.prefill != "whole":
        raise UsageError(f"pool={policy.pool} is for prompts that are read whole", "Add prefill=whole.")
    for name, known in (("heads", HEADS), ("prefill", PREFILLS), ("layers", LAYERS)):
        if getattr(policy, name) not in known:
            raise UsageError(f"{name}={getattr(policy, name)}; expected {' or '.join(known)}")


def _check_budget(policy: KVPolicy, budget: int, context: int) -> None:
    least = 1 if policy.name == "full" else policy.sinks + 1
    if not least <= budget <= context:
        why = f": {policy.sinks} sinks and one more must fit" if budget < least else ", the model's context"
        raise UsageError(f"a KV budget of {budget} tokens is outside {least} to {context}{why}", FORMS)
    recent = policy.recent_tokens(budget)
    if policy.number == SCORE and policy.sinks + recent > budget:
        told = f"a KV budget of {budget} tokens does not hold {policy.sinks} sinks and {recent} recent ones"
        raise UsageError(told, f"Give fewer, e.g. --kv {policy.name}:{budget},sinks=4,recent=0.25.")


def parse_kv(text: str, context: int, needs: Sequence[int] | None = None) -> KVPolicy:
    """Read "full", "full:1024", "vatp:512" or "h2o:512,sinks=20,prefill=whole" for a model of `context` tokens.

    needs: the budgets a layer of a bundle ([]: it has none), by which layers=prefix shares this budget; None: as is.
    Raises UsageError, as kv_policy does.
    """
    head, *given = text.strip().split(",")
    name, colon, number = head.partition(":")
    if not colon and name == "full":
        number = str(context)
    elif not colon and name in POLICIES:
        raise UsageError(f'KV policy "{text}" has no budget', FORMS)
    elif colon and not _is_count(number):
        raise UsageError(f'KV budget "{number}" is not a number of tokens', FORMS)
    policy = kv_policy(name, int(number or 0), context, **dict(_setting(part) for part in given))
    if policy.layers == "alike" or needs is None:
        return policy
    if not needs:
        raise UsageError(f"{text}: this bundle has no budgets a layer", f"Export it with --kv {text}.")
    return replace(policy, budgets=spread(needs, policy.budget, policy.least, context))


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 19


def _setting(text: str) -> tuple[str, Any]:
    """ "sinks=20" -> ("sinks", 20)."""
    name, _, value = text.partition("=")
    kind = SETTINGS.get(name)
    if kind is None or not value:
        raise UsageError(f'KV setting "{text}" is unknown; known: {", ".join(f"{key}=" for key in SETTINGS)}', FORMS)
    try:
        if kind is int and not _is_count(value):
            raise ValueError
        return name, kind(value)
    except ValueError:
        raise UsageError(f'KV setting "{text}" is not a number', FORMS) from None
