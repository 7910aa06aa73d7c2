"""What a bundle says about adapting: when a question is unfamiliar to it, measured on the finished bundle."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edgellm.export.architectures import Architecture
from edgellm.runtime import load, manifest
from edgellm.runtime.gate import calibrate
from edgellm.runtime.question import Question, asked
from edgellm.runtime.sampling import Sampling
from edgellm.runtime.session import Session

QUESTIONS, WORDS = 48, 24  # and tokens each, at most: about as long as a question
CHAT_ROOM = 8  # a context is at least so many times a question, or there is no room for a template


def adapt_facts(
    arch: Architecture,
    folder: Path,
    facts: dict[str, Any],
    text: Tensor,
    progress: Callable[[str, int, int], None],
) -> dict[str, Any]:
    """The manifest's "adapt". text: int64 [N, L], pieces of which stand for questions where there is no chat."""
    session = load(folder, kv="full", threads=torch.get_num_threads(), manifest=manifest.parse(facts))
    chat = session.manifest.has_chat_template and arch.context >= CHAT_ROOM * WORDS
    own = own_questions(session) if chat else []
    gate = calibrate(session, own or _pieces(text), partial(progress, "gate"), bool(own))
    return {"softcap": arch.final_softcap, "gate": asdict(gate)}


def own_questions(session: Session) -> list[Question]:
    """What the model expects to be asked: what it says itself where the user's turn begins (Magpie, arXiv 2406.08464).

    Pieces of a text that are asked as if they were questions leave a model in far more doubt than questions do.
    """
    empty = asked(session, "A")
    head = empty.ids[: empty.scored.start]
    drawn = [session.generate(head, WORDS, Sampling(1.0, seed=seed)).text.strip() for seed in range(QUESTIONS)]
    return [asked(session, text) for text in drawn if text]


def _pieces(text: Tensor) -> list[Question]:
    flat = text.flatten()
    starts = sorted(set(torch.linspace(0, max(0, flat.numel() - WORDS), QUESTIONS).long().tolist()))
    return [Question(flat[start : start + WORDS].tolist(), range(1, min(WORDS, flat.numel()))) for start in starts]
