"""`edgellm eval`: perplexity of a text file."""

from __future__ import annotations

from pathlib import Path

import click

from edgellm.runtime import load
from edgellm.runtime.commands.options import bundle_argument, json_option, session_options
from edgellm.runtime.commands.output import note, print_json, progress_bar
from edgellm.runtime.errors import UsageError
from edgellm.runtime.perplexity import score


@click.command("eval")
@bundle_argument
@click.option("--text", required=True, type=click.Path(path_type=Path), help="A UTF-8 text file.")
@click.option("--window", type=int, default=1024, show_default=True, help="Tokens a window, each on a fresh cache.")
@click.option("--tokens", type=int, help="Only the first N tokens of the text.")
@session_options
@json_option
def command(
    bundle: Path,
    text: Path,
    window: int,
    tokens: int | None,
    kv: str | None,
    threads: int | None,
    verify: bool,
    backend: str,
    as_json: bool,
) -> None:
    """Perplexity and bits per byte over non-overlapping windows; "tokens" counts the scored ones.

    \b
    edgellm eval bundle --text wikitext2-valid.txt --window 1024 --tokens 20000
    """
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
