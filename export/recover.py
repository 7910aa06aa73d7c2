"""`--recover distill`, the whole model: refused early where memory is short, trained, placed in the bundle again."""

from __future__ import annotations

from collections.abc import Callable

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from edgellm.devices.cores import usable_cores
from edgellm.devices.memory import available_bytes
from edgellm.export import tensor_file
from edgellm.export.architectures import MATRICES, Architecture
from edgellm.export.block_recovery import is_trained
from edgellm.export.checkpoint import Checkpoint
from edgellm.export.config import HELD_OUT, ExportConfig
from edgellm.export.end_to_end import Plan, pace, train
from edgellm.export.latents import load
from edgellm.export.nodes import DATA
from edgellm.export.pack import pack
from edgellm.export.packed_source import PackedSource
from edgellm.export.plan import joined
from edgellm.export.recovery_cost import planned_steps, whole_bytes
from edgellm.export.self_written import Held
from edgellm.export.straight_through import Latent
from edgellm.export.student import Student, divergence
from edgellm.export.write import PartialBundle
from edgellm.runtime.errors import EdgellmError

FOLDER, STATE, TRAINED = "recovery.partial", "state.safetensors", "trained.safetensors"
JUDGED = 4  # sequences that tell whether training helped, and are not trained on
OVER = 1.5  # times the budget: the clock ends a training then, on a machine slower than was planned


def check_memory(arch: Architecture, config: ExportConfig) -> None:
    """Raise EdgellmError, before any work, where both models do not fit this machine's memory."""
    free = available_bytes()
    if not config.trains_whole or free is None:
        return
    sequences, length = config.text_shape(arch.context)
    needed = whole_bytes(arch, config, sequences - HELD_OUT, length)
    if needed > free:
        raise EdgellmError(
            f"distilling end to end holds both models in float32, {needed / 1e9:.1f} GB; {free / 1e9:.1f} GB are free",
            "Add --recover-minutes 0: blocks are distilled one by one then, in the memory of one.",
        )


def set_apart(ids: Tensor) -> tuple[Tensor, Tensor]:
    """(to fit to, to judge by) of text int64 [N, T]. Nothing may be fitted to what judges: on text that blocks were
    trained on, every training of the whole looks like a loss."""
    judged = min(JUDGED, len(ids) // 2)
    return ids[: len(ids) - judged], ids[len(ids) - judged :]


def recover_whole(
    config: ExportConfig,
    checkpoint: Checkpoint,
    bundle: PartialBundle,
    ids: Tensor,
    progress: Callable[[int, int], None],
) -> int:
    """Train the bundle's matrices towards the dense model on text int64 [N, T], and place them anew; the steps taken.

    A training that brought the model no nearer, on sequences kept from it, is dropped: 0 steps. A killed export goes
    on: from the training's last state, or, where that was done, with placing what it gave.
    """
    if not config.trains_whole:
        return 0
    arch, folder = checkpoint.architecture, bundle.work / FOLDER
    folder.mkdir(exist_ok=True)
    try:
        found = load_file(folder / TRAINED)
    except (OSError, SafetensorError):
        packed = PackedSource(bundle.folder / DATA, bundle.journal.placed)
        names = [f"layers.{layer}.{role}" for layer in range(arch.layers) for role in MATRICES]
        matrices = {name: packed.quantized(name) for name in names}
        latents: dict[str, Latent] = {}
        for layer in range(arch.layers):
            left = load(folder, layer)
            for role in MATRICES:
                name = f"layers.{layer}.{role}"
                if is_trained(config, checkpoint, name, matrices[name]):
                    latents[name] = Latent(matrices[name], left[role] if role in left else checkpoint.matrix(name))
        lessons, judges = set_apart(ids)
        steps = planned_steps(arch, config, len(lessons), ids.shape[1], usable_cores())
        student = Student(arch, latents, Held(arch, packed, torch.float32, without=latents))
        teacher = Held(arch, checkpoint, torch.float32)
        apart = divergence(student, teacher, judges)
        plan = Plan(steps, OVER * 60 * config.recover_minutes, config.distill, config.seed, pace(apart))
        steps = train(student, teacher, lessons, plan, progress, folder / STATE)
        helped = divergence(student, teacher, judges) < apart
        found = {"steps": torch.tensor(steps if helped else 0)}
        matrices |= {name: latent.quantized() for name, latent in latents.items()}
        for layer in range(arch.layers if helped else 0):
            of_layer = joined({role: matrices[f"layers.{layer}.{role}"] for role in MATRICES})
            found |= {f"layers.{layer}.{role}": torch.from_numpy(pack(q)) for role, q in of_layer.items()}
        tensor_file.write(folder / TRAINED, found)
    for name, content in found.items():
        if name != "steps":
            bundle.replace(name, content.numpy())
    return int(found["steps"])
