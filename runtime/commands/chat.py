"""`edgellm chat`: a conversation, in a terminal or through pipes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from edgellm.runtime import load
from edgellm.runtime.commands.adapters import adapter_option, use_adapter
from edgellm.runtime.commands.generate import note_unused, summary
from edgellm.runtime.commands.options import (
    backend_option,
    bundle_argument,
    json_option,
    prompt_cache_option,
    sampling,
    sampling_options,
    session_options,
)
from edgellm.runtime.commands.output import note, print_json, write
from edgellm.runtime.errors import ContextError, EdgellmError, UsageError
from edgellm.runtime.generation import Result
from edgellm.runtime.sampling import Sampling
from edgellm.runtime.session import Session
from edgellm.runtime.transcript import Transcript


@click.command("chat")
@bundle_argument
@click.option("--system", help="A system message.")
@click.option("-n", "--max-new-tokens", type=int, default=512, show_default=True, help="The most tokens an answer.")
@prompt_cache_option
@adapter_option
@sampling_options
@session_options
@backend_option
@json_option
def command(
    bundle: Path,
    system: str | None,
    max_new_tokens: int,
    prompt_cache: Path | None,
    adapter: Path | None,
    kv: str | None,
    threads: int | None,
    verify: bool,
    backend: str,
    as_json: bool,
    **settings: Any,
) -> None:
    """Talk with the model, a line a turn. /reset starts over, /exit or Ctrl-D ends, Ctrl-C stops an answer.

    \b
    edgellm chat bundle --system "Answer in one sentence." --temperature 0.7
    printf 'Hi!\\nTell me more.\\n' | edgellm chat bundle
    """
    options = sampling(**settings)
    if backend == "tensorrt" and adapter is not None:
        raise UsageError(f"--backend {backend} with an adapter: adapters run on the CPU", "Leave one of them out.")
    session = load(bundle, kv=kv, threads=threads, verify=verify, backend=backend)
    if session.chat is None:
        raise UsageError("this bundle has no chat template", "Use edgellm generate: it continues plain text.")
    if adapter is not None:
        use_adapter(session, adapter, bundle, threads, system or "")
    if prompt_cache is not None:
        session.restore_cache(prompt_cache)
    talk = Conversation(session, system, options, max_new_tokens)
    terminal = sys.stdin.isatty()
    if terminal:
        note("/reset starts over, /exit or Ctrl-D ends")
    results = []
    for line in read_lines(terminal):
        text = line.strip()
        if text == "/exit":
            break
        if text == "/reset":
            talk.reset()
            note("[a new conversation]")
        elif text:
            try:
                results.append(talk.answer(text, shown=not as_json))
                if prompt_cache is not None and len(results) == 1:
                    note_unused(prompt_cache, results[0])
            except ContextError as error:
                if not terminal:
                    raise
                note(f"{error.what}\nStart over with /reset.")
            except EdgellmError as error:
                if not terminal:
                    raise
                note(str(error))
    if as_json:
        names = ("prompt_tokens", "new_tokens", "stop_reason", "prefill_s", "decode_s", "reused_tokens")
        turns = [{name: getattr(result, name) for name in names} for result in results]
        kept = {"kv_evictions": session.kv_evictions, "kv_coverage": session.kv_coverage}
        print_json({"messages": talk.messages, "turns": turns, "kv_bytes": session.kv_bytes, **kept})


class Conversation:
    """Messages and the cache that holds their beginning.

    A turn renders all messages again; what the cache holds of their beginning is not prefilled again (Session.extend),
    even where the end differs, as templates trim answers.
    """

    def __init__(self, session: Session, system: str | None, options: Sampling, max_new_tokens: int) -> None:
        self._session = session
        self._system = system
        self._options = options
        self._most = max_new_tokens
        self._transcript = Transcript(session)
        self.messages: list[dict[str, str]] = []
        self.reset()

    def reset(self) -> None:
        """Back to the system message, which stays in the cache."""
        self.messages = [] if self._system is None else [{"role": "system", "content": self._system}]

    def answer(self, text: str, shown: bool = True) -> Result:
        """Ask, write the answer to stdout as it comes, and keep both. An error leaves the conversation as it was."""
        messages = [*self.messages, {"role": "user", "content": text}]
        ids = self._transcript.encode(messages)
        generation = self._session.stream(ids, self._most, self._options, keep=True)
        try:
            for piece in generation:
                if shown:
                    write(piece)
        except KeyboardInterrupt:
            note(" [stopped]")
        result = generation.result
        self.messages = [*messages, {"role": "assistant", "content": result.text}]
        self._transcript.add(result)
        if shown:
            write("\n")
            note(summary(result))
        return result


def read_lines(terminal: bool) -> Iterator[str]:
    """Lines of stdin until its end; in a terminal with a prompt and line editing."""
    if not terminal:
        yield from sys.stdin
        return
    import contextlib

    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (input() edits lines with it)
    with contextlib.suppress(EOFError, KeyboardInterrupt):
        while True:
            yield input("> ")
