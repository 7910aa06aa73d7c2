"""What one step of adaptation costs: time and extra memory, in multiples of reading the same prompt.

    python -m tests.benchmarks.adapt_step BUNDLE SOURCE --threads 1

SOURCE: the checkpoint that the bundle was made of (for its sizes; graphs of carriers that bundles do not have are built
from it). "delta" is the bundle's head.onnx. A prompt of 64 tokens of which 32 are scored, and 4 answer tokens. Prefill
and steps take turns; CPU seconds, medians. Memory: the peak of anonymous memory while it runs, over before, of a
session that ran once.
"""

from __future__ import annotations

import argparse
import ctypes
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from edgellm.export.adapt_carriers import CARRIERS, carrier_shapes
from edgellm.export.adapt_graph import adapt_graph
from edgellm.export.architectures import Architecture
from edgellm.export.checkpoint import open_checkpoint
from edgellm.export.packed_source import read_placed
from edgellm.runtime import load
from edgellm.runtime.head import Head
from edgellm.runtime.objective import Example, Weights
from edgellm.runtime.onnx_decoder import register_operators
from edgellm.runtime.session import Session
from edgellm.runtime.shift import ShiftGradient

TOKENS, SCORED, ANSWER, PREFIX, RUNS = 64, 32, 4, 8, 5


def anonymous_mib() -> float:
    """Of this process, now."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("this system does not tell anonymous memory")


def peak_mib(run: Callable[[], object]) -> float:
    """How far anonymous memory rises while it runs, looked at every millisecond. What earlier runs freed is given back
    first, or it would not rise."""
    ctypes.CDLL(None).malloc_trim(0)
    before, peaks, done = anonymous_mib(), [0.0], threading.Event()

    def watch() -> None:
        while not done.is_set():
            peaks.append(anonymous_mib())
            time.sleep(0.001)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        run()
    finally:
        done.set()
        watcher.join()
    return max(peaks) - before


def stepper(bundle: Path, arch: Architecture, carrier: str, threads: int) -> Callable[[], object]:
    """One step of a carrier's graph, as runtime/gradient.py opens it."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.enable_cpu_mem_arena = options.enable_mem_pattern = options.enable_mem_reuse = False
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.disable_prepacking", "1")
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(bundle))
    register_operators(options)
    graph = adapt_graph(arch, read_placed(bundle), carrier).SerializeToString()
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    before = 0 if carrier == "lora" else PREFIX
    length = TOKENS - before + ANSWER - 1
    first = before if carrier == "soft" else 0
    given: dict[str, Any] = {"ids": rng.integers(3, 1000, length)}
    given["positions"] = np.arange(before - first, before + length)
    rows = first + np.arange(length - ANSWER - SCORED, length - ANSWER)
    given |= {"prompt_rows": rows, "targets": rng.integers(3, 1000, SCORED)}
    given["prompt_weights"] = np.full(SCORED, 1 / SCORED, np.float32)
    given |= {"answer_rows": first + np.arange(length - ANSWER, length), "answer_weights": np.ones(ANSWER, np.float32)}
    given["reference"] = rng.normal(size=(ANSWER, arch.vocabulary)).astype(np.float32)
    given |= {f"w_{name}": np.array(1, np.float32) for name in ("ida", "entropy", "kl")}
    for name, shape in carrier_shapes(arch, carrier).items():
        sizes = [PREFIX if size == "P" else size for size in shape]
        given[name] = 0.1 * rng.normal(size=sizes).astype(np.float32)
    return lambda: session.run(None, given)


def shift_stepper(bundle: Path, session: Session, threads: int) -> Callable[[], object]:
    """One step of the carrier "delta", which has no graph but the head's: what was read before is not counted."""
    manifest, rng = session.manifest, np.random.default_rng(0)
    logits = rng.normal(size=(SCORED + ANSWER, manifest.model.vocabulary)).astype(np.float32)
    ids = rng.integers(3, 1000, TOKENS + ANSWER - 1)
    rows = TOKENS - ANSWER + np.arange(-SCORED, ANSWER)
    example = Example(ids, 0, rows[:SCORED], rng.integers(3, 1000, SCORED), rows[SCORED:], logits[SCORED:])
    gradient = ShiftGradient(Head(bundle, manifest, threads), manifest.adapt.softcap if manifest.adapt else 0.0)
    gradient.observe(example, logits[:SCORED])
    delta = 0.1 * rng.normal(size=manifest.model.hidden).astype(np.float32)
    return lambda: gradient.step(example, {"delta": delta}, Weights())


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("source", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    arch = open_checkpoint(args.source).architecture
    session = load(args.bundle, threads=args.threads)
    ids = np.random.default_rng(0).integers(3, 1000, TOKENS).tolist()
    runs: dict[str, Callable[[], object]] = {"prefill": lambda: session.extend(ids)}
    runs |= {carrier: stepper(args.bundle, arch, carrier, args.threads) for carrier in CARRIERS}
    runs["delta"] = shift_stepper(args.bundle, session, args.threads)
    for run in runs.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(RUNS):
        for name, run in runs.items():
            begin = time.process_time()
            run()
            times[name].append(time.process_time() - begin)
    print("| carrier | CPU s | x prefill | extra MiB |\n|---|---|---|---|")
    for name, run in runs.items():
        taken, base = (statistics.median(times[key]) for key in (name, "prefill"))
        print(f"| {name} | {taken:.3f} | {taken / base:.2f} | {peak_mib(run):.0f} |")


if __name__ == "__main__":
    main()
