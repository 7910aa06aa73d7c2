"""Opening model.onnx in ONNX Runtime, whatever operators it is made of; what went wrong is told in one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgellm.devices.cores import usable_cores
from edgellm.runtime.bundle_files import AGAIN, GRAPH
from edgellm.runtime.errors import BundleError, EdgellmError, UsageError

OLDEST = (1, 23)  # onnxruntime that reads opset 23


def open_graph(
    folder: Path, threads: int | None, prepare: Callable[[Any], object] = lambda options: None, name: str = GRAPH
) -> Any:
    """An onnxruntime.InferenceSession on the CPU, of the graph `name`. prepare: called with its SessionOptions.

    threads = None takes the physical cores this process may use. Raises BundleError when the graph or its data cannot
    be loaded, UsageError for a number of threads outside 1 to 1024, and whatever `prepare` does.
    """
    check_threads(threads)
    onnxruntime = the_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or usable_cores()
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # failures come back as exceptions, told once
    # The arena grows by powers of two and keeps the longest prefill's peak; plans pile up one a prompt length.
    options.enable_cpu_mem_arena = False
    options.enable_mem_pattern = False
    prepare(options)
    try:
        return onnxruntime.InferenceSession(str(folder / name), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no base class
        remedy = AGAIN
        if tuple(int(part) for part in onnxruntime.__version__.split(".")[:2]) < OLDEST:
            remedy = f"onnxruntime {onnxruntime.__version__} reads no opset 23; 1.23 and later do: "
            remedy += "pip install -U onnxruntime"
        raise BundleError(f"{name} cannot be loaded: {first_line(error)}", remedy) from error


def the_onnxruntime() -> Any:
    """The package, imported when it is first needed. Raises EdgellmError where it is not installed."""
    try:
        import onnxruntime
    except ImportError as error:
        what = f"onnxruntime cannot be imported ({error}): adapters, gradients and graphs of other kinds need it"
        raise EdgellmError(what, "pip install 'onnxruntime>=1.23'; a bundle's own graph runs without it.") from None
    return onnxruntime


def check_threads(threads: int | None) -> None:
    """Raise UsageError for a number of threads outside 1 to 1024, but for None."""
    if threads is not None and not 1 <= threads <= 1024:
        raise UsageError(f"{threads} threads; expected 1 to 1024")


def check_ends(session: Any, inputs: set[str], outputs: set[str], name: str = GRAPH) -> None:
    """Raise BundleError unless the graph takes exactly these inputs and gives at least these outputs."""
    has_inputs, has_outputs = ({v.name for v in side} for side in (session.get_inputs(), session.get_outputs()))
    missing = sorted(inputs - has_inputs) + sorted(outputs - has_outputs)
    if missing or has_inputs - inputs:
        odd = f"lacks {missing[0]}" if missing else f"asks for an unknown input {min(has_inputs - inputs)}"
        raise BundleError(f"{name} does not fit the manifest: it {odd}", AGAIN)


def failed(error: Exception, name: str = GRAPH) -> BundleError:
    """The error to raise when a run fails."""
    return BundleError(f"{name} failed to run: {first_line(error)}", f"See edgellm doctor. {AGAIN}")


def first_line(error: Exception) -> str:
    """What an exception of a library says, without its traceback in text."""
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
