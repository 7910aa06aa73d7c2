"""Eviction by score: every policy, budget, chunking and GQA ratio against the reference; the rules by themselves."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from edgellm.kernels.attention_reference import Cache, commit, importance, rotate
from edgellm.kernels.control import ATTENTION, FULL, HEADS, NORM, SCORE, WINDOW, Control, control_of
from edgellm.kernels.kv_rows import to_rows
from tests.kernels.test_attention import Layer

POLICIES = {
    "vatp": Control(0, 0, 0, 0, sinks=2, policy=SCORE, recent=3, norm=1),
    "vatp-window": Control(0, 0, 0, 0, sinks=2, policy=SCORE, recent=3, norm=1, queries=5),
    "h2o": Control(0, 0, 0, 0, policy=SCORE, recent=4),
    "h2o with sinks": Control(0, 0, 0, 0, sinks=2, policy=SCORE, recent=4),
    "a2sf": Control(0, 0, 0, 0, policy=SCORE, forget=900_000),
    "tova": Control(0, 0, 0, 0, policy=SCORE, forget=0),
    "all at once": Control(0, 0, 0, 0, 1, SCORE, 2, forget=800_000, queries=3, anchor=2, norm=1),
    "window": Control(0, 0, 0, 0, sinks=2, policy=WINDOW),
    "full": Control(0, 0, 0, 0, policy=FULL),
}
policies = st.sampled_from(list(POLICIES.values()))


def fed(layer: Layer, policy: Control, budget: int, chunks: list[int], rejected: int = 0) -> list[Control]:
    """Feed chunks, each followed by `rejected` tokens that are not accepted; the controls that were used."""
    controls, committed, accepted, position = [], 0, 0, 0
    for steps in chunks:
        control = policy._replace(
            committed=committed, accepted=accepted, staged=budget, budget=budget, counted=steps if policy.planes else 0
        )
        got, expected = layer.both(layer.inputs(steps + rejected, position), control)
        near = 2e-2 if layer.bits == 8 else 5e-3  # see test_attention
        assert np.abs(got - expected).max() < near * max(1, np.abs(expected).max())
        controls.append(control)
        committed, accepted, position = min(budget, committed + accepted), steps, position + steps
    return controls


@settings(max_examples=80, deadline=None)
@given(
    policy=policies, heads=st.integers(0, len(HEADS) - 1), kv_heads=st.integers(1, 3), ratio=st.integers(1, 4),
    budget=st.integers(8, 40), chunks=st.lists(st.integers(1, 12), min_size=1, max_size=8), rejected=st.integers(0, 3),
    near=st.sampled_from([0, 7]), bits=st.sampled_from([16, 8]), seed=st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_against_the_reference(
    isa: str, policy: Control, heads: int, kv_heads: int, ratio: int, budget: int, chunks: list[int], rejected: int,
    near: int, bits: int, seed: int,
) -> None:  # fmt: skip
    assume(policy.policy != FULL or sum(chunks) <= budget)
    rng = np.random.default_rng(seed)
    layer = Layer(kv_heads * ratio, kv_heads, 16, budget + 15, rng, window=near, planes=policy.planes, bits=bits)
    fed(layer, policy._replace(heads=heads), budget, chunks, rejected)


@pytest.mark.parametrize("bits", [16, 8])
@pytest.mark.parametrize("heads", range(len(HEADS)))
@pytest.mark.parametrize("ratio", [1, 9])
def test_long_caches_and_prompts(isa: str, heads: int, ratio: int, bits: int) -> None:
    """Several segments, many rows, and tasks that share a group."""
    layer = Layer(ratio, 1, 32, 1300 + 70, np.random.default_rng(0), planes=3, bits=bits)
    layer.cache.position[0, :1300] = np.arange(1300)
    layer.cache.key[:] = to_rows(layer.rng.normal(size=(1, 1370, 32)).astype(np.float32), layer.cache.key.dtype)
    for committed, accepted, steps, at in ((1300, 0, 1, 1300), (1300, 1, 70, 1301), (1300, 70, 1, 1371)):
        control = POLICIES["vatp-window"]._replace(
            committed=committed, accepted=accepted, staged=1300, budget=1300, counted=steps, heads=heads, queries=40
        )
        got, expected = layer.both(layer.inputs(steps, at), control)
        np.testing.assert_allclose(got, expected, atol=5e-3)


def random_cache(rng: np.random.Generator, policy: Control, tokens: int, budget: int, accepted: int) -> Cache:
    """`tokens` of random scores and distinct positions, the last `accepted` of them staged and the newest."""
    cache = Cache.empty(2, budget + accepted, 4, 3)
    committed = min(tokens, budget)
    for head in range(2):
        kept = np.sort(rng.choice(3 * tokens, committed, replace=False))
        kept[: policy.sinks] = range(policy.sinks)
        cache.position[head, :committed] = rng.permutation(np.sort(kept)) if committed == budget else np.sort(kept)
        cache.position[head, budget:] = 3 * tokens + np.arange(accepted)
    cache.score[:] = rng.integers(0, 4, cache.score.shape)  # many ties
    cache.key[:] = rng.normal(size=cache.key.shape)
    return cache


@settings(max_examples=60, deadline=None)
@given(policy=policies, budget=st.integers(8, 30), accepted=st.integers(1, 40), seed=st.integers(0, 2**32 - 1))
def test_the_kept_set_is_exactly_the_top_scored(policy: Control, budget: int, accepted: int, seed: int) -> None:
    assume(policy.policy != FULL)
    rng = np.random.default_rng(seed)
    before = random_cache(rng, policy, budget, budget, accepted)
    control = policy._replace(committed=budget, accepted=accepted, staged=budget, budget=budget)
    after = Cache(*(buffer.copy() for buffer in vars(before).values()))
    assert commit(after, np.array(control)) == budget
    for head in range(2):
        rank = dict(zip(before.position[head].tolist(), importance(before, control, head).tolist(), strict=True))
        kept = set(after.position[head, :budget].tolist())
        gone = set(rank) - kept
        newest = {p for p in rank if p > max(rank) - policy.recent}
        assert len(kept) == budget
        assert kept >= {p for p in rank if p < policy.sinks} | newest
        open_to = kept - newest - set(range(policy.sinks))
        assert not open_to or not gone or max((rank[p], p) for p in gone) < min((rank[p], p) for p in open_to)
        for slot in range(budget):  # what stays is what it was, and only what came moved
            was = int(np.flatnonzero(before.position[head] == after.position[head, slot])[0])
            assert was == slot or was >= budget
            np.testing.assert_array_equal(after.key[head, slot], before.key[head, was])
            np.testing.assert_array_equal(after.score[head, slot], before.score[head, was])


@settings(max_examples=30, deadline=None)
@given(policy=policies, chunks=st.lists(st.integers(1, 9), min_size=3, max_size=6), seed=st.integers(0, 2**32 - 1))
def test_dropped_equals_masked(policy: Control, chunks: list[int], seed: int) -> None:
    """A cache that holds every token and masks what another one evicted gives the same attention."""
    assume(policy.policy != FULL)
    budget, rng = 8, np.random.default_rng(seed)
    pruned = Layer(4, 2, 16, budget + 9, rng, planes=policy.planes)
    everything = Cache.empty(2, sum(chunks), 16)
    committed = accepted = position = 0
    for steps in chunks:
        inputs = pruned.inputs(steps, position)
        control = policy._replace(
            committed=committed, accepted=accepted, staged=budget, budget=budget, counted=steps if policy.planes else 0
        )
        got, _ = pruned.both(inputs, control)
        committed, accepted = min(budget, committed + accepted), steps
        own = slice(position, position + steps)  # every token lies at its position
        everything.key[:, own] = pruned.cache.key[:, budget : budget + steps]
        everything.value[:, own] = pruned.cache.value[:, budget : budget + steps]
        np.testing.assert_allclose(got, masked(pruned, everything, inputs, committed), atol=2e-3)
        position += steps


def masked(pruned: Layer, everything: Cache, inputs: list[np.ndarray], committed: int) -> np.ndarray:
    """Attention over all positions, those that `pruned` no longer holds at minus infinity: [T, heads * head_dim]."""
    qkv, cos, sin, positions = inputs
    alone = Cache.empty(pruned.kv_heads, len(qkv), pruned.head_dim)
    y = np.empty((len(qkv), pruned.heads, pruned.head_dim), np.float32)
    queries = queries_of(pruned, qkv, cos, sin, alone)
    for t, position in enumerate(positions):
        for head in range(pruned.heads):
            kv = head // (pruned.heads // pruned.kv_heads)
            held = {*pruned.cache.position[kv, :committed].tolist(), *range(positions[0], position + 1)}
            logits = everything.key[kv].astype(np.float32) @ queries[t, head] * pruned.head_dim**-0.5
            logits[[p not in held for p in range(len(logits))]] = -np.inf
            weights = np.exp(logits - logits.max())
            y[t, head] = weights / weights.sum() @ everything.value[kv].astype(np.float32)
    return y.reshape(len(qkv), -1)


def queries_of(layer: Layer, qkv: np.ndarray, cos: np.ndarray, sin: np.ndarray, cache: Cache) -> np.ndarray:
    return rotate(qkv.reshape(len(qkv), -1, layer.head_dim)[:, : layer.heads], cos, sin)


@pytest.mark.parametrize("name", POLICIES)
def test_nothing_is_pruned_within_the_budget(name: str) -> None:
    outputs = []
    for policy in (POLICIES["full"], POLICIES[name]):
        layer = Layer(4, 2, 16, 30 + 9, np.random.default_rng(1), planes=policy.planes)
        fed(layer, policy, 30, [9, 1, 9, 1, 9])
        outputs.append((layer.cache.key[:, :29], layer.cache.position[:, :29]))
    np.testing.assert_array_equal(outputs[0][0], outputs[1][0])
    np.testing.assert_array_equal(outputs[0][1], outputs[1][1])


@pytest.mark.parametrize("name", POLICIES)
def test_rejected_drafts_leave_no_trace(name: str) -> None:
    """Of a run of five the first token is certain and counts; the next run accepts it alone."""
    policy = POLICIES[name]
    layers = [Layer(4, 2, 16, 40, np.random.default_rng(2), planes=policy.planes) for _ in "ab"]
    budget = 30 if policy.policy == FULL else 10
    inputs = [layers[0].inputs(5, start) for start in (0, 5, 6, 7)]
    runs: list[list[np.ndarray]] = []
    for layer in layers:
        layer.both(inputs[0], policy._replace(staged=budget, budget=budget, counted=5 if policy.planes else 0))
    for layer, tokens in zip(layers, (5, 1), strict=True):
        runs.append([])
        committed, accepted = 0, 5
        for later in inputs[1:]:
            control = policy._replace(
                committed=committed, accepted=accepted, staged=budget, budget=budget, counted=1 if policy.planes else 0
            )
            runs[-1].append(layer.both([x[:tokens] for x in later], control)[0][:1])
            committed, accepted = min(budget, committed + accepted), 1
    for one, other in zip(runs[0], runs[1], strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    for buffer in ("key", "value", "position", "score"):
        one, other = (getattr(layer.cache, buffer)[:, : budget + 1] for layer in layers)
        np.testing.assert_allclose(one.astype(np.float32), other.astype(np.float32), atol=1e-5)


def test_chunks_leave_the_scores_of_one_run() -> None:
    """Before anything is evicted, scores do not depend on where runs end; forgetting and windows included."""
    for policy in POLICIES.values():
        scores = []
        for chunks in ([12], [1] * 12, [5, 4, 3]):
            layer = Layer(4, 2, 16, 32, np.random.default_rng(3), planes=policy.planes)
            inputs, at, before = layer.inputs(12, 0), 0, 0
            for steps in chunks:
                counted = steps if policy.planes else 0
                control = policy._replace(staged=20, budget=20, counted=counted)
                control = control._replace(committed=at - before, accepted=before)
                layer.both([x[at : at + steps] for x in inputs], control)
                at, before = at + steps, steps
            order = [layer.cache.score[:, slot] for slot in range(at - before)]
            order += [layer.cache.score[:, 20 + slot] for slot in range(before)]
            scores.append(np.stack(order))
        np.testing.assert_allclose(scores[1], scores[0], atol=1e-5)
        np.testing.assert_allclose(scores[2], scores[0], atol=1e-5)


def test_scores_are_the_papers() -> None:
    """H2O's column sums, VATP's norm, A2SF's forgetting, TOVA's last query, Scissorhands' last queries, by hand."""
    steps, paid = 10, {}
    for name, policy in POLICIES.items():
        layer = Layer(2, 1, 16, 32, np.random.default_rng(5), planes=3)
        layer.both(layer.inputs(steps, 0), policy._replace(staged=16, budget=16, counted=steps if policy.planes else 0))
        paid[name] = layer.cache.score[0, 16 : 16 + steps]
    h2o = paid["h2o"][:, ATTENTION]
    assert h2o.sum() == pytest.approx(2 * steps, rel=1e-3)  # two query heads, each row sums to 1
    np.testing.assert_allclose(paid["vatp"][:, ATTENTION], h2o)
    value = layer.cache.value[0, 16 : 16 + steps].astype(np.float32)
    np.testing.assert_allclose(paid["vatp"][:, NORM], np.abs(value).sum(axis=1), rtol=1e-5)
    assert paid["tova"][:, ATTENTION].sum() == pytest.approx(2, rel=1e-3)
    assert paid["a2sf"][:, ATTENTION].sum() == pytest.approx(2 * sum(0.9**t for t in range(steps)), rel=1e-3)
    window = paid["vatp-window"]  # ten queries are two windows of five: the open one is empty
    assert window[:, ATTENTION].sum() == 0
    assert window[:, 2].sum() == pytest.approx(2 * 5, rel=1e-3)


def test_a_whole_prompt_is_pruned_to_a_smaller_budget() -> None:
    """The budget may shrink from one run to the next: 30 tokens become the 10 that count most."""
    policy = POLICIES["vatp"]
    layer = Layer(4, 2, 16, 40, np.random.default_rng(6), planes=2)
    for start in (0, 10, 20):
        accepted, committed = (10, start - 10) if start else (0, 0)
        control = policy._replace(committed=committed, accepted=accepted, staged=30, budget=30, counted=10)
        layer.both(layer.inputs(10, start), control)
    control = policy._replace(committed=20, accepted=10, staged=30, budget=10, counted=1)
    both = np.concatenate([layer.cache.score[:, :20], layer.cache.score[:, 30:40]], axis=1)
    layer.both(layer.inputs(1, 30), control)
    for head in range(2):
        rank = both[head, :, ATTENTION] * both[head, :, NORM]
        rank[:2] = rank[27:] = np.inf
        assert set(layer.cache.position[head, :10].tolist()) == set(np.argsort(rank)[-10:].tolist())
        assert layer.cache.position[head, 10] == 30


def test_not_a_number_goes_first() -> None:
    layer = Layer(2, 1, 16, 12, np.random.default_rng(7), planes=1)
    policy = POLICIES["tova"]._replace(staged=8, budget=8)
    layer.both(layer.inputs(4, 0), policy._replace(counted=4))
    layer.both(layer.inputs(4, 4), policy._replace(accepted=4, counted=4))
    layer.cache.score[0, 2] = np.nan
    layer.both(layer.inputs(1, 8), policy._replace(committed=4, accepted=4, counted=1))
    layer.cache.score[0, 2] = np.nan
    layer.both(layer.inputs(1, 9), policy._replace(committed=8, accepted=1, counted=1))
    assert 2 not in layer.cache.position[0, :8]


def test_control_is_one_row_a_layer() -> None:
    rows = control_of([Control(1, 2, 3, 4), Control(5, 6, 7, 8, norm=1)])
    assert rows.shape == (2, len(Control._fields))
    assert Control(*rows[1].tolist()) == Control(5, 6, 7, 8, norm=1)
    assert [POLICIES[name].planes for name in ("full", "window", "h2o", "vatp", "vatp-window")] == [0, 0, 1, 2, 3]
