"""The losses of adapt.onnx, and the gradient of the logits that its way back begins with (methods A5.4)."""

from __future__ import annotations

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

    def total(y: str) -> str:
        return tape.node("ReduceSum", y, tape.integers(-1))

    # -ln p(target): dz = weight * (p - onehot)
    z = logits(states[0])
    log_p, target = tape.node("LogSoftmax", z, axis=-1), column("targets")
    chosen = tape.node("GatherElements", log_p, target, axis=1)
    b.node("ReduceSum", [tape.node("Mul", tape.node("Neg", chosen), column("prompt_weights"))], "ida", keepdims=0)
    weight = tape.node("Mul", column("prompt_weights"), "w_ida")
    spread = tape.node("Mul", tape.node("Exp", log_p), weight)
    taken = tape.node("Neg", weight)
    tape.seed(z, tape.node("ScatterElements", spread, target, taken, axis=1, reduction="add"))

    # entropy H: dz = -p * (ln p + H);  KL(p || base): dz = p * (ln p - ln base - KL)
    z = logits(states[1])
    log_p = tape.node("LogSoftmax", z, axis=-1)
    p, weight = tape.node("Exp", log_p), column("answer_weights")
    apart = tape.node("Sub", log_p, tape.node("LogSoftmax", "reference", axis=-1))
    slopes = []
    for name, sign, of in (("entropy", "Neg", log_p), ("kl", "Identity", apart)):
        each = tape.node(sign, total(tape.node("Mul", p, of)))
        b.node("ReduceSum", [tape.node("Mul", each, weight)], name, keepdims=0)
        slope = tape.node("Sub", tape.node(sign, of), each)
        slopes.append(tape.node("Mul", slope, f"w_{name}"))
    tape.seed(z, tape.node("Mul", tape.node("Mul", p, tape.node("Add", *slopes)), weight))
    return ["ida", "entropy", "kl"]
