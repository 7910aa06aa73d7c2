"""Hugging Face's Optimum behind one function: a folder becomes a torch model and an ONNX graph, offline and quietly."""

from __future__ import annotations

import contextlib
import logging
import socket
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from edgellm.export.family import supported, unsupported
from edgellm.export.hf_folder import HfFolder
from edgellm.runtime.errors import CheckpointError
from edgellm.runtime.onnx_graph import first_line

TASK = "text-generation-with-past"
INSTALL = 'Optimum exports others, dense: pip install "edgellm[optimum]"'


class OptimumExporter:
    """Optimum for one model_type. Raises CheckpointError, naming the nearest supported type, where it is not
    installed or cannot be imported (optimum-onnx 0.1 with transformers 4.58 or newer)."""

    def __init__(self, model_type: str) -> None:
        self._model_type = model_type
        with quiet(), _no_ipv6_probe():
            try:
                import onnx_ir  # noqa: F401  (onnxruntime's quantizer wants it: told now, not after minutes)
                from optimum.exporters.onnx import onnx_export_from_model
                from transformers import AutoModelForCausalLM
                from transformers.utils import logging as transformers_logging
            except ModuleNotFoundError as error:
                absent = (error.name or "").split(".")[0] in ("optimum", "transformers", "onnx_ir")
                raise self._error("" if absent else f"Optimum cannot be imported: {first_line(error)}") from None
            except Exception as error:  # another version of transformers breaks it in any way
                raise self._error(f"Optimum cannot be imported: {first_line(error)}") from None
        transformers_logging.disable_progress_bar()
        self._load: Any = AutoModelForCausalLM.from_pretrained
        self._export: Any = onnx_export_from_model

    def load(self, folder: HfFolder) -> torch.nn.Module:
        """The float32 torch model, from safetensors only and without code of the folder's. Raises CheckpointError."""
        folder.weight_files()
        model: torch.nn.Module = self._tried(
            lambda: self._load(
                folder.path, local_files_only=True, trust_remote_code=False, use_safetensors=True, dtype=torch.float32
            )
        )
        return model.eval()

    def write(self, model: torch.nn.Module, folder: Path) -> None:
        """Write model.onnx, float32, into the folder. Raises CheckpointError."""
        # No post-processing: it makes a tied head a transposed embedding, which no quantizer sees through.
        self._tried(lambda: self._export(model, folder, task=TASK, no_post_process=True, do_validation=False))
        if not (folder / "model.onnx").is_file():
            raise self._error(
                f"Optimum wrote {', '.join(sorted(p.name for p in folder.glob('*.onnx'))) or 'nothing'}", ""
            )

    def _tried(self, work: Callable[[], Any]) -> Any:
        with quiet():
            try:
                return work()
            except Exception as error:  # transformers' and torch's have no common base
                if isinstance(error, OSError) and error.errno is not None:  # a full disk, not what transformers says
                    raise
                raise self._error(f"Optimum cannot export it: {first_line(error)}", "") from error

    def _error(self, why: str, otherwise: str = INSTALL) -> CheckpointError:
        return unsupported(self._model_type, supported(), why, otherwise)


@contextlib.contextmanager
def _no_ipv6_probe() -> Iterator[None]:
    """urllib3, which the hub's client imports, opens a socket when imported to see whether there is IPv6. Nothing here
    opens one: where that is forbidden, the import alone would end the export."""
    had, socket.has_ipv6 = socket.has_ipv6, False
    try:
        yield
    finally:
        socket.has_ipv6 = had


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the libraries' warnings and progress; what they print goes to stderr, for stdout is the answer's."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
