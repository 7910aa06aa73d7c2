"""The schema of edgellm.json as dataclasses: what a bundle says about itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from edgellm.runtime.bundle_files import CHAT_TEMPLATE, GRAPH, NAME, WEIGHTS, FileFacts, sha256

KV_BITS = (16, 8)
GRAPHS = ("edgellm", "optimum")
ENGINES = ("tensorrt-rtx", "tensorrt")
ENGINE_OPERATORS = ("standard", "plugins")


@dataclass(frozen=True)
class Model:
    """Sizes of the network; context is in tokens, parameters counts weights before pruning."""

    architecture: str
    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ff: int
    vocabulary: int
    context: int
    parameters: int

    def __post_init__(self) -> None:
        for name in ("layers", "hidden", "heads", "kv_heads", "head_dim", "ff", "vocabulary", "context"):
            if not 0 < getattr(self, name) < 2**31:
                raise ValueError(f'"model.{name}" is {getattr(self, name)}; expected a size from 1 to 2**31 - 1')


@dataclass(frozen=True)
class Recipe:
    """How the weights were made: "dass:2:4" or "none", "mlp" or "all", 4 | 8 or "as stored"; recover: "sparsegpt",
    "distill" or "none", and "none" for bundles of 0.1.0's first days, which do not say. fit: the size that was asked
    for, where the recipe was searched; levels: what it then gave to which matrices, and sparsity, bits and head_bits
    are "searched". distill_steps: of the whole model's training.
    """

    source: str
    sparsity: str
    scope: str
    bits: int | str
    head_bits: int | str
    calibration: str | None
    recover: str = "none"
    fit: str | None = None
    levels: dict[str, str] = field(default_factory=dict)
    distill_steps: int = 0


@dataclass(frozen=True)
class KVDefaults:
    """The cache a session gets when nothing else is asked for: fields of edgellm.runtime.kv_policy.KVPolicy, in tokens.

    None: as the policy has it by default. budgets: one a layer, or none: `budget` for all. bits: of keys and values in
    the graph, 16 or 8; a session cannot have others.
    """

    policy: str
    budget: int
    sinks: int
    recent: float | None = None
    forget: float | None = None
    queries: int | None = None
    heads: str | None = None
    prefill: str | None = None
    layers: str | None = None
    pool: int | None = None
    budgets: list[int] = field(default_factory=list)
    bits: int = 16

    def __post_init__(self) -> None:
        if self.bits not in KV_BITS:
            raise ValueError(f'"kv.bits" is {self.bits}; this edgellm runs 16 and 8')

    def settings(self) -> dict[str, Any]:
        """What is given beside policy and budgets."""
        names = ("sinks", "recent", "forget", "queries", "heads", "prefill", "layers", "pool")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


@dataclass(frozen=True)
class Tokens:
    """Special token ids. `stop` is the union of what ends a text."""

    bos: int | None
    add_bos: bool
    stop: list[int]
    eos: int | None


@dataclass(frozen=True)
class ChatSample:
    """A conversation and the ids it had at export, rendered with the generation prompt and the clock at `created`."""

    messages: list[dict[str, Any]]
    ids: list[int]


@dataclass(frozen=True)
class ChatFacts:
    """What loading renders again, to notice a jinja2 or tokenizers that differs from the export's."""

    samples: list[ChatSample]


@dataclass(frozen=True)
class Matrix:
    """One packed matrix [n_out, k_in]; names and meaning as in edgellm.kernels.layout.Format.

    offset: where it begins in model.onnx.data; None in bundles of 0.1.0's first days and in a graph of Optimum's, whose
    matrices are ONNX Runtime's MatMulNBits weights, or floats, whose group is 1.
    """

    name: str
    n_out: int
    k_in: int
    bits: int
    group: int
    zero: str
    n: int
    m: int
    axis: str
    bytes: int
    offset: int | None = None

    def __post_init__(self) -> None:
        if self.n_out < 1 or self.k_in < 1 or self.bytes < 0:
            raise ValueError(f'"matrices": {self.name} is {self.n_out} x {self.k_in} in {self.bytes} bytes')
        if (self.offset or 0) < 0:
            raise ValueError(f'"matrices": {self.name} begins at byte {self.offset}')


@dataclass(frozen=True)
class Reference:
    """Another recipe for the same layers on the same text, never written: bytes and bits_per_weight of its matrices,
    embedding and head the bundle's own."""

    name: str
    perplexity: float
    bytes: int
    bits_per_weight: float


@dataclass(frozen=True)
class Quality:
    """Perplexity of the bundle and of the dense model on the same `tokens` of `text`, and of references.

    layer_errors: how far states are from the dense model's as they leave each layer, relative, the median token's.
    """

    text: str
    tokens: int
    window: int
    perplexity: float
    dense_perplexity: float
    layer_errors: list[float] = field(default_factory=list)
    references: list[Reference] = field(default_factory=list)

    @property
    def loss(self) -> float:
        """How much perplexity is above the dense model's, as a share of it."""
        return self.perplexity / self.dense_perplexity - 1


@dataclass(frozen=True)
class Parity:
    """Against torch with the same weights: relative logit error over all prompts and of the worst one, and how many
    agree greedily. In a graph of Optimum's: both before they are rounded."""

    prompts: int
    tokens: int
    logit_error: float
    greedy_agreement: int
    near_ties: int = 0
    worst_logit_error: float | None = None  # bundles of 0.1.0's first days do not say


@dataclass(frozen=True)
class BuiltEngine:
    """model.engine: TensorRT's version ("1.7.1.116"), the compute capabilities it was built for ("8.9"), the device's
    own where it was built there, and the SHA-256 of the plugin library that its operators came from, if any."""

    version: str
    compute_capabilities: list[str]
    plugin_sha256: str | None


@dataclass(frozen=True)
class EngineFacts:
    """engine.onnx, what a TensorRT engine is built from. kind: "tensorrt-rtx" | "tensorrt". operators: "standard" |
    "plugins". capacity: slots of a layer's KV cache; planes: of its scores, 0 where it has none. tokens, rows: the most
    of one run. offsets: where in model.onnx.data the matrices begin that it is fed: the embedding's rows, and with
    plugins every matrix's tiles. parity: of the graph in ONNX Runtime with torch, None where it has plugins. built:
    None until there is a model.engine."""

    kind: str
    operators: str
    capacity: int
    planes: int
    tokens: int
    rows: int
    offsets: dict[str, int]
    parity: Parity | None
    built: BuiltEngine | None

    def __post_init__(self) -> None:
        if self.kind not in ENGINES or self.operators not in ENGINE_OPERATORS:
            raise ValueError(f'"engine" is {self.kind!r} of {self.operators!r} operators; expected one of {ENGINES}')
        if min(self.capacity, self.tokens, self.rows) < 1 or min(self.offsets.values(), default=-1) < 0:
            raise ValueError('"engine" has a size below 1')


@dataclass(frozen=True)
class Gate:
    """When a question is unfamiliar: thresholds in nats, measured with this bundle on `prompts` pieces of text.

    entropy: of the mean entropy of an answer's first tokens; nll: of the mean surprise a token of the question. chat:
    whether the pieces were asked in the chat template.
    """

    entropy: float
    nll: float
    prompts: int
    chat: bool


@dataclass(frozen=True)
class Adapt:
    """What test-time adaptation needs to know. softcap: of the output's logits; 0: none."""

    softcap: float
    gate: Gate | None


@dataclass(frozen=True)
class Manifest:
    """Everything edgellm.json says. Raises ValueError where fields contradict each other."""

    schema: int
    tool: str
    operators: int
    created: str
    model: Model
    recipe: Recipe
    kv: KVDefaults
    tokens: Tokens
    chat: ChatFacts | None
    matrices: list[Matrix]
    quality: Quality | None
    parity: Parity | None
    files: dict[str, FileFacts]
    device: str | None = None  # what the recipe was chosen for; bundles of 0.1.0's first days do not say
    adapt: Adapt | None = None  # for bundles that were exported with --adapt
    graph: str = "edgellm"  # whose: ours, or a standard one of "optimum" for a model outside our table
    engine: EngineFacts | None = None

    def __post_init__(self) -> None:
        named = [*self.tokens.stop, *(t for t in (self.tokens.bos, self.tokens.eos) if t is not None)]
        for token in named:
            if not 0 <= token < self.model.vocabulary:
                raise ValueError(f'"tokens" names id {token}; the vocabulary has {self.model.vocabulary}')
        if self.graph not in GRAPHS:
            raise ValueError(f'"graph" is {self.graph!r}; this edgellm runs {" and ".join(GRAPHS)}')
        for name in self.files:
            if name in ("", ".", "..", NAME) or any(c in name for c in "/\\\0"):
                raise ValueError(f'"files" names {name!r}; expected plain names of files in the bundle')
        self.created_at  # noqa: B018  (raises ValueError for what is no time)
        if self.chat and CHAT_TEMPLATE not in self.files:
            raise ValueError(f'"chat" has samples but "files" lists no {CHAT_TEMPLATE}')

    @property
    def created_at(self) -> datetime:
        """`created`, the clock that the chat samples were rendered with."""
        return datetime.fromisoformat(self.created.replace("Z", "+00:00"))

    @property
    def has_chat_template(self) -> bool:
        """Whether the bundle renders conversations."""
        return CHAT_TEMPLATE in self.files

    @property
    def weights_sha256(self) -> str:
        """One hash (hex) for graph and weights together, from those of the two files: what a KV cache depends on."""
        named = "".join(f"{name} {self.files[name].sha256}\n" for name in (GRAPH, WEIGHTS))
        return sha256(named.encode())
