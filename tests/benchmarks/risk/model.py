"""MLPs 64-32, K of them trained beside each other on the same batches, and their ONNX files."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from tests.benchmarks.risk import losses
from tests.benchmarks.risk.metrics import auc

WIDTHS, DROPOUT = (64, 32), 0.1
RATE, BATCH = 1e-3, 256
STEPS, CHECK = 1000, 50  # the state with the best validation AUC is kept
DECAY, WARM_UP = 0.99, 200  # of the students' averages; steps before they teach
CLIPPED = 5.0  # standard deviations
WEIGHTS = {"soft": 1.0, "feature": 0.5, "fine": 0.5, "self": 0.5}


class Mlps(nn.Module):
    """K models alike at first: columns [B, inputs], standardised as those given are, to logits [K, B]."""

    def __init__(self, columns: NDArray[np.float32], count: int = 1) -> None:
        super().__init__()
        self.register_buffer("mean", torch.from_numpy(columns.mean(axis=0)))
        self.register_buffer("deviation", torch.from_numpy(columns.std(axis=0)).clamp_min(1e-6))
        for name, inputs, outputs in (
            ("first", columns.shape[1], WIDTHS[0]),
            ("second", *WIDTHS),
            ("last", WIDTHS[1], 1),
        ):
            layer = nn.Linear(inputs, outputs)
            self.register_parameter(f"{name}_weight", nn.Parameter(layer.weight.detach().T.repeat(count, 1, 1)))
            self.register_parameter(f"{name}_bias", nn.Parameter(layer.bias.detach().repeat(count, 1, 1)))

    def states(self, x: Tensor) -> Tensor:
        """What the last layer reads, [K, B, 32]."""
        x = ((x - self.mean) / self.deviation).clamp(-CLIPPED, CLIPPED)
        x = self._dropped((x @ self.first_weight + self.first_bias).relu())
        return self._dropped((x @ self.second_weight + self.second_bias).relu())

    def logits(self, states: Tensor) -> Tensor:
        """[K, B] of states."""
        return (states @ self.last_weight + self.last_bias)[..., 0]

    def forward(self, x: Tensor) -> Tensor:
        return self.logits(self.states(x))

    def _dropped(self, x: Tensor) -> Tensor:
        """Dropout, the same for all: their differences are not of chance."""
        return x * (torch.rand(x.shape[1:]) >= DROPOUT) / (1 - DROPOUT) if self.training else x


@dataclass(frozen=True)
class Teaching:
    """x, y of all rows; which of them have labels (int64); the teacher's logits and states of all."""

    x: Tensor
    y: Tensor
    labelled: Tensor
    logits: Tensor
    states: Tensor


@dataclass(frozen=True)
class Lesson:
    """What one student learns from besides labels: names of WEIGHTS, and whether defaulters count more."""

    granularities: tuple[str, ...] = ()
    reweight: bool = False


def train(
    models: Mlps, told: Teaching, lessons: Sequence[Lesson], validation: tuple[Tensor, NDArray[np.float32]], seed: int
) -> Mlps:
    """Train K models in place, one lesson each, on L_sup (and "fine") over labelled rows and the other losses over all.

    Every model gets the state of its best look at the validation rows.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    projection = nn.Parameter(0.1 * torch.randn(WIDTHS[1], told.states.shape[1]).repeat(len(lessons), 1, 1))
    optimizer = torch.optim.AdamW([*models.parameters(), projection], lr=RATE)
    share = {name: torch.tensor([w * (name in lesson.granularities) for lesson in lessons])
             for name, w in WEIGHTS.items()}  # fmt: skip
    used = {name for name in WEIGHTS if bool(share[name].any())}
    reweighted = torch.tensor([lesson.reweight for lesson in lessons])[:, None]
    more = losses.default_weight(told.y[told.labelled]) - 1
    everywhere = len(told.labelled) == len(told.y)
    average, best = copy.deepcopy(models).eval(), torch.full((len(lessons),), -1.0)
    kept = copy.deepcopy(dict(models.named_parameters()))
    for step in range(1, STEPS + 1):
        models.train()
        some = told.labelled[torch.randint(len(told.labelled), (BATCH,), generator=generator)]
        rows = some if everywhere else torch.randint(len(told.y), (BATCH,), generator=generator)
        y, states = told.y[some], models.states(told.x[some])
        s = models.logits(states)
        loss = losses.supervised(s, y, 1 + more * reweighted * y)
        if "fine" in used:
            loss = loss + share["fine"] * losses.fine(states, told.states[some], y == 1)
        if not everywhere and used - {"fine"}:
            states = models.states(told.x[rows])
            s = models.logits(states)
        if "soft" in used:  # the labels of rows without one are the teacher's guess
            probability = told.logits[rows].sigmoid() if not everywhere else y
            loss = loss + share["soft"] * losses.soft(s, told.logits[rows], 1 + more * reweighted * probability)
        if "feature" in used:
            loss = loss + share["feature"] * losses.feature(states @ projection, told.states[rows])
        if "self" in used and step > WARM_UP:
            with torch.no_grad():
                own = average(told.x[rows])
            loss = loss + share["self"] * losses.own_average(s, own)
        optimizer.zero_grad()
        loss.sum().backward()
        optimizer.step()
        with torch.no_grad():
            for old, new in zip(average.parameters(), models.parameters(), strict=True):
                old.lerp_(new, 1 - DECAY)
        if step % CHECK == 0:
            models.eval()
            with torch.no_grad():
                scores = models(validation[0]).numpy()
                for k, score in enumerate(scores):
                    reached = auc(score, validation[1])
                    if reached > best[k]:
                        best[k] = reached
                        for name, tensor in models.named_parameters():
                            kept[name][k] = tensor[k]
    with torch.no_grad():
        for name, tensor in models.named_parameters():
            tensor.copy_(kept[name])
    return models.eval()


def write_onnx(models: Mlps, k: int, file: Path) -> None:
    """Model k as standard operators: "columns" float32 [B, inputs] -> "probability" float32 [B, 1]."""
    tensors = {name: tensor.detach()[k].numpy() for name, tensor in models.named_parameters()}
    tensors |= {"mean": models.mean.numpy(), "deviation": models.deviation.numpy()}
    tensors |= {"low": np.float32(-CLIPPED), "high": np.float32(CLIPPED)}

    def gemm(x: str, layer: str, out: str) -> onnx.NodeProto:
        return helper.make_node("Gemm", [x, f"{layer}_weight", f"{layer}_bias"], [out])

    nodes = [
        helper.make_node("Sub", ["columns", "mean"], ["centred"]),
        helper.make_node("Div", ["centred", "deviation"], ["standard"]),
        helper.make_node("Clip", ["standard", "low", "high"], ["x"]),
        gemm("x", "first", "a"),
        helper.make_node("Relu", ["a"], ["b"]),
        gemm("b", "second", "c"),
        helper.make_node("Relu", ["c"], ["d"]),
        gemm("d", "last", "logit"),
        helper.make_node("Sigmoid", ["logit"], ["probability"]),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", size])
            for name, size in (("columns", len(tensors["mean"])), ("probability", 1))]  # fmt: skip
    stored = [numpy_helper.from_array(np.asarray(value), name) for name, value in tensors.items()]
    graph = helper.make_graph(nodes, "risk", ends[:1], ends[1:], stored)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), file)


def scorer(file: Path) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    """ONNX Runtime over the file: columns [B, inputs] -> probabilities [B]."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])

    def score(columns: NDArray[np.float32]) -> NDArray[np.float32]:
        found: NDArray[np.float32] = session.run(None, {"columns": columns})[0][:, 0]
        return found

    return score
