"""The one page: a checkpoint becomes a bundle. Every step is a call into the file of its name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from edgellm.export.adapt_facts import adapt_facts
from edgellm.export.adapt_files import adapt_files
from edgellm.export.block_recovery import Goal
from edgellm.export.calibrate import calibration_ids
from edgellm.export.checkpoint import Checkpoint, open_checkpoint
from edgellm.export.compress import Read, compress, compress_layer, read_by_head
from edgellm.export.config import FROM_FILE, HELD_OUT, ExportConfig
from edgellm.export.decoder import load_block, propagate
from edgellm.export.drift import drift
from edgellm.export.engine import refuse_engine, write_engine
from edgellm.export.estimate import Estimate, estimate, matrix_room
from edgellm.export.facts import describe
from edgellm.export.fallback import export_with_optimum, outside_the_table
from edgellm.export.fit import refuse_unfit
from edgellm.export.gate import refuse_loss
from edgellm.export.graph import decoder_graph
from edgellm.export.journal import fingerprint
from edgellm.export.key_shift import key_shift, shifts_keys
from edgellm.export.nodes import DATA, Placed
from edgellm.export.pack import pack
from edgellm.export.packed_source import PackedSource
from edgellm.export.plan import QKV, joined, planned_format
from edgellm.export.prefix_kv import prefix_budgets, whole
from edgellm.export.recover import FOLDER, check_memory, recover_whole, set_apart
from edgellm.export.references import References
from edgellm.export.report import write_report
from edgellm.export.search import levels_by_size, search
from edgellm.export.self_written import write_text
from edgellm.export.verify import parity, prompts_from
from edgellm.export.vocabulary import embed, head_name, slabs
from edgellm.export.vocabulary_tables import write_tokenizer
from edgellm.export.write import PartialBundle
from edgellm.kernels.layout import Quantized
from edgellm.runtime import load, manifest
from edgellm.runtime.bundle_files import ENGINE, ENGINE_GRAPH, ENGINE_WEIGHTS
from edgellm.runtime.errors import EdgellmError
from edgellm.runtime.kv_policy import KVPolicy
from edgellm.runtime.perplexity import score

Progress = Callable[[str, int, int], None]
"""Called with (step, done, total)."""


@dataclass
class _Writing:
    config: ExportConfig
    checkpoint: Checkpoint
    bundle: PartialBundle
    references: References | None = None

    @property
    def placed(self) -> dict[str, Placed]:
        return self.bundle.journal.placed

    @property
    def packed(self) -> PackedSource:
        return PackedSource(self.bundle.folder / DATA, self.placed)

    def matrix(self, name: str, q: Quantized) -> None:
        self.bundle.append(name, [pack(q)], q.format)

    def vocabulary(self, name: str, read: Read | None = None) -> None:
        """Embedding or head: rows are rounded and packed a slab at a time."""
        config, checkpoint = self.config, self.checkpoint
        pieces = (pack(compress(config, checkpoint, name, read, rows)) for rows in slabs(checkpoint.architecture))
        self.bundle.append(name, pieces, planned_format(config, checkpoint, name))

    def vector(self, name: str, parts: Sequence[str]) -> None:
        """The checkpoint's vectors of these names, one after another."""
        self.bundle.append(name, [self.checkpoint.vector(part).numpy() for part in parts])


def export(
    config: ExportConfig,
    progress: Progress = lambda step, done, total: None,
    announce: Callable[[Estimate], None] = lambda expected: None,
) -> dict[str, Any]:
    """Write the bundle that `config` asks for and return its manifest. announce: called before the work, but for a
    model outside the table, which Optimum exports (fallback.py): its sizes are known when that is done.

    Raises EdgellmError: a checkpoint that cannot be read, sizes that cannot be packed, what fits neither device, disk
    nor this machine, a bundle that strays from the torch model. Nothing that loads is left behind then.
    """
    # 1. Open, and refuse early what cannot work.
    unwritten = PartialBundle(config.out, config.force)
    if model_type := outside_the_table(config.source):
        return export_with_optimum(config, unwritten, model_type, progress)
    checkpoint = open_checkpoint(config.source)
    arch = checkpoint.architecture
    config.check(arch)
    checkpoint.tokenizer_json()
    policy = config.policy(arch.context)
    check_memory(arch, config)
    room = 0
    if config.fit:
        room = matrix_room(checkpoint, config)
        config = replace(
            config, levels=levels_by_size(arch, room, config.fit.page)
        )  # until the search has found better
    expected = estimate(checkpoint, config)
    announce(expected)
    refuse_unfit(checkpoint, config, expected, unwritten.nbytes)
    refuse_engine(config, expected.weight_bytes)
    progress("reading the source", 0, 1)
    key = fingerprint(config)
    progress("reading the source", 1, 1)
    with unwritten.begin(key) as bundle:
        writing = _Writing(config, checkpoint, bundle)
        for name in (ENGINE_GRAPH, ENGINE_WEIGHTS, ENGINE):  # a killed export's, whose engine was another
            (bundle.folder / name).unlink(missing_ok=True)
        # 2. Text: to calibrate on, and a held-out rest to measure with.
        text, lessons = _text(writing, progress)
        calibration = (set_apart(lessons)[0] if config.distills else lessons)[: FROM_FILE[0]]
        if config.fit:
            config = replace(config, levels=search(config, checkpoint, calibration, room, bundle.work, progress))
            writing.config = config
        # 3. Embedding and head, then layer by layer: calibrate, prune, quantize, pack. One block in memory at a time.
        _matrices(writing, calibration, text, progress)
        steps = recover_whole(config, checkpoint, bundle, lessons, partial(progress, "distilling"))
        # 4. The graph around the packed weights, and what text needs.
        bundle.write("model.onnx", decoder_graph(arch, writing.placed, kv_bits=config.kv_bits).SerializeToString())
        if config.adapt:
            for name, graph in adapt_files(arch, writing.placed, config.kv_bits):
                bundle.write(name, graph.SerializeToString())
        write_tokenizer(bundle.write, checkpoint.tokenizer_json())
        if checkpoint.chat_template is not None:
            bundle.write("chat_template.jinja", checkpoint.chat_template.encode())
        # 5. Measure: the bundle itself on the device runtime, against torch with the same weights and the dense model.
        facts = describe(config, checkpoint, writing.placed, policy, bundle.facts())
        facts["recipe"]["distill_steps"] = steps
        if policy.layers == "prefix":
            facts["kv"]["budgets"] = _layer_budgets(writing, facts, policy, text, progress)
        facts["parity"], facts["quality"] = _measure(writing, facts, text, progress)
        if config.adapt:
            facts["adapt"] = adapt_facts(arch, bundle.folder, facts, text, progress)
        refuse_loss(config, facts["quality"])
        if config.engine != "none":
            facts["engine"] = write_engine(config, arch, writing.placed, bundle, facts, text, progress)
            facts["files"] = bundle.facts()
        write_report(bundle, facts)
        # 6. Only now may it be found.
        bundle.commit(facts)
    return facts


def _text(writing: _Writing, progress: Progress) -> tuple[Tensor, Tensor]:
    """(held out [H, L], to calibrate [N, L]) token ids, from the file or written by the dense model."""
    config, checkpoint, journal = writing.config, writing.checkpoint, writing.bundle.journal
    wanted, length = config.text_shape(checkpoint.architecture.context)
    if "ids" in journal.texts:
        ids = journal.texts["ids"]
    elif config.calibration:
        ids = calibration_ids(checkpoint.tokenizer_json(), config.calibration, wanted, length)
    else:
        ids = write_text(checkpoint, wanted, length, config.seed, partial(progress, "text"))
    progress("text", 1, 1)
    journal.keep_texts(ids=ids)
    if not config.calibrates:
        return ids, ids[:0]
    if len(ids) < 2:
        raise EdgellmError(
            f"{config.calibration} is too short: {length} tokens must calibrate and {length} others measure",
            "Give a longer text, or none: the model then writes its own.",
        )
    held_out = min(HELD_OUT, max(1, len(ids) // 4))  # a short file still leaves most of itself to calibrate on
    return ids[-held_out:], ids[:-held_out]


def _matrices(writing: _Writing, calibration: Tensor, text: Tensor, progress: Progress) -> None:
    """Every tensor into the data file; what a killed export placed stays as it is. text: for the references."""
    arch, bundle, kept = writing.checkpoint.architecture, writing.bundle, set(writing.placed)
    progress("embedding", 0, 1)
    for name in ("embedding",) if arch.tied else ("embedding", "head"):
        if name not in kept:
            coarse = writing.config.calibrates and writing.config.width(name) == 4
            heard = coarse and name == head_name(arch)
            writing.vocabulary(name, read_by_head(arch, writing.checkpoint, calibration, name) if heard else None)
            bundle.keep()
    progress("embedding", 1, 1)
    done = sum(f"layers.{layer}.gate_up" in kept for layer in range(arch.layers))
    if writing.config.compares:
        writing.references = References(arch, bundle.work, done, embed(arch, writing.packed, text))
    x = embed(arch, writing.packed, calibration) if writing.config.calibrates and done < arch.layers else None
    goal = None
    if writing.config.trains_blocks and x is not None:
        keep = bundle.work / FOLDER if writing.config.trains_whole else None
        goal = Goal.of(arch, writing.checkpoint, calibration, keep)
    for layer in range(arch.layers):
        progress("layers", layer, arch.layers)
        if layer >= done:
            x = _layer(writing, layer, x, goal)
            bundle.keep()
        elif x is not None:  # through the layer as it was packed: the very states that came out of it then
            x = propagate(arch, layer, load_block(arch, writing.packed, layer), x)
            if goal is not None:
                goal.move_on(arch, layer, load_block(arch, writing.checkpoint, layer))
    progress("layers", arch.layers, arch.layers)
    if "norm" not in kept:
        writing.vector("norm", ["norm"])
        bundle.keep()


def _layer(writing: _Writing, layer: int, x: Tensor | None, goal: Goal | None) -> Tensor | None:
    also = writing.references.layer if writing.references else None
    found, x = compress_layer(writing.config, writing.checkpoint, layer, x, also, goal)
    at = f"layers.{layer}"
    arch = writing.checkpoint.architecture
    vectors = arch.vectors
    matrices = joined(found)
    biases = [f"{role}_bias" for role in QKV if "qkv" in matrices and f"{role}_bias" in vectors]
    if biases:
        writing.vector(f"{at}.qkv_bias", [f"{at}.{bias}" for bias in biases])
    for role in (role for role in vectors if role not in biases):
        writing.vector(f"{at}.{role}", [f"{at}.{role}"])
    if shifts_keys(arch, writing.config.kv_bits):
        shift = key_shift(arch, layer, writing.checkpoint.vector(f"{at}.k_bias"))
        writing.bundle.append(f"{at}.k_shift", [shift.numpy()])
    for role, matrix in matrices.items():
        writing.matrix(f"{at}.{role}", matrix)
    return x


def _layer_budgets(
    writing: _Writing, facts: dict[str, Any], policy: KVPolicy, text: Tensor, progress: Progress
) -> list[int]:
    """A KV budget for every layer, from what the unfinished bundle attends to in the text."""
    context, threads = writing.checkpoint.architecture.context, torch.get_num_threads()
    progress("KV budgets a layer", 0, 1)
    session = load(writing.bundle.folder, whole(policy, context), threads, manifest=manifest.parse(facts))
    found = prefix_budgets(session, policy, text.flatten().tolist())
    progress("KV budgets a layer", 1, 1)
    return list(found.budgets)


def _measure(
    writing: _Writing, facts: dict[str, Any], text: Tensor, progress: Progress
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(parity, quality) of the unfinished bundle. Raises EdgellmError beyond parity's tolerance."""
    checkpoint, folder = writing.checkpoint, writing.bundle.folder
    arch, window = checkpoint.architecture, text.shape[1]
    threads = torch.get_num_threads()
    session = load(folder, kv="full", threads=threads, manifest=manifest.parse(facts))
    progress("parity with torch", 0, 1)
    found = parity(arch, writing.packed, session, prompts_from(text), kv_bits=writing.config.kv_bits)
    found.check()
    progress("parity with torch", 1, 1)
    progress("perplexity", 0, 2)
    ours = score(session, text.flatten().tolist(), window).perplexity
    del session  # and with it the mapped bundle
    progress("perplexity", 1, 2)
    dense, errors = drift(arch, checkpoint, writing.packed, text)
    progress("perplexity", 2, 2)
    source = writing.config.calibration
    vocabulary = sum(at.nbytes for name, at in writing.placed.items() if name in ("embedding", "head"))
    beside = writing.references
    quality = {
        "text": f"held out from {source.name}" if source else "written by the dense model",
        "tokens": text.numel(),
        "window": window,
        "perplexity": ours,
        "dense_perplexity": dense,
        "layer_errors": errors,
        "references": beside.measured(writing.packed, text, vocabulary) if beside else [],
    }
    return asdict(found), quality
