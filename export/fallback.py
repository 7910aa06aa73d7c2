"""The other page: a model outside the table becomes a bundle by Optimum's ONNX exporter, dense, of standard operators.

It runs, and says so, but has nothing of ours: no sparsity, no packed tiles, no eviction, a cache that grows.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import MISSING, asdict, fields, replace
from pathlib import Path
from typing import Any

import onnx
import torch
from tokenizers import Tokenizer
from torch import Tensor

from edgellm.export.calibrate import calibration_ids
from edgellm.export.config import HELD_OUT, ROUNDED, ExportConfig
from edgellm.export.dense_model import model_facts, perplexity, write_text
from edgellm.export.facts import frame
from edgellm.export.fallback_room import refuse_room
from edgellm.export.family import supported, unsupported
from edgellm.export.gate import refuse_loss
from edgellm.export.hf_folder import HfFolder, read_json
from edgellm.export.optimum_exporter import OptimumExporter
from edgellm.export.report import write_report
from edgellm.export.standard_graph import matrices, place, quantize
from edgellm.export.verify import Parity, compared, continued, prompts_from
from edgellm.export.vocabulary_tables import write_tokenizer
from edgellm.export.write import PartialBundle
from edgellm.runtime import load, manifest
from edgellm.runtime.cache import cache_layout
from edgellm.runtime.errors import BundleError, CheckpointError, EdgellmError, UsageError
from edgellm.runtime.kv_policy import KVPolicy, parse_kv
from edgellm.runtime.perplexity import score
from edgellm.runtime.session import Session
from edgellm.runtime.standard_backend import StandardBackend

HONOURED = {"source", "out", "bits", "head_bits", "kv", "calibration", "recover", "seed", "force", "device", "max_loss"}
"""Fields of ExportConfig; any other must have its default. kv: full only."""
LARGEST_LOSS = 100  # times the dense model's perplexity
CHUNK = 16  # tokens a run while parity is measured: short prompts then cross every kind of boundary


def outside_the_table(source: Path) -> str | None:
    """The model_type of a Hugging Face folder that no family names, or None. Raises CheckpointError for bad JSON."""
    if not (source / "config.json").is_file():
        return None
    model_type = read_json(source / "config.json").get("model_type")
    return model_type if isinstance(model_type, str) and model_type and model_type not in supported() else None


def export_with_optimum(
    config: ExportConfig, unwritten: PartialBundle, model_type: str, progress: Callable[[str, int, int], None]
) -> dict[str, Any]:
    """Write the bundle and return its manifest, whose "graph" is "optimum". progress: as in pipeline.export.

    Raises UsageError for settings that a standard graph cannot have, CheckpointError, naming the nearest supported
    type, where Optimum is not installed or cannot export the model, EdgellmError for what fits neither this machine nor
    the device, and for a graph that strays from torch.
    """
    refuse_settings(config, model_type)
    config = replace(config, bits=config.bits or ROUNDED, head_bits=config.head_bits or ROUNDED, recover="none")
    optimum, folder = OptimumExporter(model_type), HfFolder(config.source)
    if folder.config.get("quantization_config"):
        raise CheckpointError("config.json has a quantization_config", "Export from the unquantized model.")
    refuse_room(config, folder)
    with unwritten.begin("") as bundle:  # which no journal has: a killed one begins again
        floats = bundle.work / "floats.partial"
        try:
            # 1. Optimum's float32 graph, and what it must say.
            progress("Optimum's exporter", 0, 1)
            model = optimum.load(folder)
            optimum.write(model, floats)
            progress("Optimum's exporter", 1, 1)
            graph = onnx.load(str(floats / "model.onnx"), load_external_data=False).graph
            described = model_facts(model, graph, folder)
            policy = _policy(config, described["context"])
            facts = frame(config, folder, folder.name, described, [], policy, {}, "optimum")
            # 2. The graph against torch, in float32, on the device runtime; and what the dense model makes of the text.
            text = _text(config, folder, model, described["context"], progress)
            progress("parity with torch", 0, 1)
            try:
                parity = _parity(facts, policy, folder, model, floats, text)
            except BundleError as error:
                raise unsupported(model_type, supported(), f"Optimum's graph cannot be run: {error.what}") from error
            parity.check()
            progress("parity with torch", 1, 1)
            dense = perplexity(model, text)
            del model
            # 3. Smaller weights in one file, and what text needs.
            progress("quantize", 0, 1)
            rounded = quantize(
                onnx.load(str(floats / "model.onnx")), config.bits or ROUNDED, config.head_bits or ROUNDED,
                described["vocabulary"],
            )  # fmt: skip
        finally:
            shutil.rmtree(floats, ignore_errors=True)
        facts["matrices"] = matrices(rounded.graph, described["vocabulary"])
        bundle.write("model.onnx", place(rounded, bundle.append))
        write_tokenizer(bundle.write, folder.tokenizer_json())
        if folder.chat_template is not None:
            bundle.write("chat_template.jinja", folder.chat_template.encode())
        progress("quantize", 1, 1)
        # 4. What rounding cost.
        facts["files"] = bundle.facts()
        progress("perplexity", 0, 1)
        session = load(bundle.folder, kv="full", threads=torch.get_num_threads(), manifest=manifest.parse(facts))
        ours = score(session, text.flatten().tolist(), text.shape[1]).perplexity
        progress("perplexity", 1, 1)
        check_loss(ours, dense)
        named = f"held out from {config.calibration.name}" if config.calibration else "written by the dense model"
        measured = {"perplexity": ours, "dense_perplexity": dense}
        facts["quality"] = {"text": named, "tokens": text.numel(), "window": text.shape[1], **measured}
        facts["parity"] = asdict(parity)
        refuse_loss(config, facts["quality"])
        write_report(bundle, facts)
        bundle.commit(facts)
    return facts


def check_loss(perplexity: float, dense: float) -> None:
    """Raise EdgellmError where rounding left nothing of the model. Parity was measured before it: this is what notices
    an ONNX Runtime that multiplies wrongly."""
    if not perplexity <= LARGEST_LOSS * dense:  # NaN fails
        raise EdgellmError(
            f"the rounded bundle's perplexity is {perplexity:.4g}, the dense model's {dense:.4g}",
            "Nothing was written. Try --bits 8, or another version of onnxruntime.",
        )


def refuse_settings(config: ExportConfig, model_type: str) -> None:
    """Raise UsageError for the first setting that a dense, standard graph cannot have."""
    reason = f'"{model_type}" is not in our table and goes through Optimum: dense, with a full KV cache'
    hint = "Leave it out, or choose a supported model (docs/architectures.md)."
    for entry in fields(config):
        if entry.name in HONOURED:
            continue
        default = entry.default if entry.default_factory is MISSING else entry.default_factory()
        value = getattr(config, entry.name)
        if value != default:
            raise UsageError(f"--{entry.name.replace('_', '-')} {value}: {reason}", hint)
    if config.kv and not config.kv.startswith("full"):
        raise UsageError(f"--kv {config.kv}: {reason}", hint)


def _policy(config: ExportConfig, context: int) -> KVPolicy:
    devices = config.device.recipe.kv_for(context)
    return parse_kv(config.kv or (devices if devices.startswith("full") else "full"), context)


def _text(
    config: ExportConfig,
    folder: HfFolder,
    model: torch.nn.Module,
    context: int,
    progress: Callable[[str, int, int], None],
) -> Tensor:
    """Token ids [H, L] to measure with."""
    _, length = config.text_shape(context)  # nothing is calibrated
    sequences = HELD_OUT
    progress("text", 0, 1)
    if config.calibration:
        ids = calibration_ids(folder.tokenizer_json(), config.calibration, sequences, length)
    else:
        ids = write_text(model, folder.tokens, sequences, length, config.seed)
    progress("text", 1, 1)
    return ids


def _parity(
    facts: dict[str, Any], policy: KVPolicy, folder: HfFolder, model: torch.nn.Module, floats: Path, text: Tensor
) -> Parity:
    """The unquantized graph against torch: prompts of 24 tokens, of one, and of almost a whole sequence."""
    said = manifest.parse({**facts, "chat": None})  # its template is not written yet
    sizes = said.model
    backend = StandardBackend(floats, cache_layout(said, policy, CHUNK), sizes.vocabulary, torch.get_num_threads())
    session = Session(said, Tokenizer.from_str(folder.tokenizer_json()), backend, policy, CHUNK)
    room = policy.budget
    first = text[0].tolist()
    new = min(16, room // 2)
    prompts = [prompt[: room - new] for prompt in (*prompts_from(text), first[:1], first[: room - new])]
    with torch.no_grad():
        texts = continued(session, prompts, new)
        return compared(session, texts, (model(torch.tensor([ids])).logits[0] for ids in texts), new)
