"""Prompt cache files against a fake backend: what comes back, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from edgellm.runtime.errors import EdgellmError, PromptCacheError, UsageError
from edgellm.runtime.session import Session
from tests.runtime.fakes import DATA, FILES, FakeBackend, make_session

PROMPT = list(range(100, 120))


def saved(path: Path, kv: str = "full", prompt: list[int] = PROMPT) -> Session:
    session, _ = make_session(kv=kv)
    session.prefill(prompt)
    session.save_cache(path)
    return session


def test_only_the_slots_in_use_are_written(tmp_path: Path) -> None:
    path = tmp_path / "cache"
    saved(path)
    tensors = load_file(path)
    assert tensors["tokens"].tolist() == PROMPT
    assert {name: tensor.shape for name, tensor in tensors.items() if name.endswith(".1")} == {
        "key.1": (2, 20, 16), "value.1": (2, 20, 16), "position.1": (2, 20),
    }  # fmt: skip
    assert tensors["position.0"].tolist() == [list(range(20))] * 2
    metadata = safe_open(path, framework="np").metadata()
    assert (metadata["format"], metadata["version"]) == ("edgellm prompt cache", "2")
    facts = json.loads(metadata["facts"])
    assert (facts["policy"], facts["budgets"], facts["committed"], facts["staged"]) == (
        "full:64",
        [64] * 2,
        [16] * 2,
        4,
    )
    assert [path] == list(tmp_path.iterdir())


@pytest.mark.parametrize("kv", ["full", "window:40", "window:18", "window:10"])
def test_a_restored_session_goes_on_as_the_saved_one(tmp_path: Path, kv: str) -> None:
    path = tmp_path / "cache"
    session = saved(path, kv)
    other, backend = make_session(kv=kv)
    other.prefill([7] * 30)  # to be replaced
    assert other.restore_cache(str(path)) == 20
    assert other.tokens == PROMPT
    theirs = session._cache.backend
    assert isinstance(theirs, FakeBackend)
    for token in (1, 2, 3):
        session.step(token)
        other.step(token)
        assert backend.seen == theirs.seen
    assert backend.runs[-1][3] == theirs.runs[-1][3]


@pytest.mark.parametrize("kv", ["full", "window:40"])
@pytest.mark.parametrize("common", [0, 1, 13, 19, 20])
def test_the_longest_common_beginning_is_used(tmp_path: Path, kv: str, common: int) -> None:
    saved(tmp_path / "cache", kv)
    session, backend = make_session(kv=kv)
    session.restore_cache(tmp_path / "cache")
    ids = [*PROMPT[:common], 1, 2, 3]
    result = session.generate(ids, 1, keep=True)
    assert (result.reused_tokens, result.prompt_tokens) == (common, len(ids))
    assert backend.seen == list(enumerate(ids))


def test_a_full_cache_may_have_another_budget(tmp_path: Path) -> None:
    saved(tmp_path / "cache")
    session, backend = make_session(kv="full:20")
    session.restore_cache(tmp_path / "cache")
    session.extend([*PROMPT[:19], 5], keep=True)
    assert backend.seen == list(enumerate([*PROMPT[:19], 5]))
    with pytest.raises(PromptCacheError, match=r"holds 20 tokens; this session's cache \(full:19\) 19") as caught:
        make_session(kv="full:19")[0].restore_cache(tmp_path / "cache")
    assert "--kv full:64" in caught.value.hint


@pytest.mark.parametrize(("theirs", "ours"), [("full", "window:10"), ("window:10", "full"), ("window:10", "window:11")])
def test_another_policy_is_refused(tmp_path: Path, theirs: str, ours: str) -> None:
    saved(tmp_path / "cache", theirs)
    with pytest.raises(PromptCacheError, match=f"holds a cache of policy {theirs}.*session's is {ours}") as caught:
        make_session(kv=ours)[0].restore_cache(tmp_path / "cache")
    assert f"--kv {theirs}" in caught.value.hint


@pytest.mark.parametrize(("theirs", "ours"), [(16, 8), (8, 16)])
def test_another_width_is_refused(tmp_path: Path, theirs: int, ours: int) -> None:
    kv = [{**DATA["kv"], "bits": bits} for bits in (theirs, ours)]
    session, _ = make_session(kv_facts=kv[0])
    session.prefill(PROMPT)
    session.save_cache(tmp_path / "cache")
    make_session(kv_facts=kv[0])[0].restore_cache(tmp_path / "cache")
    with pytest.raises(PromptCacheError, match=f"keys and values of {theirs} bits; this bundle's cache has {ours}"):
        make_session(kv_facts=kv[1])[0].restore_cache(tmp_path / "cache")


@pytest.mark.parametrize("file", ["model.onnx", "model.onnx.data"])
def test_another_model_is_refused(tmp_path: Path, file: str) -> None:
    saved(tmp_path / "cache")
    other, _ = make_session(files={**FILES, file: {"bytes": 1, "sha256": "0" * 64}})
    with pytest.raises(PromptCacheError, match="another model") as caught:
        other.restore_cache(tmp_path / "cache")
    assert f"edgellm cache-prompt BUNDLE -p TEXT -o {tmp_path / 'cache'}" in caught.value.hint


def test_every_flip_and_every_cut_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "cache"
    saved(path)
    content = path.read_bytes()
    session, backend = make_session()
    session.prefill([1, 2, 3])
    rng = np.random.default_rng(0)
    header = 8 + int.from_bytes(content[:8], "little")
    flips = [*range(8), *rng.integers(8, header, 150), *rng.integers(header, len(content), 50)]
    damaged = []
    for place in flips:
        flipped = bytearray(content)
        flipped[place] ^= 1 << rng.integers(8)
        damaged.append(bytes(flipped))
    damaged += [content[:cut] for cut in (0, 7, 8, 100, header, len(content) - 1)]
    damaged.append(content + b"\0")
    for wrong in damaged:
        path.write_bytes(wrong)
        with pytest.raises(PromptCacheError, match=r"damaged|read as a prompt cache|no prompt cache|format version"):
            session.restore_cache(path)
    assert session.tokens == [1, 2, 3]
    session.step(4)
    assert backend.seen == [(0, 1), (1, 2), (2, 3), (3, 4)]


def test_what_is_no_prompt_cache_is_refused(tmp_path: Path) -> None:
    session, _ = make_session()
    with pytest.raises(PromptCacheError, match="there is no such file"):
        session.restore_cache(tmp_path / "none")
    with pytest.raises(PromptCacheError, match="cannot be read"):
        session.restore_cache(tmp_path)
    save_file({"weight": np.zeros(3, np.float32)}, tmp_path / "model.safetensors")
    with pytest.raises(PromptCacheError, match=r"model\.safetensors is no prompt cache"):
        session.restore_cache(tmp_path / "model.safetensors")
    save_file({}, tmp_path / "next", {"format": "edgellm prompt cache", "version": "3"})
    with pytest.raises(PromptCacheError, match="format version 3; this edgellm reads version 2"):
        session.restore_cache(tmp_path / "next")


def test_tensors_of_another_shape_are_refused_even_with_a_right_hash(tmp_path: Path) -> None:
    session, _ = make_session(model={**DATA["model"], "layers": 1})
    saved(tmp_path / "cache")
    with pytest.raises(PromptCacheError, match="do not fit the model"):
        session.restore_cache(tmp_path / "cache")


def test_saving_needs_a_sequence_and_a_folder(tmp_path: Path) -> None:
    session, _ = make_session()
    with pytest.raises(UsageError, match="no sequence"):
        session.save_cache(tmp_path / "cache")
    session.prefill([1])
    with pytest.raises(EdgellmError, match="cannot be written"):
        session.save_cache(tmp_path / "none" / "cache")
    (tmp_path / "folder" / "inside").mkdir(parents=True)
    with pytest.raises(EdgellmError, match="cannot be written"):
        session.save_cache(tmp_path / "folder")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    """A disk that fills up, as a limit on file sizes."""
    resource = pytest.importorskip("resource")
    path = tmp_path / "cache"
    session = saved(path)
    before = path.read_bytes()
    session.step(1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(EdgellmError, match="cannot be written"):
            session.save_cache(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
