"""A standard graph behind a session: what follows is arithmetic over the whole cache, so a wrong token in it shows."""

from __future__ import annotations

from copy import deepcopy
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgellm.runtime import load, loading
from edgellm.runtime.errors import BundleError, ContextError, PromptCacheError, UsageError
from edgellm.runtime.manifest import dump, file_facts, parse, seal
from edgellm.runtime.session import Session
from tests.runtime.fakes import CHATML, DATA, VOCABULARY, byte_tokenizer

MODEL = {**DATA["model"], "architecture": "gpt_neox"}
KEYS = 2, 16  # heads, head_dim, as in DATA


def standard_graph(takes_positions: bool = True, vocabulary: int = VOCABULARY, mask: bool = True) -> bytes:
    """logits[t, v] = -(v - f(t))^2, f = (ids up to t, summed from the cache + position of t) mod vocabulary.

    A mask of another length than the cache spoils f. value.L is key.L + 1, layer 1's keys are layer 0's + 2.
    """
    onnx = pytest.importorskip("onnx")
    h, t = onnx.helper, onnx.TensorProto
    value, node, of = h.make_tensor_value_info, h.make_node, onnx.numpy_helper.from_array
    inputs = [value("input_ids", t.INT64, [1, "T"]), value("attention_mask", t.INT64, [1, "P+T"])]
    inputs += [value("position_ids", t.INT64, [1, "T"])] if takes_positions else []
    outputs = [value("logits", t.FLOAT, [1, "T", vocabulary])]
    nodes = [
        node("Cast", ["input_ids"], ["float_ids"], to=t.FLOAT),
        node("Unsqueeze", ["float_ids", "axes13"], ["column"]),  # [1, 1, T, 1]
        node("Expand", ["column", "wide"], ["wide_ids"]),
    ]
    for layer in range(2):
        for kind, more in (("key", 2 * layer), ("value", 2 * layer + 1)):
            name = f"past_key_values.{layer}.{kind}"
            inputs.append(value(name, t.FLOAT, [1, KEYS[0], "P", KEYS[1]]))
            outputs.append(value(f"present.{layer}.{kind}", t.FLOAT, [1, KEYS[0], "P+T", KEYS[1]]))
            nodes.append(node("Add", ["wide_ids", f"c{more}"], [f"new.{layer}.{kind}"]))
            nodes.append(node("Concat", [name, f"new.{layer}.{kind}"], [f"present.{layer}.{kind}"], axis=2))
    nodes += [
        node("Sub", ["present.1.value", "c3"], ["seen"]),
        node("CumSum", ["seen", "two"], ["sums"]),
        node("Shape", ["input_ids"], ["t"], start=1),
        node("Neg", ["t"], ["minus_t"]),
        node("Slice", ["sums", "minus_t", "far", "axis2"], ["mine"]),
        node("Slice", ["mine", "zero", "one", "axis1"], ["first_head"]),
        node("Slice", ["first_head", "zero", "one", "axis3"], ["summed"]),  # [1, 1, T, 1]
        node("Squeeze", ["summed", "axis1"], ["rows"]),  # [1, T, 1]
        node("Shape", ["present.0.key"], ["held"], start=2, end=3),
        node("Shape", ["attention_mask"], ["masked"], start=1),
        node("Sub", ["held", "masked"], ["off"]),
        node("Cast", ["off"], ["off.float"], to=t.FLOAT),
        node("Add", ["rows", "off.float"], ["checked"]),
    ]
    last = "checked"
    if takes_positions:
        nodes += [
            node("Cast", ["position_ids"], ["places"], to=t.FLOAT),
            node("Unsqueeze", ["places", "axis2"], ["place"]),
            node("Add", ["checked", "place"], ["placed"]),
        ]
        last = "placed"
    nodes += [
        node("Mod", [last, "size"], ["following"], fmod=1),
        node("Sub", ["following", "all"], ["distance"]),
        node("Mul", ["distance", "distance"], ["squared"]),
        node("Neg", ["squared"], ["logits"]),
    ]
    constants = [of(np.array(n, np.float32), f"c{n}") for n in range(4)]
    constants += [of(np.array([n], np.int64), f"axis{n}") for n in (1, 2, 3)]
    constants += [
        of(np.array([1, 3], np.int64), "axes13"), of(np.array([1, *KEYS[:1], 1, KEYS[1]], np.int64), "wide"),
        of(np.array(2, np.int64), "two"), of(np.array([2**31], np.int64), "far"), of(np.array([0], np.int64), "zero"),
        of(np.array([1], np.int64), "one"), of(np.array(vocabulary, np.float32), "size"),
        of(np.arange(vocabulary, dtype=np.float32), "all"),
    ]  # fmt: skip
    if not mask:
        inputs = [entry for entry in inputs if entry.name != "attention_mask"]
        constants.append(of(np.ones((1, 4), np.int64), "attention_mask"))
    model = h.make_model(
        h.make_graph(nodes, "standard", inputs, outputs, constants), opset_imports=[h.make_opsetid("", 18)]
    )
    model.ir_version = 8
    return bytes(model.SerializeToString())


def write_bundle(folder: Path, graph: bytes | None = None, **changes: Any) -> Path:
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(graph or standard_graph())
    (folder / "model.onnx.data").write_bytes(bytes(256))
    (folder / "chat_template.jinja").write_text(CHATML)
    byte_tokenizer().save(str(folder / "tokenizer.json"))
    files = {path.name: vars(file_facts(path)) for path in sorted(folder.iterdir())}
    facts = {**deepcopy(DATA), "graph": "optimum", "model": MODEL, "matrices": [], **changes, "files": files}
    (folder / "edgellm.json").write_bytes(dump(seal(facts)))
    return folder


def expected(ids: list[int], new: int, takes_positions: bool = True) -> list[int]:
    text = list(ids)
    for _ in range(new):
        text.append((sum(text) + (len(text) - 1) * takes_positions) % VOCABULARY)
    return text[len(ids) :]


def continued(session: Session, ids: list[int], new: int, keep: bool = False) -> list[int]:
    logits, found = session.extend(ids, keep=keep), []
    for _ in range(new):
        found.append(int(logits.argmax()))
        logits = session.step(found[-1])
    return found


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Session:
    monkeypatch.setattr(loading, "CHUNK", 8)
    return load(write_bundle(tmp_path / "bundle"), threads=1)


@pytest.mark.parametrize("length", [1, 7, 8, 9, 24, 40])
def test_it_continues_prompts_of_any_length_in_chunks(session: Session, length: int) -> None:
    ids = [7 * i % 256 for i in range(length)]
    assert continued(session, ids, 8) == expected(ids, 8)


def test_a_graph_without_positions_runs(tmp_path: Path) -> None:
    session = load(write_bundle(tmp_path / "bundle", standard_graph(takes_positions=False)), threads=1)
    assert continued(session, [3, 4, 5], 6) == expected([3, 4, 5], 6, takes_positions=False)


def test_logits_of_all_rows_are_those_of_each(session: Session) -> None:
    ids = [11, 22, 33, 44, 55, 66, 77, 88, 99, 110, 121]
    rows = session.logits(ids).argmax(axis=1).tolist()
    assert rows == [expected(ids[: i + 1], 1)[0] for i in range(len(ids))]


@pytest.mark.parametrize("common", [1, 5, 12, 16, 17, 20])
def test_the_cache_is_cut_back_to_what_is_common(session: Session, common: int) -> None:
    first = [5 * i % 256 for i in range(18)]
    made = [*first, *continued(session, first, 4)]
    second = [*made[:common], 201, 202]
    assert continued(session, second, 5, keep=True) == expected(second, 5)
    assert session.reused_tokens == common


def test_the_cache_grows_with_the_sequence_and_is_forgotten(session: Session) -> None:
    sizes = []
    for ids in ([1, 2, 3], [1, 2, 3, 4, 5, 6]):
        session.extend(ids)
        sizes.append(session.kv_bytes)
    assert sizes == [2 * 2 * 2 * 16 * 4 * n for n in (3, 6)]  # layers, key and value, heads, head_dim, float32


@pytest.mark.parametrize(("held", "kept"), [(6, 6), (19, 19), (19, 4)])
def test_a_saved_cache_is_taken_up_exactly(session: Session, tmp_path: Path, held: int, kept: int) -> None:
    ids = [3 * i % 256 for i in range(held)]
    session.extend(ids)
    session.save_cache(tmp_path / "cache")
    session.extend([9, 9, 9])
    assert session.restore_cache(tmp_path / "cache") == held
    following = [*ids[:kept], 250]
    assert continued(session, following, 6, keep=True) == expected(following, 6)
    assert session.reused_tokens == kept


def test_a_cache_is_saved_behind_a_cut(session: Session, tmp_path: Path) -> None:
    made = [8, 9, 10, *continued(session, [8, 9, 10], 9)]
    session.extend([*made[:7], 77], keep=True)
    session.save_cache(tmp_path / "cache")
    session.reset()
    session.restore_cache(tmp_path / "cache")
    following = [*made[:7], 77, 78]
    assert continued(session, following, 3, keep=True) == expected(following, 3)
    assert session.reused_tokens == 8


def test_a_cache_of_another_bundle_is_refused(session: Session, tmp_path: Path) -> None:
    session.extend([1, 2, 3])
    session.save_cache(tmp_path / "cache")
    other = load(write_bundle(tmp_path / "other", standard_graph(takes_positions=False)), threads=1)
    with pytest.raises(PromptCacheError, match="another model"):
        other.restore_cache(tmp_path / "cache")


def test_text_is_streamed_and_a_chat_turn_reuses_the_cache(session: Session) -> None:
    prompt = session.encode("ab")
    first = session.generate(prompt, 4, stop=())
    ids = [*prompt, *expected(prompt, 4)]
    assert first.new_tokens == 4
    second = session.generate([*ids, 65], 4, stop=(), keep=True)
    assert second.reused_tokens == len(ids) - 1  # the last token was drawn and not run yet
    assert second.text == session.decode(expected([*ids, 65], 4))


def test_eviction_is_refused_and_a_smaller_budget_is_not(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "bundle")
    with pytest.raises(UsageError, match="KV policy window:32: this bundle's graph is Optimum's, which evicts nothing"):
        load(folder, kv="window:32")
    small = load(folder, kv="full:8", threads=1)
    assert continued(small, [1, 2, 3], 5) == expected([1, 2, 3], 5)
    with pytest.raises(ContextError, match=r"9 tokens, 8 of them .* the KV cache \(full:8\) holds 8"):
        small.step(1)


def test_a_prompt_beyond_the_context_is_refused_before_anything_runs(session: Session) -> None:
    with pytest.raises(ContextError, match="65 tokens; the model's context holds 64"):
        session.stream([1] * 65)


@pytest.mark.parametrize(
    ("graph", "model", "message"),
    [
        (dict(), {"layers": 3}, r"lacks past_key_values\.2\.key"),
        (dict(), {"layers": 1}, r"asks for an unknown input past_key_values\.1\.key"),
        (dict(), {"head_dim": 8}, r"past_key_values\.0\.key is tensor\(float\) .*; expected float32 with \[2, 8\]"),
        (dict(), {"kv_heads": 4}, r"expected float32 with \[4, 16\]"),
        (dict(vocabulary=VOCABULARY + 1), {}, rf"logits is .*; expected float32 with \[{VOCABULARY}\]"),
        (dict(mask=False), {}, "lacks attention_mask"),
    ],
)
def test_a_graph_that_does_not_fit_the_manifest_is_told_when_loaded(
    tmp_path: Path, graph: dict[str, Any], model: dict[str, Any], message: str
) -> None:
    folder = write_bundle(tmp_path / "bundle", standard_graph(**graph), model={**MODEL, **model})
    with pytest.raises(BundleError, match=message):
        load(folder)


def test_a_graph_that_fails_resets_the_sequence(session: Session) -> None:
    session.extend([1, 2, 3])
    backend: Any = session._cache.backend
    backend._past["past_key_values.0.key"] = backend._value(np.zeros((1, 3, 3, 16), np.float32))
    with pytest.raises(BundleError, match=r"model\.onnx failed to run"):
        session.step(4)
    assert session.tokens == []
    assert continued(session, [1, 2, 3], 4) == expected([1, 2, 3], 4)


def test_the_fake_tells_a_wrong_cache_apart() -> None:
    assert len({tuple(expected(ids, 3)) for ids in ([1, 2, 3], [1, 3], [2, 3], [3], [1, 2, 2, 3])}) == 5
    assert all(one != other for one, other in pairwise(expected([1, 2, 3], 9)))


def test_an_unknown_kind_of_graph_is_refused_and_none_is_ours() -> None:
    with pytest.raises(BundleError, match="\"graph\" is 'genai'; this edgellm runs edgellm and optimum"):
        parse({**DATA, "files": {}, "graph": "genai"})
    assert parse({**DATA, "files": {}}).graph == "edgellm"
