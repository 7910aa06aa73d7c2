"""hello.cc beside the same in Python: the texts of 20 prompts, then start-up time and memory overhead, round by round.

    python -m tests.benchmarks.door BUNDLE HELLO [--rounds 7]

HELLO is examples/hello.cc, built as docs/cpp.md says. Start-up is from the process's start to its first text, the run
of a one-token prompt included. Overhead is what is resident then (Rss) beyond the mapped weights and the cache; `dirty`
is the part of it that no other process can share (Private_Dirty). Both sides run the same bundle; how many texts
are equal, medians, and that of every round's ratio, are printed as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from time import perf_counter

from edgellm.runtime import load
from tests.door import onnxruntime_file
from tests.prompts import PROMPTS

PROMPT, TOKENS, COMPARED = "The", 64, 24
ENVIRONMENT = os.environ | {"EDGELLM_ONNXRUNTIME": str(onnxruntime_file())}
KEYS = ("seconds", "overhead", "dirty")
PYTHON = """
import sys
from edgellm.runtime import load
for piece in load(sys.argv[1]).stream(sys.argv[2], int(sys.argv[3])):
    print(piece, end="", flush=True)
"""
MAPPING = re.compile(r"^[0-9a-f]+-[0-9a-f]+ \S+ \S+ \S+ \S+ *(.*)$")


@dataclass(frozen=True)
class Start:
    """Seconds to the first text; bytes resident then and written by it, weights and cache left out."""

    seconds: float
    overhead: int
    dirty: int


def memory(process: int) -> tuple[int, int]:
    """Rss and Private_Dirty beyond the weights' mapping and the cache's (the one without huge pages), in bytes."""
    total, own, name = {"Rss": 0, "Private_Dirty": 0}, dict[str, int](), ""
    for line in Path(f"/proc/{process}/smaps").read_text().splitlines():
        field, _, value = line.partition(":")
        if found := MAPPING.match(line):
            name = found[1]
        elif field in total:
            own[field] = int(value.split()[0]) * 1024
        elif field == "VmFlags" and not name.endswith("model.onnx.data") and " nh" not in value:
            total = {key: total[key] + own[key] for key in total}
    return total["Rss"], total["Private_Dirty"]


def start(command: list[str]) -> Start:
    """Run a command up to its first byte of output, look at it, and end it."""
    begin = perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=ENVIRONMENT) as process:
        assert process.stdout is not None
        os.read(process.stdout.fileno(), 1)
        seconds = perf_counter() - begin
        process.send_signal(signal.SIGSTOP)
        found = Start(seconds, *memory(process.pid))
        process.kill()
    return found


def texts_equal(bundle: str, hello: str) -> int:
    """Of the prompts, as a chat's first turn where there is a template, those whose first COMPARED tokens, greedy, are
    the same text from both."""
    session, same = load(bundle), 0
    for question in PROMPTS:
        prompt = session.chat.render([{"role": "user", "content": question}]) if session.chat else question
        command = [hello, bundle, prompt, str(COMPARED)]
        said = subprocess.run(command, capture_output=True, env=ENVIRONMENT, check=True).stdout
        same += said == session.generate(prompt, COMPARED).text.encode()
    return same


def main() -> None:
    """Print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("hello")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    equal = texts_equal(options.bundle, options.hello)
    arguments = [options.bundle, PROMPT, str(TOKENS)]
    commands = {"cpp": [options.hello, *arguments], "python": [sys.executable, "-c", PYTHON, *arguments]}
    for command in commands.values():
        start(command)  # files come from the disk once
    rounds = [{name: start(command) for name, command in commands.items()} for _ in range(options.rounds)]
    facts = {name: {key: median(asdict(one[name])[key] for one in rounds) for key in KEYS} for name in commands}
    ratios = {key: median(asdict(one["cpp"])[key] / asdict(one["python"])[key] for one in rounds) for key in KEYS}
    facts |= {"texts": {"equal": equal, "of": len(PROMPTS)}}
    print(json.dumps({**facts, "ratio": ratios, "rounds": options.rounds}, indent=1))


if __name__ == "__main__":
    main()
