"""The MLP 64-32 of teacher and student, its training, and its ONNX file."""

from __future__ import annotations

import copy
from collections.abc import Callable
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
STEPS, CHECK, PATIENCE = 3000, 20, 25  # steps at most, between looks at the validation rows, and looks without a gain
DECAY, WARM_UP = 0.99, 200  # of the student's average; steps before it teaches
CLIPPED = 5.0  # standard deviations
WEIGHTS = {"soft": 1.0, "feature": 0.5, "fine": 0.5, "self": 0.5}


class Mlp(nn.Module):
    """Columns [B, inputs], standardised as those given are, to a logit [B]; `states` are what its last layer reads."""

    def __init__(self, columns: NDArray[np.float32]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.from_numpy(columns.mean(axis=0)))
        self.register_buffer("deviation", torch.from_numpy(columns.std(axis=0)).clamp_min(1e-6))
        self.first, self.second = nn.Linear(columns.shape[1], WIDTHS[0]), nn.Linear(*WIDTHS)
        self.last, self.dropout = nn.Linear(WIDTHS[1], 1), nn.Dropout(DROPOUT)

    def states(self, x: Tensor) -> Tensor:
        """[B, 32]."""
        x = ((x - self.mean) / self.deviation).clamp(-CLIPPED, CLIPPED)
        x = self.dropout(self.first(x).relu())
        return self.dropout(self.second(x).relu())

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.states(x))[:, 0]


@dataclass(frozen=True)
class Teaching:
    """What a student may learn from: x, y and which rows' y it knows; the teacher's logits and states of all rows;
    names of WEIGHTS that count; and whether defaulters count more."""

    x: Tensor
    y: Tensor
    known: Tensor
    logits: Tensor
    states: Tensor
    granularities: tuple[str, ...] = ()
    reweight: bool = False


def train(model: Mlp, told: Teaching, validation: tuple[Tensor, NDArray[np.float32]], seed: int) -> Mlp:
    """Train in place on L_sup + the granularities' losses; the best state by validation AUC is kept.

    Steps count, not epochs: a student of few rows sees them more often and is looked at as often as others.
    """
    torch.manual_seed(seed)
    projection = nn.Linear(WIDTHS[1], told.states.shape[1], bias=False)
    optimizer = torch.optim.AdamW([*model.parameters(), *projection.parameters()], lr=RATE)
    weights = losses.row_weights(told.y, told.known, told.reweight)
    average, best, kept, since = copy.deepcopy(model).eval(), -1.0, model.state_dict(), 0
    names = told.granularities
    # Rows that say nothing to this student are left out: without granularities, those whose label it does not know.
    rows = torch.arange(len(told.y)) if names and names != ("self",) else torch.nonzero(told.known)[:, 0]
    order = torch.empty(0, dtype=torch.int64)
    for step in range(1, STEPS + 1):
        model.train()
        if len(order) < min(BATCH, len(rows)):
            order = rows[torch.randperm(len(rows))]
        batch, order = order[:BATCH], order[BATCH:]
        x, y, w, known = told.x[batch], told.y[batch], weights[batch], told.known[batch]
        states = model.states(x)
        s = model.last(states)[:, 0]
        loss = losses.supervised(s, y, w, known)
        if "soft" in names:
            loss = loss + WEIGHTS["soft"] * losses.soft(s, told.logits[batch], w)
        if "feature" in names:
            loss = loss + WEIGHTS["feature"] * losses.feature(projection(states), told.states[batch])
        if "fine" in names:
            loss = loss + WEIGHTS["fine"] * losses.fine(states, told.states[batch], (y == 1) & known)
        if "self" in names and step > WARM_UP:
            with torch.no_grad():
                own = average(x)
            loss = loss + WEIGHTS["self"] * losses.own_average(s, own)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for old, new in zip(average.parameters(), model.parameters(), strict=True):
                old.lerp_(new, 1 - DECAY)
        if step % CHECK:
            continue
        model.eval()
        with torch.no_grad():
            reached = auc(model(validation[0]).numpy(), validation[1])
        since += 1
        if reached > best:
            best, kept, since = reached, copy.deepcopy(model.state_dict()), 0
        if since >= PATIENCE:
            break
    model.load_state_dict(kept)
    return model.eval()


def write_onnx(model: Mlp, file: Path) -> None:
    """The model as standard operators: "columns" float32 [B, inputs] -> "probability" float32 [B, 1]."""
    tensors = {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}
    tensors |= {"low": np.float32(-CLIPPED), "high": np.float32(CLIPPED)}

    def gemm(x: str, layer: str, out: str) -> onnx.NodeProto:
        return helper.make_node("Gemm", [x, f"{layer}.weight", f"{layer}.bias"], [out], transB=1)

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
