"""--adapter and --adapt: answering with what was learned, or learning before answering."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from edgellm.runtime.errors import UsageError
from edgellm.runtime.sampling import Sampling
from edgellm.runtime.session import Session

if TYPE_CHECKING:  # safetensors and the graphs' readers are only loaded where they are asked for
    from edgellm.runtime.adaptive import AdaptiveGeneration, Report

F = TypeVar("F", bound=Callable[..., Any])

adapter_option = click.option(
    "--adapter",
    metavar="PATH",
    type=click.Path(path_type=Path),
    help="From edgellm adapt: a file, or a folder, of which the one for questions like this is used, if any.",
)


def adapt_options(command: F) -> F:
    """--adapt and --carrier."""
    told = "Where an answer begins in doubt, adapt to the question first, and forget it afterwards."
    command = click.option(
        "--carrier", type=click.Choice(["prefix", "soft", "lora", "delta"]), default="prefix", show_default=True,
        help="What --adapt changes: keys and values of the first tokens, their embeddings, updates of q and v (LoRA), "
        "or a shift of the logits.",
    )(command)  # fmt: skip
    return click.option("--adapt", is_flag=True, help=told)(command)


def use_adapter(session: Session, path: Path, bundle: Path, threads: int | None, text: str) -> Path | None:
    """Let the session use the adapter at `path`; of a folder, the one that was made with questions most like `text`.

    Returns its file, None where no adapter of a folder is like enough. Raises AdapterError, and UsageError for a folder
    that has none for this bundle.
    """
    from edgellm.runtime.adapter import load_adapter, nearest, stored_adapters
    from edgellm.runtime.head import Head

    if not path.is_dir():
        session.use(load_adapter(path, session.manifest))
        return path
    found = dict(stored_adapters(path, session.manifest))
    if not found:
        raise UsageError(f"{path} has no adapters for this bundle", "Make one: edgellm adapt BUNDLE -o FILE.adapter")
    tokens = session.encode(text)
    chosen = nearest(found, Head(bundle, session.manifest, threads).about(tokens)) if tokens else None
    session.use(found[chosen] if chosen else None)
    return chosen


def adaptive(
    session: Session, bundle: Path, threads: int | None, carrier: str, chat: bool, text: str, system: str | None,
    most: int, options: Sampling,
) -> AdaptiveGeneration:  # fmt: skip
    """An answer that is adapted to where it begins in doubt. Raises UsageError for a bundle that cannot adapt."""
    from edgellm.runtime.adaptive import AdaptiveGeneration
    from edgellm.runtime.carrier import carrier_of
    from edgellm.runtime.question import asked, plain

    question = asked(session, text, system) if chat else plain(session, text)
    found = carrier_of(carrier, bundle, session.manifest, threads)
    return AdaptiveGeneration(session, question, found, most, options)


def adapter_facts(used: Path | None, report: Report | None) -> dict[str, Any]:
    """The keys that generate --json adds: "adapter", the file in use, and "adapt", what adaptive.Report says."""
    told = {} if report is None else {"adapt": asdict(report)}
    return {"adapter": str(used) if used else None, **told}


def adapter_summary(report: Report | None) -> str:
    """Half a line for people."""
    if report is None:
        return ""
    if not report.gated:
        return f" [doubt {report.entropy:.2f} nats: not adapted]"
    told = f"doubt {report.entropy:.2f} nats, {report.steps} steps in {report.extra_s:.2f} s"
    if not report.accepted:
        return f" [{told}: not believed, the answer is the model's own]"
    return f" [{told}: then {report.entropy_after:.2f}, KL {report.kl:.3f}]"
