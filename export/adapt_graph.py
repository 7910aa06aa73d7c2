"""adapt.onnx: the loss of test-time adaptation and its exact gradient, over the packed weights of model.onnx.data.

SyTTA (arXiv 2510.10223): the surprise at the prompt, and at the first answer tokens the entropy and the divergence from
the base model (methods A1.2). Lengths are dynamic; what a row weighs nothing is padding, and changes nothing.

Inputs: ids int64 [T]; positions int64 [T] ([P + T] for carrier "soft"); prompt_rows int64 [M], of those tokens that
predict a scored one, targets int64 [M] and prompt_weights float32 [M]; answer_rows int64 [K], answer_weights float32
[K] and reference float32 [K, vocabulary], the base model's logits there; w_ida, w_entropy and w_kl, float32 scalars;
and the carrier's tensors (adapt_carriers.py). Outputs: ida = sum of prompt_weights * -ln p(target), entropy = sum of
answer_weights * H, kl = sum of answer_weights * KL(p || base), scalars in nats; and "NAME.gradient" for every tensor of
the carrier, of w_ida * ida + w_entropy * entropy + w_kl * kl.
"""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper

from edgellm.export.adapt_carriers import carrier_shapes
from edgellm.export.adapt_forward import Forward
from edgellm.export.adapt_losses import add_losses
from edgellm.export.architectures import Architecture
from edgellm.export.nodes import Nodes, Placed
from edgellm.export.tape import Tape


def adapt_graph(arch: Architecture, placed: dict[str, Placed], carrier: str = "prefix") -> onnx.ModelProto:
    """The graph of one carrier. placed: as decoder_graph takes it."""
    shapes = carrier_shapes(arch, carrier)
    b = Nodes(placed)
    tape = Tape(b, list(shapes))
    forward = Forward(arch, tape, carrier)
    losses = add_losses(arch, tape, forward.states())
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, []) for name in losses]
    for name, shape in shapes.items():
        outputs.append(helper.make_tensor_value_info(f"{name}.gradient", TensorProto.FLOAT, shape))
        tape.backward(name, f"{name}.gradient")
    if carrier == "soft":
        for name, shape in carrier_shapes(arch, "prefix").items():
            b.node("Concat", forward.kept[name], name, axis=0)
            outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))

    places = "P+T" if carrier == "soft" else "T"
    integers = {"ids": ["T"], "positions": [places], "prompt_rows": ["M"], "targets": ["M"], "answer_rows": ["K"]}
    floats: dict[str, list[int | str]] = {"prompt_weights": ["M"], "answer_weights": ["K"]}
    floats |= {"reference": ["K", arch.vocabulary], "w_ida": [], "w_entropy": [], "w_kl": [], **shapes}
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, size) for name, size in integers.items()]
    inputs += [helper.make_tensor_value_info(name, TensorProto.FLOAT, size) for name, size in floats.items()]
    return b.model("adapt", inputs, outputs)


def head_graph(arch: Architecture, placed: dict[str, Placed]) -> onnx.ModelProto:
    """head.onnx: the output head's product in both directions, which is all that the carrier "delta" needs.

    delta float32 [1, hidden] -> shift [1, vocabulary], before the cap; slope [1, vocabulary] -> gradient [1, hidden];
    ids int64 [T] -> embedded [T, hidden], unscaled.
    """
    b, head = Nodes(placed), "embedding" if arch.tied else "head"
    b.matmul("delta", head, "shift")
    b.packed("NMMatMulT", "slope", head, "gradient")
    widths = {"delta": arch.hidden, "slope": arch.vocabulary, "shift": arch.vocabulary, "gradient": arch.hidden}
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, width]) for name, width in widths.items()]
    b.packed("QuantGather", "ids", "embedding", "embedded")
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["T"])
    embedded = helper.make_tensor_value_info("embedded", TensorProto.FLOAT, ["T", arch.hidden])
    return b.model("head", [*values[:2], ids], [*values[2:], embedded])
