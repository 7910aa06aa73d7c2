"""`make bench`: edgellm beside its peers on one model, round by round; JSON and a picture under build/bench.

    python -m tests.benchmarks.side_by_side MODEL.gguf --recipe "as stored=" --recipe "4 bits=--bits 4" [--text TEXT]

Same token ids, greedy, end-of-text ignored, one fresh process a run; ours by the Python runtime, and from C.
Bundles of --recipe (options of edgellm export) are kept in build/bench/bundles. Speeds compare only at equal quality:
--text gives every contender's perplexity.
"""

from __future__ import annotations

import json
import math
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from edgellm.devices.cores import usable_cores
from edgellm.kernels.read_bandwidth import read_bandwidth
from edgellm.runtime import load
from edgellm.runtime.benchmark import prompt_ids
from edgellm.runtime.commands.bench import lengths
from tests.benchmarks.contenders import Contender, from_c, ours, peers
from tests.benchmarks.peer_files import make_all
from tests.benchmarks.process import ROOT, Failed, ask, busy_neighbour
from tests.benchmarks.rounds import Sample, interleave, medians, ratios, share
from tests.benchmarks.tables import show

OUT = ROOT / "build/bench"
PREFILL = 512  # tokens of the prefill case, after which a token only is decoded
PREFILLED = f"prefill {PREFILL}"
Facts = dict[str, Any]


def bundle(source: Path, recipe: str) -> Contender:
    """ "NAME=OPTIONS" as a contender; exported unless it was before."""
    name, _, options = recipe.partition("=")
    folder = OUT / "bundles" / source.stem / "".join(c if c.isalnum() else "-" for c in name)
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        cli = [sys.executable, "-c", "from edgellm.runtime.cli import main; main()"]
        if subprocess.run([*cli, "export", str(source), str(folder), *shlex.split(options)]).returncode:
            raise click.ClickException(f"the bundle of --recipe {recipe!r} could not be exported")
    return ours(f"edgellm {name}", folder)


def perplexity(contender: Contender, threads: int, ids: list[int], window: int = 1024) -> float:
    found = ask(contender, {"threads": threads, "score": ids, "window": window})
    return math.exp(found["nats"] / found["tokens"])


@click.command()
@click.argument("source", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--recipe", "recipes", multiple=True, help='"NAME=options of edgellm export"; may be given again.')
@click.option("--bundle", "bundles", multiple=True, help='"NAME=FOLDER" of a bundle that is there.')
@click.option("--kv", "caches", multiple=True, help="Each of ours again with this KV cache, e.g. vatp:512.")
@click.option("--only", multiple=True, help="Peers whose name begins so; may be given again. Default: all.")
@click.option("--prompt-tokens", default="32,1024,1900", show_default=True, help="Prompts to decode after.")
@click.option("--new-tokens", default=128, show_default=True, help="Tokens to decode.")
@click.option("--rounds", default=5, show_default=True, help="Rounds a case; 0: perplexity and sizes only.")
@click.option("--busy", is_flag=True, help="The shortest prompt once more, beside a process that keeps a core busy.")
@click.option("--no-prefill", is_flag=True, help=f"Leave the prefill of {PREFILL} tokens out.")
@click.option(
    "--text", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="For perplexity, and prompts."
)
@click.option("--text-tokens", default=21_504, show_default=True, help="Only its first N tokens.")
@click.option("--threads", type=int, default=usable_cores, show_default="physical cores")
@click.option("-o", "--output", type=Path, help="Default: build/bench/side_by_side-MODEL.json, the picture beside it.")
def main(
    source: Path,
    recipes: tuple[str, ...],
    bundles: tuple[str, ...],
    caches: tuple[str, ...],
    only: tuple[str, ...],
    prompt_tokens: str,
    new_tokens: int,
    rounds: int,
    busy: bool,
    no_prefill: bool,
    text: Path | None,
    text_tokens: int,
    threads: int,
    output: Path | None,
) -> None:
    source = source.absolute()
    given = [ours(f"edgellm {name}", Path(path)) for name, _, path in (item.partition("=") for item in bundles)]
    mine = given + [bundle(source, recipe) for recipe in recipes or (() if given else ("as stored=",))]
    mine += [ours(f"{one.name} {kv}", one.model, kv) for kv in caches for one in mine]
    mine += [from_c(one) for one in mine]
    failed = {name: f"its file could not be made: {why}" for name, why in make_all(source).items()}
    contenders = mine + [peer for peer in peers(source) if peer.name.startswith(only or ("",))]
    reasons = {c.name: failed.get(c.model.name) or c.missing() for c in contenders}
    skipped = {name: why for name, why in reasons.items() if why}
    session = load(mine[0].model)
    ids = session.encode(text.read_text(encoding="utf-8")) if text else prompt_ids(session, session.limit)
    del session
    facts: Facts = {
        "model": source.name, "processor": processor(), "threads": threads, "rounds": rounds,
        "new_tokens": new_tokens, "contenders": {}, "skipped": skipped, "ratios": {},
    }  # fmt: skip
    for contender in contenders:
        if contender.name not in skipped:
            facts["contenders"][contender.name] = {
                "bits": contender.bits or "recipe", "model_bytes": contender.model_bytes, "cases": {},
            }  # fmt: skip
    if text is not None:
        facts |= {"text": text.name, "text_tokens": len(ids[:text_tokens])}
        for contender in contenders:
            if contender.name in skipped:
                continue
            row = facts["contenders"][contender.name]
            try:
                row["perplexity"] = perplexity(contender, threads, ids[:text_tokens])
            except Failed as error:
                row["perplexity_missing"] = str(error)
    for contender in contenders:
        if contender.name not in skipped:
            contender.forget()
    prompts = lengths(prompt_tokens)
    cases = {str(count): (count, new_tokens) for count in prompts} | ({} if no_prefill else {PREFILLED: (PREFILL, 1)})
    path = output or OUT / f"side_by_side-{source.stem}.json"
    facts["read_bandwidth_gb_s"] = read_bandwidth(threads) / 1e9
    finish(facts, path)
    for _ in run(facts, contenders, mine, cases, ids):
        finish(facts, path)
    if busy:
        shortest = str(min(prompts))
        with busy_neighbour() as neighbour:
            for _ in run(facts, contenders, mine, {f"{shortest} busy": cases[shortest]}, ids, neighbour):
                finish(facts, path)
    show(facts)


def run(
    facts: Facts, contenders: list[Contender], mine: list[Contender], cases: dict[str, tuple[int, int]], ids: list[int],
    neighbour: int | None = None,
) -> Iterator[None]:  # fmt: skip
    """Add the cases, names with (tokens of the prompt, new tokens), to the facts; a step a round."""
    named = {one.name: one for one in contenders}
    turns = [(name, case) for name in named if name not in facts["skipped"] for case in cases]
    failed: dict[tuple[str, str], str] = {}

    def one(turn: tuple[str, str]) -> Sample:
        count, new = cases[turn[1]]
        return ask(named[turn[0]], {"threads": facts["threads"], "prompt": ids[:count], "new_tokens": new}, neighbour)

    for number, found in enumerate(interleave(turns, facts["rounds"], one, failed)):
        click.echo(f"round {number + 1} of {facts['rounds']}", err=True)
        for case in cases:
            rounds = {name: samples for (name, other), samples in found.items() if other == case}
            for name, samples in rounds.items():
                facts["contenders"][name]["cases"][case] = {**medians(samples), "rounds": samples}
            facts["ratios"][case] = ratios(rounds, [one.name for one in mine])
        for (name, case), why in failed.items():
            facts["contenders"][name]["cases"][case] = {"failed": why}
        for row in facts["contenders"].values():
            row |= shares(row["cases"])
        yield


def shares(cases: Facts) -> Facts:
    """growth: decoding after the longest prompt over the shortest. busy: beside a busy process over alone."""
    rounds = {name: case.get("rounds", []) for name, case in cases.items() if name != PREFILLED}
    plain = sorted((name for name in rounds if name.isdecimal()), key=int)
    found = {"growth": share(rounds[plain[-1]], rounds[plain[0]])} if len(plain) > 1 else {}
    if plain:
        found["busy"] = share(rounds.get(f"{plain[0]} busy", []), rounds[plain[0]])
    return {name: value for name, value in found.items() if value is not None}


def processor() -> str:
    """The processor's name, as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def finish(facts: Facts, path: Path) -> None:
    """Write what is known so far: a long run that is stopped keeps its cases."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(facts, indent=1))
    try:
        from tests.benchmarks.picture import draw
    except ImportError as error:
        click.echo(f"no picture: {error}", err=True)
        return
    draw(facts, path.with_suffix(".png"))


if __name__ == "__main__":
    main()
