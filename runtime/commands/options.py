"""Options that several verbs share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from edgellm.runtime.sampling import Sampling

F = TypeVar("F", bound=Callable[..., Any])

bundle_argument = click.argument("bundle", type=click.Path(path_type=Path))
json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
verify_option = click.option("--verify", is_flag=True, help="Check the weights' checksum too.")

threads_option = click.option("--threads", type=int, help="Default: this machine's physical cores.")

backend_option = click.option(
    "--backend",
    type=click.Choice(["cpu", "onnxruntime", "tensorrt"]),
    default="cpu",
    show_default=True,
    help="onnxruntime: ONNX Runtime on the CPU, as for graphs not ours. tensorrt: the bundle's engine, on a GPU.",
)

prompt_cache_option = click.option(
    "--prompt-cache",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="From cache-prompt: what the prompt begins with, already read.",
)


def session_options(command: F) -> F:
    """--kv, --threads, --verify: the keyword arguments of edgellm.runtime.load."""
    command = threads_option(verify_option(command))
    told = "full, or POLICY:BUDGET[,SETTING=VALUE], e.g. vatp:512; default: the bundle's."
    return click.option("--kv", metavar="POLICY", help=told)(command)


def sampling_options(command: F) -> F:
    """The fields of Sampling."""
    for option in (
        click.option("--seed", type=int, help="Makes sampling repeatable."),
        click.option("--repetition-penalty", type=float, default=1.0, help="Above 1: avoid tokens already seen."),
        click.option("--min-p", type=float, default=0.0, help="Drop tokens under P times the likeliest one's."),
        click.option("--top-k", type=int, default=0, help="Draw from the K likeliest; 0 is off."),
        click.option("--top-p", type=float, default=1.0, help="Draw from the likeliest that sum to P; 1 is off."),
        click.option("--temperature", type=float, default=0.0, show_default=True, help="0 is greedy."),
    ):
        command = option(command)
    return command


def sampling(
    temperature: float, top_p: float, top_k: int, min_p: float, repetition_penalty: float, seed: int | None
) -> Sampling:
    """Checked settings from sampling_options; notes on stderr what greedy decoding leaves unused."""
    settings = Sampling(temperature, top_k, top_p, min_p, repetition_penalty, seed)
    unused = {"--top-k": top_k > 0, "--top-p": top_p < 1, "--min-p": min_p > 0, "--seed": seed is not None}
    if temperature == 0 and any(unused.values()):
        names = ", ".join(name for name, given in unused.items() if given)
        click.echo(f"note: {names} change nothing at temperature 0 (greedy)", err=True)
    return settings
