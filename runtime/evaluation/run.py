"""Ask every item under every policy and budget."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.runtime.errors import UsageError
from edgellm.runtime.evaluation import scores
from edgellm.runtime.evaluation.branches import Branches, reading
from edgellm.runtime.evaluation.cells import Cell
from edgellm.runtime.evaluation.documents import read_documents
from edgellm.runtime.evaluation.results import Results, Row
from edgellm.runtime.evaluation.tasks import GROUP, TASKS, Item, Source
from edgellm.runtime.kv_policy import KVPolicy
from edgellm.runtime.perplexity import surprise
from edgellm.runtime.sampling import Sampling
from edgellm.runtime.session import Progress, Session, shared

TEXT = "text"
SCORED, RUN = 128, 8  # tokens of a text that are scored after its prompt, and of a run of them
GOLDEN = 0.6180339887498949  # multiples of it, less their whole part, spread evenly however many there are


@dataclass(frozen=True)
class Plan:
    """task: a key of TASKS, or TEXT. length: tokens of a prompt, about. question: "last" | "first"."""

    task: str
    documents: Path
    length: int
    question: str
    seed: int

    def facts(self, session: Session) -> dict[str, Any]:
        """What must be equal for two results to belong together."""
        content = hashlib.sha256(self.documents.read_bytes()).hexdigest()
        same = {"task": self.task, "length": self.length, "question": self.question, "seed": self.seed}
        return same | {"model": session.manifest.weights_sha256[:16], "documents": content[:16]}


def evaluate(
    session: Session, plan: Plan, cells: Sequence[Cell], items: int, path: Path | None, progress: Progress
) -> Results:
    """Score `items` items under all cells; what `path` already holds is not run again. Deterministic.

    session: as Branches wants it. Prompts are read whole, then pruned, and answered greedily. Raises UsageError for
    documents that do not serve the task, ContextError for prompts beyond the model's context.
    """
    source = Source(read_documents(plan.documents), lambda text: len(session.encode(text)), plan.length,
                    plan.question == "first")  # fmt: skip
    results, branches = Results(path, plan.facts(session)), Branches(session)
    grouped = sorted(cells, key=lambda cell: str(reading(_policy(session, cell, plan.length), session.limit)))
    size = 1 if plan.task in (TEXT, "needles-all") else GROUP
    for group in range(-(-items // size)):
        rng, prompts = np.random.default_rng([plan.seed, group]), list[tuple[list[int], Item]]()
        for item in range(size * group, min(items, size * (group + 1))):
            row = results.rows.get(item)
            missing = [cell for cell in grouped if row is None or str(cell) not in row.scores]
            if missing and plan.task == TEXT:
                results.add(_text(session, branches, _text_ids(session, plan, source, rng), item, missing))
            elif missing:
                prompts = prompts or _prompts(session, plan, source, rng, group)
                ids, asked = prompts[item - size * group]
                branches.prompt(ids, min(shared(ids, other) for other, _ in prompts) if size > 1 else 0)
                results.add(_ask(session, branches, plan.task, len(ids), asked, item, missing))
            progress(item + 1, items)
    return results


def _policy(session: Session, cell: Cell, prompt: int) -> KVPolicy:
    return cell.of(prompt, session.limit, session.manifest.kv.budgets)


def _prompts(
    session: Session, plan: Plan, source: Source, rng: np.random.Generator, group: int
) -> list[tuple[list[int], Item]]:
    items = TASKS[plan.task](source, rng, [(group * GROUP + i) * GOLDEN % 1 for i in range(GROUP)])
    return [(prompt_ids(session, item), item) for item in items]


def _ask(
    session: Session, branches: Branches, task: str, tokens: int, item: Item, number: int, cells: Sequence[Cell]
) -> Row:
    found, answers = dict[str, float](), dict[str, str]()
    for cell in cells:
        logits = branches.take(_policy(session, cell, tokens))
        answer = session.decode(continued(session, logits, item.new_tokens))
        answers[str(cell)], found[str(cell)] = answer, graded(task, item, answer)
    return Row(number, tokens, found, answers)


def prompt_ids(session: Session, item: Item) -> list[int]:
    """An item as a question in the chat template, if there is one, up to the beginning of the answer."""
    if session.chat is None:
        return session.encode(f"{item.text}\n\n{item.cue}")
    asked = session.encode_chat([{"role": "user", "content": item.text}])
    begun: list[int] = session.tokenizer.encode(item.cue, add_special_tokens=False).ids
    return asked + begun


def continued(session: Session, logits: NDArray[np.float32], tokens: int) -> list[int]:
    """Greedy ids after logits [V], up to a stop token or so many."""
    ids: list[int] = []
    sampler = Sampling().sampler(ids)
    while (token := sampler(logits)) not in session.manifest.tokens.stop:
        ids.append(token)
        if len(ids) == tokens:
            break
        logits = session.step(token)
    return ids


def graded(task: str, item: Item, answer: str) -> float:
    """0 to 1: token F1 of a question's answer, else the share of numbers found."""
    if task != "qa":
        return scores.found(answer, item.answers)
    line = answer.strip().partition("\n")[0]
    return scores.f1(" ".join(line.split()[: item.words]) if item.words else line, item.answers[0])


def _text_ids(session: Session, plan: Plan, source: Source, rng: np.random.Generator) -> list[int]:
    wanted = plan.length + SCORED
    ids = session.encode(" ".join(source.filler(rng, round(1.1 * wanted))))
    if len(ids) < wanted:
        raise UsageError(f"{len(ids)} tokens of text; expected {wanted}", "Give less --length, or longer texts.")
    return ids[:wanted]


def _text(session: Session, branches: Branches, ids: Sequence[int], number: int, cells: Sequence[Cell]) -> Row:
    """Mean nats a token of the last SCORED ids, RUN at a time: each sees what the budget left, and its own run."""
    prompt, following, found = len(ids) - SCORED, np.array(ids[-SCORED:]), dict[str, float]()
    branches.prompt(ids[:prompt])
    for cell in cells:
        nats = surprise(branches.take(_policy(session, cell, prompt))[None], following[:1])
        for start in range(0, SCORED, RUN):
            after = following[start + 1 : start + RUN + 1]
            nats += surprise(session.prefill(following[start : start + RUN].tolist(), "all")[: len(after)], after)
        found[str(cell)] = nats / SCORED
    return Row(number, prompt, found, {})
