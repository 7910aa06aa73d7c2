"""The one error a user sees: what happened, and what to do about it."""

from __future__ import annotations

from typing import Any


class EdgellmError(Exception):
    """A failure told in two sentences: what happened (with what was expected), and what to run or change next.

    The command line prints it without a traceback and ends with `exit_code`: 1 for a failure, 2 for wrong usage.
    """

    exit_code = 1

    def __init__(self, what: str, hint: str = "") -> None:
        super().__init__(f"{what}\n{hint}" if hint else what)
        self.what = what
        self.hint = hint


class UsageError(EdgellmError):
    """A request that cannot be right whatever the machine: exit code 2."""

    exit_code = 2


class BundleError(EdgellmError):
    """A bundle that is damaged, incomplete, or of another version."""


class CheckpointError(EdgellmError):
    """A checkpoint that cannot be read or is of no supported architecture."""


class ContextError(EdgellmError):
    """A prompt, or a continuation, beyond what the model or its cache can hold."""


class PromptCacheError(EdgellmError):
    """A prompt cache file that is damaged, or of another model or KV policy."""


class AdapterError(EdgellmError):
    """An adapter file that is missing, damaged, or of another model."""


def no_library(error: FileNotFoundError) -> EdgellmError:
    """The error to raise where the native library is not installed."""
    hint = "Install a wheel that has it: pip install --force-reinstall edgellm"
    return EdgellmError(f"the operator library is missing: {error}", hint)


def of_library(library: Any, status: int) -> EdgellmError:
    """The error to raise where a call of libedgellm.so gave this status of edgellm.h."""
    what, _, hint = library.edgellm_message().decode(errors="replace").partition("\n")
    kinds: dict[int, type[EdgellmError]] = {2: UsageError, 3: BundleError}
    return kinds.get(status, EdgellmError)(what, hint)
