"""A loaded bundle and one sequence: prefill, decode, stream."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from edgellm.runtime.backend import Backend, Updatable
from edgellm.runtime.cache import cache_layout
from edgellm.runtime.errors import BundleError, ContextError, UsageError
from edgellm.runtime.generation import Generation, Result
from edgellm.runtime.kv_cache import CacheCopy, KVCache
from edgellm.runtime.kv_policy import KVPolicy
from edgellm.runtime.sampling import Sampler, Sampling
from edgellm.runtime.schema import Manifest
from edgellm.runtime.tokenizer import TextTokenizer

if TYPE_CHECKING:  # jinja2 and safetensors are slow to import, and few sessions need them
    from edgellm.runtime.adapter import Adapter
    from edgellm.runtime.chat import Chat, Message

Progress = Callable[[int, int], None]  # (tokens done, tokens in all)
LOGITS_AT_ONCE = 1 << 23  # of all rows: a chunk times a vocabulary of 262k would be hundreds of megabytes

CAPPED = 1 - 1e-6  # of the cap: beyond, float32 cannot tell logits apart
FIRST = np.zeros(1, np.int64)  # the row of a run of one token


@dataclass(frozen=True)
class Snapshot:
    """A session's sequence [n] and its cache, in memory, and the adapter that made it."""

    tokens: list[int]
    cache: CacheCopy
    adapter: Adapter | None = None


class Session:
    """One sequence over a backend. Not for concurrent use: a step changes the cache in place.

    tokens: ids [n] fed so far; reused_tokens: how many of them the last `extend` found in the cache.
    staging: the most tokens of one run. read_chat: reads the template, when a conversation first asks for it.
    """

    def __init__(
        self,
        manifest: Manifest,
        tokenizer: TextTokenizer,
        backend: Backend,
        policy: KVPolicy,
        staging: int,
        read_chat: Callable[[], Chat | None] = lambda: None,
    ) -> None:
        self.manifest = manifest
        self.tokenizer = tokenizer
        self.policy = policy
        self.tokens: list[int] = []
        self.reused_tokens = 0
        self.generation: Generation | None = None  # the one that may decode
        self._cache = KVCache(backend, cache_layout(manifest, policy, staging))
        self._read_chat = read_chat
        self._adapter: Adapter | None = None
        self._softcap = manifest.adapt.softcap if manifest.adapt else 0.0

    @cached_property
    def chat(self) -> Chat | None:
        """The chat template, or None. Raises BundleError when it is damaged or renders the frozen samples otherwise."""
        return self._read_chat()

    @property
    def staging(self) -> int:
        """The most tokens of one run."""
        return self._cache.staging

    @property
    def kv_bytes(self) -> int:
        """Bytes of the cache buffers; of a prompt that was read whole, until the next run."""
        return self._cache.backend.kv_bytes

    @property
    def kv_evictions(self) -> int:
        """Tokens of the sequence that the cache holds no more: the mean over layers, rounded."""
        return self._cache.evictions

    @property
    def kv_coverage(self) -> float | None:
        """The share of attention paid so far that went to tokens still held (KVCache.coverage); reads all scores."""
        return self._cache.coverage(self.manifest.model.heads // self.manifest.model.kv_heads)

    def kv_importance(self, layer: int) -> NDArray[np.float32]:
        """What the policy ranks a layer's tokens by (KVCache.importance)."""
        return self._cache.importance(layer)

    @cached_property
    def limit(self) -> int:
        """Tokens of prompt and continuation: the context, or less where a full cache has a smaller budget.

        Eviction does not lift the context: positions are absolute, and the model has seen none beyond it.
        """
        return self.policy.budget if self.policy.name == "full" else self.manifest.model.context

    def encode(self, text: str) -> list[int]:
        """Ids of plain text, after the beginning-of-sequence token if the model wants one."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        tokens = self.manifest.tokens
        if tokens.add_bos and tokens.bos is not None and ids[:1] != [tokens.bos]:
            ids.insert(0, tokens.bos)
        return ids

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """Ids of a conversation up to where the answer begins. Raises UsageError for a bundle without a template, and
        as `chat` does."""
        if self.chat is None:
            raise UsageError("this bundle has no chat template", "Use it without --chat: it continues plain text.")
        ids: list[int] = self.tokenizer.encode(self.chat.render(messages), add_special_tokens=False).ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, special tokens left out."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=True)

    def reset(self) -> None:
        """Forget the sequence; an adapter stays in use."""
        self.tokens = []
        self.reused_tokens = 0
        self.generation = None
        self._cache.reset()
        if self._adapter is not None and "key" in self._adapter.tensors:
            self._cache.plant(self._adapter.tensors["key"], self._adapter.tensors["value"])
            self.tokens = list(self._adapter.facts.tokens)

    @property
    def adapter(self) -> Adapter | None:
        """What changes the model's answers, if anything (edgellm.runtime.adapter)."""
        return self._adapter

    def use(self, adapter: Adapter | None) -> None:
        """Answer with an adapter from now on, or without one; the sequence is forgotten.

        Raises AdapterError for one that was made with another bundle, UsageError where the KV budget has no room for
        it or the backend cannot run it, BundleError for a damaged graph of LoRA's; the session goes on as it was then,
        but for its sequence.
        """
        if adapter is not None:
            adapter.check(self.manifest)
        before = self._adapter
        try:
            self._take(adapter)
        except (UsageError, BundleError):
            self._take(before)
            raise

    def first(self, tokens: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Keys and values of the sequence's first tokens, float32 [layers, kv_heads, tokens, head_dim] each.

        Raises UsageError where the sequence is shorter, or was evicted from.
        """
        if not 0 < tokens <= len(self.tokens) or self._cache.evictions:
            raise UsageError(f"the cache does not hold the first {tokens} tokens of the sequence")
        return self._cache.first(tokens)

    def prefill(
        self, ids: Sequence[int], rows: Literal["last", "all"] = "last", progress: Progress | None = None
    ) -> NDArray[np.float32]:
        """Append ids [T] in chunks; logits [V] of the last token, or [T, V] of all.

        Where the KV policy reads prompts whole, nothing is evicted before the run that comes next. Raises ContextError,
        before anything runs, when the sequence would pass `limit`; UsageError for no ids, or for ids outside the
        vocabulary.
        """
        parts = list(self.chunks(ids, rows, progress))
        if rows == "all":
            return np.concatenate(parts)
        last: NDArray[np.float32] = parts[-1][-1]
        return last

    def chunks(
        self, ids: Sequence[int], rows: Literal["last", "all"] = "all", progress: Progress | None = None
    ) -> Iterator[NDArray[np.float32]]:
        """`prefill` a chunk at a time, logits [rows of the chunk, V] each: [T, V] of a long text may not fit."""
        new = self._checked(ids)
        size = self._cache.staging
        if rows == "all":
            size = min(size, max(1, LOGITS_AT_ONCE // self.manifest.model.vocabulary))
        self._cache.make_room(len(new))
        try:
            for start in range(0, len(new), size):
                chunk = new[start : start + size]
                wanted = np.arange(len(chunk)) if rows == "all" else np.array([len(chunk) - 1])
                yield self._run(chunk, wanted)
                if progress:
                    progress(start + len(chunk), len(new))
        finally:
            self._cache.prune()

    def step(self, token: int) -> NDArray[np.float32]:
        """Append one token; logits [V] of what follows. Raises as `prefill` does."""
        logits: NDArray[np.float32] = self._run(self._checked([token]), FIRST)[0]
        return logits

    def logits(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Logits [T, V] of a fresh sequence, for evaluation."""
        self.reset()
        return self.prefill(ids, "all")

    def extend(self, ids: Sequence[int], keep: bool = False, progress: Progress | None = None) -> NDArray[np.float32]:
        """Logits [V] after ids [T]. With `keep`, what the cache holds of the beginning of ids is not run again.

        A cache with other tokens after the common beginning is cut back to it; one that evicted tokens may have to
        start over (Cursor.cut_back). The last id always runs: its logits are wanted. An adapter's prefix takes the
        place of its tokens where ids begin with them, and goes before ids where not. Raises as `prefill` does, and
        leaves the sequence as it was then.
        """
        planted = [] if self._adapter is None else self._adapter.facts.tokens
        ids = ids if shared(planted, ids[:-1]) == len(planted) else [*planted, *ids]
        self._check(ids, 0)
        self.generation = None  # one under way would go on from another sequence
        common = shared(self.tokens, ids[:-1]) if keep else len(planted)
        self.reused_tokens = self._cache.cut_back(common)
        del self.tokens[self.reused_tokens :]
        if self.reused_tokens < len(planted):
            self.reset()
            self.reused_tokens = len(planted)
        return self.prefill(ids[self.reused_tokens :], "last", progress)

    def save_cache(self, path: str | Path) -> None:
        """Write the sequence and its cache to a safetensors file: the slots in use, so far less than kv_bytes.

        Takes that much memory again while it writes. Raises UsageError for an empty sequence, EdgellmError where the
        file cannot be written.
        """
        if not self.tokens:
            raise UsageError("there is no sequence to save: nothing was prefilled")
        self._refuse_adapter("saved")
        self._cache.save(Path(path), self.manifest.weights_sha256, self.tokens)

    def restore_cache(self, path: str | Path) -> int:
        """Replace the sequence by that of a file from `save_cache`; returns its tokens. Then `keep` makes use of it.

        Raises PromptCacheError, with the sequence left as it was, for a file that is damaged, or of another model or
        KV policy.
        """
        self._refuse_adapter("restored")
        tokens = self._cache.restore(Path(path), self.manifest.weights_sha256)
        self.reused_tokens, self.generation = 0, None
        self.tokens = tokens
        return len(tokens)

    def snapshot(self) -> Snapshot:
        """The sequence and a copy of its cache."""
        return Snapshot(list(self.tokens), self._cache.copy(), self._adapter)

    def resume(self, snapshot: Snapshot, tokens: int | None = None) -> None:
        """Replace the sequence by one of this session's snapshots, or by its first `tokens` where nothing is evicted.
        Its policy comes back with it. Raises UsageError for one that was made with another adapter."""
        if snapshot.adapter is not self._adapter:
            raise UsageError("the snapshot was made with another adapter", "Use that one first, or make it again.")
        self._cache.paste(snapshot.cache)
        kept = len(snapshot.tokens) if tokens is None else self._cache.cut_back(tokens)
        self.tokens, self.reused_tokens, self.generation = snapshot.tokens[:kept], 0, None

    def follow(self, policy: KVPolicy) -> None:
        """From the next run on another policy evicts, by the scores that were counted so far; the buffers stay.

        `limit` and messages keep to the policy that the session was loaded with. Raises UsageError for a policy with a
        larger budget, or one that keeps more scores.
        """
        self._cache.follow(policy)

    def stream(
        self,
        prompt: str | Sequence[int],
        max_new_tokens: int = 256,
        sampling: Sampling | Sampler | None = None,
        stop: Collection[int] | None = None,
        keep: bool = False,
        progress: Progress | None = None,
    ) -> Generation:
        """Continue a prompt (text, or ids): iterate over pieces of text, then read `.result`.

        sampling: None is greedy; any callable logits [V] -> id will do. stop: ids that end the text, by default the
        bundle's. keep: see `extend`. Raises UsageError and ContextError now, not at the first piece.
        """
        if max_new_tokens < 1:
            raise UsageError(f"max_new_tokens is {max_new_tokens}; expected 1 or more")
        ids = self.encode(prompt) if isinstance(prompt, str) else [int(token) for token in prompt]
        bos = self.manifest.tokens.bos
        if not ids and bos is not None:
            ids = [bos]
        self._check(ids, 0)
        settings = Sampling() if sampling is None else sampling
        sampler = settings.sampler(ids) if isinstance(settings, Sampling) else settings
        stop = self.manifest.tokens.stop if stop is None else stop
        return Generation(self, ids, max_new_tokens, sampler, stop, keep, progress)

    def generate(
        self,
        prompt: str | Sequence[int],
        max_new_tokens: int = 256,
        sampling: Sampling | Sampler | None = None,
        stop: Collection[int] | None = None,
        keep: bool = False,
    ) -> Result:
        """`stream`, to the end."""
        generation = self.stream(prompt, max_new_tokens, sampling, stop, keep)
        for _ in generation:
            pass
        return generation.result

    def _take(self, adapter: Adapter | None) -> None:
        backend, inputs = self._cache.backend, None
        if adapter is not None and adapter.facts.carrier == "lora":
            from edgellm.runtime.low_rank import graph_inputs

            inputs = graph_inputs(adapter.tensors)
        if isinstance(backend, Updatable):
            backend.update(inputs)
        elif inputs is not None:
            raise UsageError("a LoRA adapter needs edgellm's own graph, on the CPU", "Leave --backend out.")
        self._adapter = adapter
        self.reset()

    def _refuse_adapter(self, done: str) -> None:
        if self._adapter is not None:  # a cache file does not say whose adapter made it
            raise UsageError(f"no cache is {done} while an adapter is in use", "Drop it first: session.use(None).")

    def _checked(self, ids: Sequence[int]) -> NDArray[np.int64]:
        self._check(ids, len(self.tokens))
        return np.asarray(ids, np.int64)

    def _check(self, ids: Sequence[int], before: int) -> None:
        if not len(ids):
            raise UsageError("the prompt is empty, and the model has no beginning-of-sequence token to start from")
        vocabulary = self.manifest.model.vocabulary
        wrong = next((token for token in ids if not 0 <= token < vocabulary), None)
        if wrong is not None:
            raise UsageError(f"token id {wrong} is outside the vocabulary of {vocabulary}")
        if before + len(ids) > self.limit:
            held = f", {before} of them already in the cache" if before else ""
            whole = self.limit == self.manifest.model.context
            whose = "the model's context" if whole else f"the KV cache ({self.policy})"
            raise ContextError(
                f"{before + len(ids)} tokens{held}; {whose} holds {self.limit}",
                "Shorten the prompt, or split it." if before == 0 else "Start a new sequence: /reset, or reset().",
            )

    def _run(self, ids: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.float32]:
        try:
            logits = self._cache.run(ids, rows)
        except BaseException:
            self.reset()  # some layers may have committed, others not: nothing to continue from
            raise
        self.tokens.extend(ids.tolist())
        if self._adapter is not None and "shift" in self._adapter.tensors:
            shift_logits(logits, self._adapter.tensors["shift"], self._softcap)
        return logits


def shift_logits(logits: NDArray[np.float32], shift: NDArray[np.float32], softcap: float) -> None:
    """Add [V] to rows of logits [R, V], in place; capped logits (softcap above 0) are uncapped for it."""
    if softcap:
        np.clip(logits, -softcap * CAPPED, softcap * CAPPED, out=logits)
        np.arctanh(np.divide(logits, softcap, out=logits), out=logits)
        logits *= softcap
    logits += shift
    if softcap:
        np.tanh(np.divide(logits, softcap, out=logits), out=logits)
        logits *= softcap


def shared(one: Sequence[int], other: Sequence[int]) -> int:
    """The length of the longest common beginning."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))
