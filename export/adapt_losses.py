"""The losses of adapt.onnx, and the gradient of the logits that its way back begins with (methods A5.4)."""

from __future__ import annotations

import math

from edgellm.export.architectures import Architecture
from edgellm.export.tape import Tape


def add_losses(arch: Architecture, tape: Tape, states: list[str]) -> list[str]:
    """Adds the outputs ida, entropy and kl, whose names are returned, and seeds the gradient of the logits, whose forms
    are closed. states: what the head reads at the prompt's rows, and at the answer's."""
    b, head = tape.b, "embedding" if arch.tied else "head"

    def logits(state: str) -> str:
        z = tape.linear(state, head)
        return tape.capped(z, arch.final_softcap) if arch.final_softcap else z

    def column(y: str) -> str:
        return tape.node("Unsqueeze", y, tape.integers(1))

    # ONNX Runtime adds up a vocabulary one term after another: behind a likely token unlikely ones are lost, and
    # probabilities then sum to 1 + 2e-5. What was left over was a thousandth of SmolLM2's gradients.
    rows = next(rows for rows in range(math.isqrt(arch.vocabulary), 0, -1) if arch.vocabulary % rows == 0)

    def total(y: str) -> str:
        parts = tape.node("Reshape", y, tape.integers(0, rows, arch.vocabulary // rows))
        for axis in (-1, -2):  # dimensions are kept: of no rows at all, ReduceSum drops none of them rightly
            parts = tape.node("ReduceSum", parts, tape.integers(axis))
        return tape.node("Reshape", parts, tape.integers(0, 1))

    def log_softmax(z: str) -> str:
        nearly = tape.node("LogSoftmax", z, axis=-1)
        return tape.node("Sub", nearly, tape.node("Log", total(tape.node("Exp", nearly))))

    # -ln p(target): dz = weight * (p - onehot)
    z = logits(states[0])
    log_p, target = log_softmax(z), column("targets")
    chosen = tape.node("GatherElements", log_p, target, axis=1)
    b.node("ReduceSum", [tape.node("Mul", tape.node("Neg", chosen), column("prompt_weights"))], "ida", keepdims=0)
    weight = tape.node("Mul", column("prompt_weights"), "w_ida")
    spread = tape.node("Mul", tape.node("Exp", log_p), weight)
    taken = tape.node("Neg", weight)
    tape.seed(z, tape.node("ScatterElements", spread, target, taken, axis=1, reduction="add"))

    # entropy H: dz = -p * (ln p + H);  KL(p || base): dz = p * (ln p - ln base - KL)
    z = logits(states[1])
    log_p = log_softmax(z)
    p, weight = tape.node("Exp", log_p), column("answer_weights")
    apart = tape.node("Sub", log_p, log_softmax("reference"))
    slopes = []
    for name, sign, of in (("entropy", "Neg", log_p), ("kl", "Identity", apart)):
        each = tape.node(sign, total(tape.node("Mul", p, of)))
        b.node("ReduceSum", [tape.node("Mul", each, weight)], name, keepdims=0)
        slope = tape.node("Sub", tape.node(sign, of), each)
        slopes.append(tape.node("Mul", slope, f"w_{name}"))
    tape.seed(z, tape.node("Mul", tape.node("Mul", p, tape.node("Add", *slopes)), weight))
    return ["ida", "entropy", "kl"]
