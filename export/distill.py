"""Multi-granularity distillation (MGKD, arXiv 2509.06385) for language models: what the student is told to be near to.

The paper is of two classes and tables (tests/benchmarks/risk.py is that); what its three granularities mean for text is
ours, a reconstruction after methods.md A3.2:
  coarse  soft labels, KL(teacher || student) a token, and the final representation, 1 - cosine
  fine    hidden states after every block, a token's squared distance over the teacher's square norm; tokens weighted by
          how rare is what they predict: re-weighting, as the paper has it against rare classes
  self    KL(p of an exponential moving average of the student || student)
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from edgellm.runtime.errors import UsageError

GRANULARITIES = ("coarse", "fine", "self")
USUAL = ("coarse", "fine")  # self costs a fifth of the steps, and gained nothing on tests/benchmarks/risk
TEMPERATURE = 1.0  # of the soft labels: what perplexity is measured at
REPRESENTATION, HIDDEN, SELF = 0.5, 0.5, 0.5  # weights of the losses beside the soft labels'
RAREST = 10.0  # times the weight of the most frequent token, at most


def parse(text: str) -> tuple[str, ...]:
    """Read "coarse,fine,self" or some of them, in any order. Raises UsageError."""
    named = [part.strip() for part in text.split(",")]
    if not set(named) <= set(GRANULARITIES) or len(set(named)) < len(named):
        raise UsageError(
            f'"{text}" is no list of granularities to distill', f"Use some of {','.join(GRANULARITIES)}, each once."
        )
    if named == ["self"]:
        raise UsageError("a student that is its own only teacher learns nothing", "Add coarse or fine to self.")
    return tuple(name for name in GRANULARITIES if name in named)


def token_weights(ids: Tensor, vocabulary: int) -> Tensor:
    """What a position counts, float32 [N, T] of mean 1, by the token it predicts in int64 ids [N, T].

    w = min(10, sqrt(n0 / n)), n how often that token is in the text, n0 that of the most frequent one; the last
    position of a sequence predicts nothing that is known and has the mean.
    """
    counts = torch.bincount(ids.flatten(), minlength=vocabulary).float()
    own = (counts.max() / counts.clamp_min(1)).sqrt().clamp_max(RAREST)[ids[:, 1:]]
    own = own / own.mean()
    return torch.cat([own, torch.ones(len(ids), 1)], dim=1)


def soft_labels(student: Tensor, teacher: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """T^2 * KL(softmax(teacher / T) || softmax(student / T)) of logits [..., vocabulary], summed over rows, in nats."""
    own = functional.log_softmax(student / temperature, dim=-1)
    wanted = functional.log_softmax(teacher / temperature, dim=-1)
    return temperature**2 * functional.kl_div(own, wanted, reduction="sum", log_target=True)


def representation(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean of 1 - cosine of normed states [..., hidden]."""
    return 1 - functional.cosine_similarity(student, teacher, dim=-1).mean()


def hidden(student: Tensor, teacher: Tensor, weights: Tensor) -> Tensor:
    """Mean of w * ||student - teacher||^2 / ||teacher||^2 of states [..., hidden] with weights [...].

    Over its own norm each: the few tokens that are hundreds of times as large as others count no more than those.
    """
    off = (student - teacher).square().sum(-1) / teacher.square().sum(-1).clamp_min(1e-12)
    return (weights * off).mean()
