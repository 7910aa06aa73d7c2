"""What every peer is asked, how it is timed, and what it answers: a JSON object on stdin, one on stdout.

A request with "prompt" is a timed run: greedy, end-of-text ignored. One with "score" sums -ln p over windows.
    {"started": time.monotonic() just before the process was started, "model": path, "threads": 2,
     "prompt": [ids], "new_tokens": 128, "settings": {…}}       or "score": [ids], "window": 1024
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

SKIPPED = 3  # exit code: this peer cannot do it here, for the reason on stdout


class Skipped(Exception):
    """This peer cannot be measured here."""


class Peer(Protocol):
    def run(self, prompt: Sequence[int], new_tokens: int, first: Callable[[], None]) -> list[int]:
        """`new_tokens` greedy ids after a prompt; calls `first` when the first of them is known."""
        ...

    def nats(self, window: Sequence[int]) -> float:
        """Sum of -ln p(window[i] | window[:i]) for i from 1, on an empty cache. May raise Skipped."""
        ...


Load = Callable[[str, int, int, dict[str, Any]], Peer]  # (model, threads, the most tokens of a sequence, settings)


def peak_rss_bytes() -> int:
    """Of this process since it began, mapped files included (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def timed(request: dict[str, Any], load: Load) -> dict[str, Any]:
    """start_s: from the process's start to its first token. Decoding is timed from there, over new_tokens - 1 steps.
    own_rss_bytes: the peak beyond what Python and NumPy, which call most of the peers, had before the load."""
    prompt, new_tokens = request["prompt"], request["new_tokens"]
    before = peak_rss_bytes()
    begin = time.monotonic()
    peer = load(request["model"], request["threads"], len(prompt) + new_tokens, request["settings"])
    loaded = time.monotonic()
    known: list[float] = []
    ids = peer.run(prompt, new_tokens, lambda: known.append(time.monotonic()))
    end = time.monotonic()
    if len(ids) != new_tokens:
        raise RuntimeError(f"{len(ids)} new tokens came, {new_tokens} were asked for")
    peak = peak_rss_bytes()
    return {
        "start_s": known[0] - request["started"],
        "load_s": loaded - begin,
        "prefill_tokens_per_s": len(prompt) / (known[0] - loaded),
        "decode_tokens_per_s": (new_tokens - 1) / (end - known[0]) if new_tokens > 1 else None,
        "peak_rss_bytes": peak,
        "own_rss_bytes": peak - before,
        "ids": [int(token) for token in ids[:16]],  # to see whether texts agree
    }


def scored(request: dict[str, Any], load: Load) -> dict[str, Any]:
    """nats of non-overlapping windows and their tokens, as edgellm.runtime.perplexity counts them."""
    ids, size = request["score"], request["window"]
    windows = [ids[at : at + size] for at in range(0, len(ids), size)]
    windows = [window for window in windows if len(window) > 1]
    peer = load(request["model"], request["threads"], size, request["settings"])
    nats = [peer.nats(window) for window in windows]
    return {"nats": sum(nats), "windows": nats, "tokens": sum(len(window) - 1 for window in windows)}


def surprise(logits: Any, following: Sequence[int]) -> float:
    """Sum of -ln softmax(logits [T, V])[following [T]]."""
    logits = np.asarray(logits, np.float32)
    top = logits.max(axis=1, keepdims=True)
    sums = np.exp(logits - top).sum(axis=1, dtype=np.float64)
    chosen = logits[np.arange(len(following)), np.asarray(following)] - top[:, 0]
    return float((np.log(sums) - chosen).sum())


def serve(load: Load) -> None:
    """Answer the request on stdin, as the whole life of a process."""
    request = json.load(sys.stdin)
    try:
        answer = scored(request, load) if "score" in request else timed(request, load)
    except (Skipped, ImportError) as error:
        print(json.dumps({"skipped": str(error)}))
        sys.exit(SKIPPED)
    sys.stdout.flush()
    print("\n" + json.dumps(answer))
