"""`edgellm bench`: how fast a bundle is here, and how near to what the memory allows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from pathlib import Path
from time import perf_counter
from typing import Any

import click

from edgellm.devices.cores import usable_cores
from edgellm.runtime import load
from edgellm.runtime.benchmark import Case, check_lengths, measure, prompt_ids
from edgellm.runtime.commands.options import backend_option, bundle_argument, json_option, session_options
from edgellm.runtime.commands.output import note, print_json, progress_bar
from edgellm.runtime.errors import EdgellmError, UsageError
from edgellm.runtime.roofline import manifest_weight_bytes

PASSES = 3  # over the buffer, a turn


@click.command("bench")
@bundle_argument
@click.option(
    "--prompt-tokens", metavar="N,N,…", default="32,1024", show_default=True, help="Prompt lengths to measure at."
)
@click.option("--new-tokens", type=int, default=128, show_default=True, help="Tokens to decode after each.")
@click.option("--runs", type=int, default=5, show_default=True, help="Runs a length; medians are shown.")
@session_options
@backend_option
@json_option
def command(
    bundle: Path,
    prompt_tokens: str,
    new_tokens: int,
    runs: int,
    kv: str | None,
    threads: int | None,
    verify: bool,
    backend: str,
    as_json: bool,
) -> None:
    """Measure loading, prefill, decoding, memory, and the share of this machine's read bandwidth that decoding has.

    Greedy, on English text, end-of-text ignored. Let nothing else run meanwhile.

    \b
    edgellm bench bundle --prompt-tokens 32,1024 --new-tokens 128 --runs 5
    """
    prompts = lengths(prompt_tokens)
    begin = perf_counter()
    session = load(bundle, kv=kv, threads=threads, verify=verify, backend=backend)
    load_s = perf_counter() - begin
    check_lengths(session, prompts, new_tokens, runs)
    session.generate(prompt_ids(session, min(prompts)), 1, stop=())
    first_token_s = perf_counter() - begin
    with progress_bar("measuring") as progress:
        measured = measure(session, prompts, new_tokens, runs, bandwidth_of(threads or usable_cores()), progress)
    facts = {
        "read_bandwidth_gb_s": measured.bandwidth / 1e9,
        "roofline_share": measured.share,
        "load_s": load_s,
        "first_token_s": first_token_s,
        "peak_rss_bytes": measured.peak_rss_bytes,
        "weight_bytes": manifest_weight_bytes(session.manifest),
        "threads": threads or usable_cores(),
        "kv": str(session.policy),
        "new_tokens": new_tokens,
        "runs": runs,
        "cases": [asdict(case) for case in measured.cases],
    }
    if as_json:
        print_json(facts)
    else:
        show(facts, measured.cases)


def lengths(text: str) -> list[int]:
    """ "32,1024" -> [32, 1024], without repetitions. Raises UsageError."""
    try:
        return list(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        raise UsageError(f'--prompt-tokens is "{text}"; expected numbers such as 32,1024') from None


def bandwidth_of(threads: int) -> Callable[[], float]:
    """What measures bytes a second, the buffer made when first asked. Raises EdgellmError: no native library."""
    from edgellm.kernels.read_bandwidth import ReadBandwidth

    made = cache(lambda: ReadBandwidth(threads))

    def measured() -> float:
        try:
            return made().measure(PASSES)
        except FileNotFoundError as error:
            hint = "Install a wheel that has it: pip install --force-reinstall edgellm"
            raise EdgellmError(f"the read bandwidth cannot be measured: {error}", hint) from None

    return measured


def show(facts: dict[str, Any], cases: list[Case]) -> None:
    """The table for people on stdout, and on stderr what it was measured with."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None)
    for name in ("prompt tokens", "prefill tokens/s", "decode tokens/s", "KV MB", "KV MB read a token"):
        table.add_column(name, justify="right")
    for case in cases:
        speeds = (f"{case.prefill_tokens_per_s:.1f}", f"{case.decode_tokens_per_s:.1f}")
        table.add_row(str(case.prompt_tokens), *speeds, f"{case.kv_bytes / 1e6:.1f}", f"{case.kv_read_bytes / 1e6:.2f}")
    console = Console(markup=False, emoji=False, highlight=False)
    if not console.is_terminal:
        console.width = 120
    console.print(table)
    click.echo(f"loaded in {facts['load_s']:.2f} s, first token after {facts['first_token_s']:.2f} s")
    click.echo(f"peak memory {facts['peak_rss_bytes'] / 1e6:.0f} MB")
    share = f"{facts['roofline_share']:.0%} of the read bandwidth, {facts['read_bandwidth_gb_s']:.1f} GB/s"
    read = f"{facts['weight_bytes'] / 1e6:.1f} MB of weights a token"
    click.echo(f"decoding has {share} ({read}, after {min(case.prompt_tokens for case in cases)} tokens)")
    note(f"[{facts['threads']} threads, KV cache {facts['kv']}, medians of {facts['runs']} runs]")
