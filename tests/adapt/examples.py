"""Questions, an adapter that changes the model, and the command line."""

from __future__ import annotations

import numpy as np
from click.testing import CliRunner

from edgellm.runtime.adapter import Adapter, Facts
from edgellm.runtime.cli import main
from edgellm.runtime.question import Question
from edgellm.runtime.session import Session

TEXTS = [f"What is {one} of {other}?" for one in ("a letter", "12", "the lamp") for other in ("ships", "March", "sea")]


def shifted(session: Session, question: Question, size: float = 0.5) -> Adapter:
    """A prefix that is not what the model makes of its tokens."""
    session.use(None)
    session.extend(question.ids)
    rng = np.random.default_rng(0)
    tensors = {
        name: (value + size * rng.normal(size=value.shape)).astype(np.float32)
        for name, value in zip(("key", "value"), session.first(5), strict=True)
    }
    return Adapter(Facts("prefix", session.manifest.weights_sha256, question.ids[:5]), tensors)


def command(*arguments: object) -> tuple[int, str, str]:
    done = CliRunner().invoke(main, [str(argument) for argument in arguments])
    return done.exit_code, done.stdout, done.stderr
