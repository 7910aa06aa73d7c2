"""`edgellm cache-prompt`: read a prompt once, and keep its KV cache in a file."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter

import click

from edgellm.runtime import load
from edgellm.runtime.commands.generate import read_stdin
from edgellm.runtime.commands.options import backend_option, bundle_argument, json_option, session_options
from edgellm.runtime.commands.output import note, print_json, progress_bar
from edgellm.runtime.errors import UsageError
from edgellm.runtime.session import Session, shared


@click.command("cache-prompt")
@bundle_argument
@click.option("-p", "--prompt", help="The text; - reads it from stdin. With --system it may be left out.")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The file; replaced if it exists.")
@click.option("--chat", is_flag=True, help="The prompt is a question, in the model's chat template.")
@click.option("--system", help="A system message before it (with --chat).")
@session_options
@backend_option
@json_option
def command(
    bundle: Path,
    prompt: str | None,
    output: Path,
    chat: bool,
    system: str | None,
    kv: str | None,
    threads: int | None,
    verify: bool,
    backend: str,
    as_json: bool,
) -> None:
    """Read a prompt once and save its KV cache, for --prompt-cache of generate and chat.

    \b
    edgellm cache-prompt bundle --chat --system "$(cat rules.txt)" -o rules.cache
    edgellm chat bundle --system "$(cat rules.txt)" --prompt-cache rules.cache
    """
    if system is not None and not chat:
        raise UsageError("--system without --chat: plain text has no system message", "Add --chat.")
    if prompt is None and system is None:
        raise UsageError("there is no prompt to cache", "Give -p TEXT, or --chat --system TEXT.")
    text = read_stdin() if prompt == "-" else prompt
    session = load(bundle, kv=kv, threads=threads, verify=verify, backend=backend)
    ids = chat_beginning(session, system, text) if chat else session.encode(text or "")
    begin = perf_counter()
    with progress_bar("reading the prompt") as progress:
        session.extend(ids, progress=progress)
    prefill_s = perf_counter() - begin
    session.save_cache(output)
    size = output.stat().st_size
    if as_json:
        facts = {"output": str(output), "tokens": len(ids), "bytes": size, "prefill_s": prefill_s}
        print_json({**facts, "kv": str(session.policy)})
    else:
        note(f"[{len(ids)} tokens in {prefill_s:.2f} s; {output}: {size / 2**20:.1f} MiB]")


def chat_beginning(session: Session, system: str | None, text: str | None) -> list[int]:
    """Ids of a conversation up to the first answer; without a question, as far as any question leaves them the same."""
    messages = [{"role": "system", "content": system}] if system is not None else []
    if text is not None:
        return session.encode_chat([*messages, {"role": "user", "content": text}])
    one, other = (session.encode_chat([*messages, {"role": "user", "content": content}]) for content in ("A", "1"))
    return one[: shared(one, other)]
