"""`edgellm bench`: what it measures, in which order, and what it refuses."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result

from edgellm.kernels import read_bandwidth
from edgellm.runtime import benchmark
from edgellm.runtime.cache import CacheLayout
from edgellm.runtime.cli import main
from edgellm.runtime.kv_policy import parse_kv
from edgellm.runtime.roofline import kv_read_bytes, manifest_weight_bytes, weight_bytes
from tests.bundles import make_bundle
from tests.runtime.fakes import STOP, FakeBackend, make_session

CONTRACT = ["read_bandwidth_gb_s", "roofline_share", "load_s", "first_token_s", "peak_rss_bytes", "cases"]
CASE = ["prompt_tokens", "prefill_tokens_per_s", "decode_tokens_per_s", "kv_bytes"]


@pytest.fixture(autouse=True)
def small_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read_bandwidth, "MOST", 1 << 16)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeBackend:
    session, backend = make_session()
    __import__("edgellm.runtime.commands.bench")
    monkeypatch.setattr(sys.modules["edgellm.runtime.commands.bench"], "load", lambda *a, **k: session)
    return backend


def run(*args: object) -> Result:
    return CliRunner().invoke(main, ["bench", *map(str, args)])


def test_json_of_a_real_bundle(tiny_model: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    make_bundle(tiny_model, bundle, bits=4)
    done = run(bundle, "--prompt-tokens", "40,8", "--new-tokens", 3, "--runs", 1, "--threads", 1, "--json")
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)
    assert set(CONTRACT) <= set(facts)
    assert [case["prompt_tokens"] for case in facts["cases"]] == [40, 8]
    for case in facts["cases"]:
        assert list(case)[: len(CASE)] == CASE
        assert all(value > 0 for value in case.values())
    assert 0 < facts["load_s"] < facts["first_token_s"]
    rate = facts["cases"][1]["decode_tokens_per_s"] / (facts["read_bandwidth_gb_s"] * 1e9)
    assert facts["roofline_share"] == pytest.approx((facts["weight_bytes"] + facts["cases"][1]["kv_read_bytes"]) * rate)


def test_the_table_names_every_length(fake: FakeBackend) -> None:
    done = run("b", "--prompt-tokens", "5,20", "--new-tokens", 2, "--runs", 1)
    assert done.exit_code == 0
    assert [line.split()[0] for line in done.stdout.splitlines()[1:3]] == ["5", "20"]
    assert "of the read bandwidth" in done.stdout
    assert "medians of 1 runs" in done.stderr


def test_lengths_take_turns_and_nothing_ends_a_text(fake: FakeBackend) -> None:
    fake.following = lambda token, position: STOP  # type: ignore[method-assign]
    assert run("b", "--prompt-tokens", "5,8", "--new-tokens", 3, "--runs", 2, "--json").exit_code == 0
    prompts = [len(ids) for ids, positions, _, _ in fake.runs if positions[0] == 0]
    assert prompts == [5, 5, 8, 5, 8]  # the first is the way to the first token
    assert len(fake.runs) == 1 + 4 * 3


def test_every_round_has_a_bandwidth_of_its_own() -> None:
    session, backend = make_session()
    asked: list[int] = []

    def bandwidth() -> float:
        asked.append(len(backend.runs))
        return 1e9 * len(asked)

    found = benchmark.measure(session, [8, 5], 3, 3, bandwidth)
    assert asked == [6, 12, 18]  # after both lengths, three runs each
    assert found.bandwidth == 2e9
    assert found.peak_rss_bytes > 0
    assert [case.prompt_tokens for case in found.cases] == [8, 5]


def test_the_share_is_of_each_rounds_own_bandwidth(monkeypatch: pytest.MonkeyPatch) -> None:
    session, _ = make_session()
    rates = iter([100.0, 40.0, 10.0])

    def generate(*_: object, **__: object) -> Any:
        return SimpleNamespace(decode_tokens_per_s=next(rates), decode_steps=2, prefill_s=1.0, kv_bytes=1)

    monkeypatch.setattr(session, "generate", generate)
    read = iter([1e6, 1e5, 1e6])  # the second round's memory is slow: its share is the largest
    found = benchmark.measure(session, [5], 3, 3, lambda: next(read))
    token = manifest_weight_bytes(session.manifest) + found.cases[0].kv_read_bytes
    assert found.share == pytest.approx(token * 100.0 / 1e6)
    assert found.cases[0].decode_tokens_per_s == 40.0


def test_the_same_length_twice_is_measured_once(fake: FakeBackend) -> None:
    done = run("b", "--prompt-tokens", "5,5", "--new-tokens", 2, "--runs", 1, "--json")
    assert [case["prompt_tokens"] for case in json.loads(done.stdout)["cases"]] == [5]


@pytest.mark.parametrize(
    ("flags", "match"),
    [
        (["--prompt-tokens", "32,x"], "expected numbers such as 32,1024"),
        (["--prompt-tokens", ""], "expected numbers"),
        (["--prompt-tokens", "0"], "has 0; expected 1"),
        (["--prompt-tokens", "60", "--new-tokens", "5"], "60 prompt tokens and 5 new ones are 65; .* holds 64"),
        (["--new-tokens", "1"], "--new-tokens is 1; expected 2"),
        (["--new-tokens", "2", "--prompt-tokens", "4", "--runs", "0"], "--runs is 0"),
    ],
)
def test_refusals_run_nothing(fake: FakeBackend, flags: list[str], match: str) -> None:
    done = run("b", *flags)
    assert done.exit_code == 2
    assert re.search(match, done.stderr)
    assert done.stdout == ""
    assert fake.runs == []


def test_a_missing_library_is_told(fake: FakeBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: Any) -> float:
        raise FileNotFoundError("libedgellm_ort.so is not in here")

    monkeypatch.setattr(read_bandwidth, "read_bytes", missing)
    done = run("b", "--prompt-tokens", "4", "--new-tokens", 2, "--runs", 1)
    assert done.exit_code == 1
    assert "libedgellm_ort.so is not in here" in done.stderr


def test_prompts_are_text_of_any_length() -> None:
    session, _ = make_session()
    assert session.decode(benchmark.prompt_ids(session, 9)) == "The ferry"
    assert len(benchmark.prompt_ids(session, 5000)) == 5000


def test_an_embedding_counts_only_as_the_head() -> None:
    assert weight_bytes({"embedding": 100, "layers.0.q": 10}) == 110
    assert weight_bytes({"embedding": 100, "layers.0.q": 10, "head": 50}) == 60
    session, _ = make_session()
    assert manifest_weight_bytes(session.manifest) == 256 * 64 + 2048 + 6656


def test_the_cache_read_ends_at_the_budget() -> None:
    session, _ = make_session()
    model = session.manifest.model
    full, window = parse_kv("full", 64), parse_kv("window:16", 64)
    slot = CacheLayout(full, 1, model.layers, model.kv_heads, model.head_dim).slot_bytes
    assert slot == 2 * 2 * (16 * 2 * 2 + 4)
    assert kv_read_bytes(session.manifest, full, 9) == 10 * slot
    assert kv_read_bytes(session.manifest, window, 40) == 16 * slot
