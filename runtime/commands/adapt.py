"""`edgellm adapt`: learn from unlabelled questions on the device, and keep what was learned in a file."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import click

from edgellm.runtime import load
from edgellm.runtime.adapter import Adapter, save_adapter
from edgellm.runtime.carrier import CARRIERS, carrier_of
from edgellm.runtime.cohort import REFERENCES, CohortSettings, adapt_cohort, stream_cohort
from edgellm.runtime.commands.options import bundle_argument, json_option, session_options
from edgellm.runtime.commands.output import note, print_json, progress_bar, write
from edgellm.runtime.head import Head
from edgellm.runtime.objective import OBJECTIVES
from edgellm.runtime.question import Question, asked, plain
from edgellm.runtime.questions_file import read_questions


@click.command("adapt")
@bundle_argument
@click.option("--questions", required=True, type=click.Path(path_type=Path), metavar="FILE",
              help='A JSON list, JSON lines ("question"), or plain text, a question a line.')  # fmt: skip
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), metavar="ADAPTER",
              help="The file, named *.adapter to be found in a folder; replaced if it exists.")  # fmt: skip
@click.option("--mode", type=click.Choice(["cohort", "stream"]), default="cohort", show_default=True,
              help="cohort: learn from all, then freeze. stream: answer each, then learn from it.")  # fmt: skip
@click.option("--carrier", type=click.Choice(list(CARRIERS)), default="prefix", show_default=True,
              help="Keys and values of the first tokens, their embeddings, updates of q and v (LoRA), or a shift of "
              "the logits.")  # fmt: skip
@click.option("--objective", type=click.Choice(OBJECTIVES), default=CohortSettings.objective, show_default=True,
              help="tlm: surprise at the question. entropy: doubt about the answer. sytta: both.")  # fmt: skip
@click.option("--reference", type=click.Choice(REFERENCES), default="static", show_default=True,
              help="Whose first answer tokens count: the base model's, or those of the adapted one.")  # fmt: skip
@click.option("--tokens", type=int, default=CohortSettings.tokens, show_default=True, help="Answer tokens that count.")
@click.option("--rate", type=float, default=CohortSettings.rate, show_default=True, help="Of learning, at first.")
@click.option("--chat/--plain", default=None, help="In the chat template, or not. Default: if there is one.")
@click.option("-n", "--max-new-tokens", type=int, default=64, show_default=True, help="Of an answer (stream).")
@session_options
@json_option
def command(
    bundle: Path,
    questions: Path,
    output: Path,
    mode: str,
    carrier: str,
    chat: bool | None,
    max_new_tokens: int,
    kv: str | None,
    threads: int | None,
    verify: bool,
    as_json: bool,
    **chosen: Any,
) -> None:
    """Learn from unlabelled questions of one kind (SyTTA), for --adapter of generate and chat. Needs a bundle that was
    exported with --adapt.

    \b
    edgellm adapt bundle --questions farm.txt -o farm.adapter
    edgellm generate bundle --chat --adapter farm.adapter -p "When is cassava ripe?"
    """
    settings = CohortSettings(**chosen)
    texts = read_questions(questions)
    session = load(bundle, kv=kv, threads=threads, verify=verify)
    head = Head(bundle, session.manifest, threads)
    chat = session.manifest.has_chat_template if chat is None else chat
    asking = [asked(session, text) if chat else plain(session, text) for text in texts]
    begin, found, answers = perf_counter(), carrier_of(carrier, bundle, session.manifest, threads), []
    facts: dict[str, Any] = {"output": str(output), "mode": mode, "carrier": carrier, **asdict(settings)}
    with progress_bar("learning") as progress:
        if mode == "cohort":
            adapter, outcome = adapt_cohort(session, found, asking, settings, progress)
            before, after = (dict(losses._asdict()) for losses in (outcome.before, outcome.after))
            facts |= {**asdict(outcome), "before": before, "after": after}
        else:
            for text, so_far in stream_cohort(session, found, asking, settings, max_new_tokens):
                adapter = so_far
                answers.append(text)
                progress(len(answers), len(asking))
                if not as_json:
                    write(f"{text}\n")
            facts |= {"questions": len(asking), "answers": answers}
    save_adapter(output, _about(adapter, head, asking))
    facts |= {"seconds": perf_counter() - begin, "bytes": output.stat().st_size}
    if as_json:
        print_json(facts)
    else:
        note(_summary(facts, output))


def _about(adapter: Adapter, head: Head, questions: list[Question]) -> Adapter:
    """With the mean embedding of the questions, by which generate finds it in a folder."""
    tokens = [question.ids[i] for question in questions for i in question.scored]
    return replace(adapter, facts=replace(adapter.facts, about=head.about(tokens).tolist())) if tokens else adapter


def _summary(facts: dict[str, Any], output: Path) -> str:
    told = f"[{facts['questions']} questions in {facts['seconds']:.1f} s; {output}: {facts['bytes'] / 1024:.0f} KiB"
    if "before" in facts:
        before, after = facts["before"], facts["after"]
        told += f"; on {facts['checked']} others surprise {before['ida']:.3f} to {after['ida']:.3f}, doubt "
        told += f"{before['entropy']:.3f} to {after['entropy']:.3f} nats, KL {after['kl']:.3f}"
    return f"{told}]"
