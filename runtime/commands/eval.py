"""`edgellm eval`: perplexity of a text file, or tasks over long prompts under KV policies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgellm.runtime import load
from edgellm.runtime.commands.options import backend_option, bundle_argument, json_option, threads_option, verify_option
from edgellm.runtime.commands.output import note, print_json, progress_bar
from edgellm.runtime.errors import UsageError
from edgellm.runtime.perplexity import score

TASKS = ("passkey", "needles", "needles-all", "qa", "text")
OF_TEXT = ("window", "tokens")
OF_TASK = ("documents", "budgets", "items", "length", "question", "seed", "against", "results", "output")


@click.command("eval")
@bundle_argument
@click.option("--text", type=click.Path(path_type=Path), help="A UTF-8 text file: its perplexity.")
@click.option("--window", type=int, default=1024, show_default=True, help="Tokens a window, each on a fresh cache.")
@click.option("--tokens", type=int, help="Only the first N tokens of the text.")
@click.option("--task", type=click.Choice(TASKS), help="Or a task, built from --documents, policy by policy.")
@click.option(
    "--documents",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help='Text, JSON or JSON lines: strings, or objects with "text", or with "question" and "answer".',
)
@click.option(
    "--kv",
    "policies",
    metavar="POLICY",
    multiple=True,
    help="full, or POLICY:BUDGET[,SETTING=VALUE], e.g. vatp:512; default: the bundle's. With --task it may be "
    "given again, a budget may be a share of the prompt (vatp:25%), and without one it takes --budgets.",
)
@click.option("--budgets", default="50%,25%,12.5%", show_default=True, help="Of each --kv without one.")
@click.option("--items", type=click.IntRange(1), default=50, show_default=True, help="Prompts of a task.")
@click.option("--length", type=click.IntRange(64), default=2000, show_default=True, help="Tokens of a prompt, about.")
@click.option(
    "--question",
    type=click.Choice(["last", "first"]),
    default="last",
    show_default=True,
    help="Where it is asked: after the text, or before.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Other items.")
@click.option("--against", metavar="POLICY", default="", help="Also the difference to it, item by item.")
@click.option(
    "--results",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="JSON lines: an item's results are added as they come; what is there is not run again.",
)
@click.option("-o", "--output", metavar="FILE.svg", type=click.Path(path_type=Path), help="A picture of the table.")
@threads_option
@backend_option
@verify_option
@json_option
@click.pass_context
def command(
    context: click.Context, /, bundle: Path, text: Path | None, window: int, tokens: int | None, task: str | None,
    policies: tuple[str, ...], threads: int | None, verify: bool, backend: str, as_json: bool, **settings: Any,
) -> None:  # fmt: skip
    """Perplexity and bits per byte of a text over non-overlapping windows ("tokens" counts the scored ones); or how
    well tasks over long prompts go under KV policies and budgets.

    \b
    edgellm eval bundle --text wikitext2-valid.txt --window 1024 --tokens 20000
    edgellm eval bundle --task passkey --documents speeches.txt --kv vatp --kv h2o,sinks=20 --kv window:25%
    """
    if (text is None) == (task is None):
        raise UsageError("give --text FILE or --task TASK", "See edgellm eval --help.")
    unused = OF_TASK if task is None else OF_TEXT
    given = [name for name in unused if context.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT]
    if given:
        raise UsageError(f"--{given[0]} means nothing with {'--text' if task is None else '--task'}")
    if task is not None:
        from edgellm.runtime.commands.eval_task import run  # late: --text needs none of it

        return run(bundle, task, policies, threads, verify, as_json, **settings)
    assert text is not None
    if len(policies) > 1:
        raise UsageError("--text has one --kv", "With --task it may be given again.")
    return perplexity(
        bundle, text, window, tokens, policies[0] if policies else None, threads, verify, backend, as_json
    )


def perplexity(
    bundle: Path, text: Path, window: int, tokens: int | None, kv: str | None, threads: int | None, verify: bool,
    backend: str, as_json: bool,
) -> None:  # fmt: skip
    """`edgellm eval --text`."""
    if tokens is not None and tokens < 2:
        raise UsageError(f"--tokens is {tokens}; expected 2 or more")
    content = read_text(text)
    session = load(bundle, kv=kv, threads=threads, verify=verify, backend=backend)
    ids = session.tokenizer.encode(content, add_special_tokens=False).ids[:tokens]
    with progress_bar("scoring") as progress:
        found = score(session, ids, window, progress)
    facts = {
        "perplexity": found.perplexity,
        "bits_per_byte": found.bits_per_byte,
        "tokens": found.tokens,
        "window": found.window,
    }
    if as_json:
        print_json(facts)
    else:
        click.echo(f"perplexity {found.perplexity:.4f}  bits per byte {found.bits_per_byte:.4f}")
        note(f"[{found.tokens} tokens in windows of {found.window}]")


def read_text(path: Path) -> str:
    """A UTF-8 file. Raises UsageError."""
    try:
        return path.read_bytes().decode("utf-8")
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}", "Check --text.") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 at byte {error.start}", "Convert it: iconv -t utf-8") from None
