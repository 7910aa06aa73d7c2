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
from edgellm.runtime.session import Session

QUESTIONS, WORDS = 48, 24  # pieces of text, and tokens each: about as long as a question
CHAT_ROOM = 8  # a context is at least so many times a question, or there is no room for a template


def adapt_facts(
    arch: Architecture,
    folder: Path,
    facts: dict[str, Any],
    text: Tensor,
    progress: Callable[[str, int, int], None],
) -> dict[str, Any]:
    """The manifest's "adapt". text: int64 [N, L], pieces of which are asked as questions."""
    session = load(folder, kv="full", threads=torch.get_num_threads(), manifest=manifest.parse(facts))
    flat = text.flatten()
    starts = sorted(set(torch.linspace(0, max(0, flat.numel() - WORDS), QUESTIONS).long().tolist()))
    pieces = [flat[start : start + WORDS].tolist() for start in starts]
    chat = session.manifest.has_chat_template and arch.context >= CHAT_ROOM * WORDS
    questions = [_question(session, piece, chat) for piece in pieces]
    gate = calibrate(session, questions, partial(progress, "gate"), chat)
    return {"softcap": arch.final_softcap, "gate": asdict(gate)}


def _question(session: Session, piece: list[int], chat: bool) -> Question:
    if chat:
        return asked(session, session.decode(piece).strip())
    return Question(piece, range(1, len(piece)))
