"""A model that is arithmetic, a tokenizer of single bytes, and a bundle of empty weights."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from edgellm.kernels.attention_reference import Cache, commit
from edgellm.kernels.control import ATTENTION, FULL, Control
from edgellm.kernels.library import OPERATORS
from edgellm.runtime.cache import CacheLayout, cache_layout
from edgellm.runtime.chat import Chat
from edgellm.runtime.kv_policy import KVPolicy, parse_kv
from edgellm.runtime.manifest import FileFacts, dump, file_facts, parse, seal
from edgellm.runtime.session import Session

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
VOCABULARY = 256 + len(SPECIAL)
BOS, STOP = VOCABULARY - 3, VOCABULARY - 1
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

DATA: dict[str, Any] = {
    "schema": 1,
    "tool": "0.1.0",
    "operators": OPERATORS,
    "created": "2026-01-02T03:04:05+00:00",
    "model": {
        "architecture": "llama",
        "name": "tiny",
        "layers": 2,
        "hidden": 64,
        "heads": 4,
        "kv_heads": 2,
        "head_dim": 16,
        "ff": 128,
        "vocabulary": VOCABULARY,
        "context": 64,
        "parameters": 123456,
    },
    "recipe": {
        "source": "tiny.gguf",
        "sparsity": "dass:2:4",
        "scope": "mlp",
        "bits": 4,
        "head_bits": "as stored",
        "calibration": None,
    },
    "kv": {"policy": "full", "budget": 64, "sinks": 4},
    "tokens": {"bos": None, "add_bos": False, "stop": [STOP], "eos": STOP},
    "chat": None,
    "matrices": [
        {"name": "embedding", "n_out": 256, "k_in": 64, "bits": 8, "group": 32, "zero": "symmetric",
         "n": 1, "m": 1, "axis": "in", "bytes": 256 * 64},
        {"name": "layers.0.q", "n_out": 64, "k_in": 64, "bits": 4, "group": 64, "zero": "min",
         "n": 1, "m": 1, "axis": "in", "bytes": 2048},
        {"name": "layers.0.gate_up", "n_out": 256, "k_in": 64, "bits": 4, "group": 64, "zero": "symmetric",
         "n": 2, "m": 4, "axis": "out", "bytes": 6656},
    ],
    "quality": {"text": "wikitext", "tokens": 100, "window": 64, "perplexity": 21.5, "dense_perplexity": 21.25},
    "parity": None,
}  # fmt: skip


FILES = {name: vars(FileFacts(1, name[-1] * 64)) for name in ("model.onnx", "model.onnx.data")}


def byte_tokenizer() -> Tokenizer:
    """A token a byte, as byte-level BPE has before its merges, and three special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in SPECIAL])
    return tokenizer


def make_bundle(folder: Path, template: str | None = CHATML, **changes: Any) -> Path:
    """A folder whose every check passes, until a backend reads the graph."""
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(b"graph")
    (folder / "model.onnx.data").write_bytes(bytes(range(256)))
    byte_tokenizer().save(str(folder / "tokenizer.json"))
    if template is not None:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    files = {path.name: vars(file_facts(path)) for path in sorted(folder.iterdir())}
    (folder / "edgellm.json").write_bytes(dump(seal({**deepcopy(DATA), **changes, "files": files})))
    return folder


class FakeBackend:
    """After token t at position p comes (5t + 3p + 1) mod 251, or what `script` says for p; `second` is next likely.

    It keeps the operator's rules: a run has at most `staging` tokens, commits at most what the last one staged, and
    full attention never runs out of room. `runs` records (ids, positions, rows, control of the last layer). Its cache
    has real slots, moved by the reference's commit(), a key being its token's id; `seen` is what the last run's last
    token attends to. Every query pays all it has to `liked` tokens, if any is seen.
    """

    kv_bytes = 4096
    buffers: dict[str, NDArray[Any]]

    def __init__(
        self,
        staging: int,
        vocabulary: int = VOCABULARY,
        script: dict[int, int] | None = None,
        second: int | None = None,
    ) -> None:
        self.second = second
        self.staging = staging
        self.vocabulary = vocabulary
        self.script = script or {}
        self.runs: list[tuple[list[int], list[int], list[int], list[int]]] = []
        self.staged = 0
        self.broken = False
        self.seen: list[tuple[int, int]] = []  # (position, id)
        self.liked = frozenset[int]()
        self.capacities: list[list[int]] = []  # of every resize

    def allocate(self, layout: CacheLayout) -> None:
        self.buffers = {name: np.full(shape, -1, dtype) for name, shape, dtype in layout.buffers()}

    def resize(self, layout: CacheLayout) -> None:
        old, self.capacities = self.buffers, [*self.capacities, [layout.capacity(n) for n in range(layout.layers)]]
        self.allocate(layout)
        for name, buffer in self.buffers.items():
            kept = min(buffer.shape[1], old[name].shape[1])
            buffer[:, :kept] = old[name][:, :kept]

    def following(self, token: int, position: int) -> int:
        return self.script.get(position, (5 * token + 3 * position + 1) % 251)

    def step(
        self,
        ids: NDArray[np.int64],
        positions: NDArray[np.int64],
        rows: NDArray[np.int64],
        control: NDArray[np.int64],
    ) -> NDArray[np.float32]:
        if self.broken:
            raise RuntimeError("the power went out")
        assert {a.dtype for a in (ids, positions, rows, control)} == {np.dtype(np.int64)}
        assert 1 <= len(ids) <= self.staging
        assert len(ids) == len(positions)
        if positions[0] == 0:
            self.staged = 0
        for layer, row in enumerate(control):
            c = Control(*row.tolist())
            assert c.accepted <= self.staged
            assert c.policy != FULL or c.committed + c.accepted <= c.budget
            cache = Cache(*(self.buffers[f"{name}.{layer}"] for name in ("key", "value", "position", "score")))
            held = commit(cache, row)
            staged = slice(c.budget, c.budget + len(ids))
            cache.key[:, staged] = ids[None, :, None]
            cache.value[:, staged] = positions[None, :, None]
            cache.position[:, staged] = positions
            cache.score[:, staged] = 1
            slots = np.r_[0:held, staged]
            if c.planes:
                liked = np.isin(cache.key[:, slots, 0].astype(int), list(self.liked))
                cache.score[:, slots, ATTENTION] += c.counted * liked
        self.staged = len(ids)
        assert (cache.key[:, slots, 0] == cache.key[0, slots, -1]).all()
        self.seen = sorted(zip(cache.position[1, slots].tolist(), cache.key[1, slots, 0].astype(int), strict=True))
        assert [position for position, _ in self.seen][-len(ids) :] == positions.tolist()
        assert c.policy != FULL or [position for position, _ in self.seen] == list(range(int(positions[-1]) + 1))
        self.runs.append((ids.tolist(), positions.tolist(), rows.tolist(), control[-1].tolist()))
        logits = np.zeros((len(rows), self.vocabulary), np.float32)
        if self.second is not None:
            logits[:, self.second] = 3.0
        for i, row in enumerate(rows):
            logits[i, self.following(int(ids[row]), int(positions[row]))] = 5.0
        return logits

    def read_slots(self, name: str, slots: NDArray[np.int64]) -> NDArray[Any]:
        return np.take(self.buffers[name], slots, axis=1)

    def write_slots(self, name: str, slots: NDArray[np.int64], values: NDArray[Any]) -> None:
        self.buffers[name][:, slots] = values
        self.staged = self.staging  # whoever restored them says how many are accepted


def make_session(
    backend: FakeBackend | None = None,
    kv: str = "full",
    template: str | None = None,
    policy: KVPolicy | None = None,
    kv_facts: dict[str, Any] | None = None,
    **changes: Any,
) -> tuple[Session, FakeBackend]:
    """A session of the tiny manifest over a fake backend, in runs of 8 tokens; policy: instead of what `kv` says.
    kv_facts: "kv" of the manifest."""
    manifest = parse({**deepcopy(DATA), "files": FILES, "kv": kv_facts or DATA["kv"], **changes})
    backend = backend or FakeBackend(8)
    policy = policy or parse_kv(kv, manifest.model.context)
    backend.allocate(cache_layout(manifest, policy, backend.staging))
    chat = Chat(template) if template else None
    return Session(manifest, byte_tokenizer(), backend, policy, backend.staging, lambda: chat), backend
