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
from edgellm.runtime.evaluation.branches import Branches, counted
from edgellm.runtime.evaluation.cells import Cell
from edgellm.runtime.evaluation.documents import read_documents
from edgellm.runtime.evaluation.results import Results, Row
from edgellm.runtime.evaluation.tasks import TASKS, Item, Source
from edgellm.runtime.perplexity import surprise
from edgellm.runtime.sampling import Sampling
from edgellm.runtime.session import Progress, Session

TEXT = "text"
SCORED = 128  # tokens of a text that are scored, after its prompt
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
    results = Results(path, plan.facts(session))
    grouped = sorted(cells, key=lambda cell: str(counted(cell.of(plan.length, session.limit)) or ""))
    for item in range(items):
        row = results.rows.get(item)
        missing = [cell for cell in grouped if row is None or str(cell) not in row.scores]
        if missing:
            rng = np.random.default_rng([plan.seed, item])
            run = _text if plan.task == TEXT else _ask
            results.add(run(session, plan, source, rng, item, missing))
        progress(item + 1, items)
    return results


def _ask(
    session: Session, plan: Plan, source: Source, rng: np.random.Generator, number: int, cells: Sequence[Cell]
) -> Row:
    item = TASKS[plan.task](source, rng, number * GOLDEN % 1)
    ids = prompt_ids(session, item)
    branches, found, answers = Branches(session, ids), dict[str, float](), dict[str, str]()
    for cell in cells:
        logits = branches.take(cell.of(len(ids), session.limit))
        answer = session.decode(continued(session, logits, item.new_tokens))
        answers[str(cell)], found[str(cell)] = answer, graded(plan.task, item, answer)
    return Row(number, len(ids), found, answers)


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


def _text(
    session: Session, plan: Plan, source: Source, rng: np.random.Generator, number: int, cells: Sequence[Cell]
) -> Row:
    """Mean nats a token of the SCORED tokens after a prompt, a token a run: each sees what the budget left."""
    ids = session.encode(" ".join(source.filler(rng, round(1.1 * (plan.length + SCORED)))))
    if len(ids) < plan.length + SCORED:
        raise UsageError(f"{len(ids)} tokens of text; expected {plan.length + SCORED}", "Give less --length.")
    following = ids[plan.length : plan.length + SCORED]
    branches, found = Branches(session, ids[: plan.length]), dict[str, float]()
    for cell in cells:
        logits, nats = branches.take(cell.of(plan.length, session.limit)), 0.0
        for place, token in enumerate(following):
            nats += surprise(logits[None], np.array([token]))
            if place + 1 < SCORED:
                logits = session.step(token)
        found[str(cell)] = nats / SCORED
    return Row(number, plan.length, found, {})
