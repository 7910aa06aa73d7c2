"""`edgellm generate`: continue a prompt, or answer one question."""

from __future__ import annotations

import sys
from itertools import chain
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import click

from edgellm.devices.memory import peak_rss_bytes
from edgellm.runtime import load
from edgellm.runtime.commands.adapters import (
    adapt_options,
    adapter_facts,
    adapter_option,
    adapter_summary,
    adaptive,
    use_adapter,
)
from edgellm.runtime.commands.options import (
    backend_option,
    bundle_argument,
    json_option,
    prompt_cache_option,
    sampling,
    sampling_options,
    session_options,
)
from edgellm.runtime.commands.output import note, print_json, progress_bar, write
from edgellm.runtime.errors import UsageError
from edgellm.runtime.generation import Generation, Result

if TYPE_CHECKING:
    from edgellm.runtime.adaptive import AdaptiveGeneration


@click.command("generate")
@bundle_argument
@click.option("-p", "--prompt", required=True, help="The text to continue; - reads it from stdin.")
@click.option("-n", "--max-new-tokens", type=int, default=256, show_default=True, help="The most tokens to add.")
@click.option("--chat", is_flag=True, help="Ask the prompt as a question, in the model's chat template.")
@click.option("--system", help="A system message before it (with --chat).")
@prompt_cache_option
@adapter_option
@adapt_options
@sampling_options
@session_options
@backend_option
@json_option
def command(
    bundle: Path,
    prompt: str,
    max_new_tokens: int,
    chat: bool,
    system: str | None,
    prompt_cache: Path | None,
    adapter: Path | None,
    adapt: bool,
    carrier: str,
    kv: str | None,
    threads: int | None,
    verify: bool,
    backend: str,
    as_json: bool,
    **settings: Any,
) -> None:
    """Continue a prompt; the text goes to stdout as it comes.

    \b
    edgellm generate bundle -p "The capital of France is" -n 16
    edgellm generate bundle --chat -p "Write a haiku" --temperature 0.7 --seed 1
    edgellm generate bundle --chat -p "When is cassava ripe?" --adapter farm.adapter
    """
    if system is not None and not chat:
        raise UsageError("--system without --chat: plain text has no system message", "Add --chat.")
    if backend == "tensorrt" and (adapt or adapter is not None):
        raise UsageError(f"--backend {backend} with an adapter: adapters run on the CPU", "Leave one of them out.")
    if prompt_cache is not None and (adapt or adapter is not None):
        raise UsageError("--prompt-cache with an adapter: a cache is of the model alone", "Leave one of them out.")
    options = sampling(**settings)
    text = read_stdin() if prompt == "-" else prompt
    begin = perf_counter()
    session = load(bundle, kv=kv, threads=threads, verify=verify, backend=backend)
    if prompt_cache is not None:
        session.restore_cache(prompt_cache)
    used = None if adapter is None else use_adapter(session, adapter, bundle, threads, text)
    load_s = perf_counter() - begin
    generation: Generation | AdaptiveGeneration
    with progress_bar("reading the prompt") as progress:
        if adapt:
            generation = adaptive(session, bundle, threads, carrier, chat, text, system, max_new_tokens, options)
        else:
            messages = [{"role": "system", "content": system}] if system is not None else []
            ids = session.encode_chat([*messages, {"role": "user", "content": text}]) if chat else session.encode(text)
            generation = session.stream(ids, max_new_tokens, options, keep=prompt_cache is not None, progress=progress)
        first = next(generation, "")
    if prompt_cache is not None:
        note_unused(prompt_cache, generation.result)
    for piece in chain([first], generation):
        if not as_json:
            write(piece)
    result = generation.result
    report = getattr(generation, "report", None)
    if as_json:
        print_json(facts(result, load_s) | adapter_facts(used, report))
    else:
        write("\n")
        note(summary(result) + adapter_summary(report))


def facts(result: Result, load_s: float) -> dict[str, Any]:
    """The keys of `generate --json`."""
    return {
        "text": result.text,
        "prompt_tokens": result.prompt_tokens,
        "new_tokens": result.new_tokens,
        "load_s": load_s,
        "prefill_s": result.prefill_s,
        "decode_s": result.decode_s,
        "decode_tokens_per_s": result.decode_tokens_per_s,
        "peak_rss_bytes": peak_rss_bytes(),
        "kv_bytes": result.kv_bytes,
        "stop_reason": result.stop_reason,
        "reused_tokens": result.reused_tokens,
        "kv_evictions": result.kv_evictions,
        "kv_coverage": result.kv_coverage,
    }


def summary(result: Result) -> str:
    """One line for people."""
    reused = f" ({result.reused_tokens} from the cache)" if result.reused_tokens else ""
    prompt = f"{result.prompt_tokens} prompt tokens{reused} in {result.prefill_s:.2f} s"
    speed = f"{result.new_tokens} new at {result.decode_tokens_per_s:.1f} tokens/s"
    kept = "" if result.kv_coverage is None else f", which had {1 - result.kv_coverage:.1%} of the attention"
    evicted = f", {result.kv_evictions} evicted{kept}" if result.kv_evictions else ""
    return f"[{prompt}, {speed}{evicted}, stopped: {result.stop_reason}]"


def note_unused(prompt_cache: Path, result: Result) -> None:
    """Say so when a restored cache saved nothing."""
    if not result.reused_tokens:
        note(f"note: {prompt_cache} is not used: the prompt does not begin with its tokens")


def read_stdin() -> str:
    """All of stdin as UTF-8, without the newline that `echo` ends it with."""
    raw = sys.stdin.buffer.read()
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"stdin is not UTF-8 at byte {error.start}", "Convert it: iconv -t utf-8") from None
    return text.removesuffix("\n").removesuffix("\r")
