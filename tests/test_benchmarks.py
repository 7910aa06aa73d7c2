"""`make bench` without the peers: the protocol, fair rounds, what happens to those who cannot run."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import pytest
from click.testing import CliRunner

from edgellm.kernels import read_bandwidth
from edgellm.runtime import load
from tests.benchmarks import peer_files, process, prune_table, side_by_side
from tests.benchmarks.contenders import Contender, from_c, ours, peers
from tests.benchmarks.peers import protocol
from tests.benchmarks.process import Failed, ask, busy_neighbour
from tests.benchmarks.rounds import interleave, medians, ratios, share
from tests.benchmarks.tied_gguf import EMBEDDING, tied
from tests.bundles import calibration_file, make_bundle
from tests.export.test_gguf_tied import write_twice

FAKE = """
import os, signal, sys
from tests.benchmarks.peers.protocol import serve
class Fake:
    def run(self, prompt, new_tokens, first):
        first()
        return [prompt[-1] + i for i in range(new_tokens)]
    def nats(self, window):
        return 2.0 * (len(window) - 1)
def load(model, threads, tokens, settings):
    if "lacks" in settings:
        import a_module_that_nobody_has
    if "breaks" in settings:
        raise RuntimeError("the model is upside down")
    if "crashes" in settings:
        os.kill(os.getpid(), signal.SIGILL)
    print("loaded", threads, "threads")
    return Fake()
if __name__ == "__main__":
    serve(load)
"""


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Contender]:
    """Contenders of a peer that answers at once, in processes of their own."""
    folder = tmp_path / "root/tests"
    (folder / "benchmarks/peers").mkdir(parents=True)
    for package in (folder, folder / "benchmarks", folder / "benchmarks/peers"):
        (package / "__init__.py").touch()
    (folder / "benchmarks/peers/protocol.py").write_text(Path(protocol.__file__).read_text())
    (folder / "benchmarks/peers/fake.py").write_text(FAKE)
    monkeypatch.setattr(process, "ROOT", tmp_path / "root")
    model = tmp_path / "model"
    model.write_bytes(bytes(100))
    return lambda name="fake", **settings: Contender(name, "fake", model, 4, Path(sys.executable), settings)


def sample(speed: float, others: float = 0.0, disturbed: bool = False) -> dict[str, Any]:
    return {"decode_tokens_per_s": speed, "others": others, "disturbed": disturbed}


def test_a_run_in_a_process_of_its_own(fake: Callable[..., Contender]) -> None:
    found = ask(fake(), {"threads": 2, "prompt": [5, 6, 7], "new_tokens": 4})
    assert found["ids"] == [7, 8, 9, 10]
    assert found["start_s"] > found["load_s"] >= 0
    assert found["prefill_tokens_per_s"] > 0
    assert found["decode_tokens_per_s"] > 0
    assert found["peak_rss_bytes"] > 1 << 20
    assert 0 <= found["own_rss_bytes"] < found["peak_rss_bytes"]
    assert 0 <= found["others"] <= 1.1


def test_from_c_as_from_python(tiny_gguf: Path, tmp_path: Path) -> None:
    make_bundle(tiny_gguf, tmp_path / "bundle")
    python = ours("python", tmp_path / "bundle")
    same = [ask(one, {"threads": 1, "prompt": [5, 6, 7], "new_tokens": 12})["ids"] for one in (python, from_c(python))]
    assert same[0] == same[1]
    small = ask(
        from_c(ours("small", tmp_path / "bundle", "window:6")), {"threads": 1, "prompt": [5, 6, 7], "new_tokens": 12}
    )
    assert small["ids"] != same[0]
    with pytest.raises(Failed, match="perplexity stands beside"):
        ask(from_c(python), {"threads": 1, "score": [5, 6, 7], "window": 3})


def test_scoring_counts_windows_as_eval_does(fake: Callable[..., Contender]) -> None:
    found = ask(fake(), {"threads": 1, "score": list(range(21)), "window": 10})
    assert found["tokens"] == 18
    assert found["nats"] == 36


@pytest.mark.parametrize(
    ("setting", "why"),
    [("lacks", "No module named 'a_module_that_nobody_has'"), ("breaks", "upside down"), ("crashes", "SIGILL")],
)
def test_who_cannot_run_says_why(fake: Callable[..., Contender], setting: str, why: str) -> None:
    with pytest.raises(Failed, match=why):
        ask(fake(**{setting: True}), {"threads": 1, "prompt": [1], "new_tokens": 1})


def test_a_run_that_never_ends_is_ended(fake: Callable[..., Contender], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "LIMIT", 0)
    with pytest.raises(Failed, match="longer than 0 s"):
        ask(fake(), {"threads": 1, "prompt": [1], "new_tokens": 1})


def test_the_neighbour_is_busy_and_leaves() -> None:
    with busy_neighbour() as neighbour:
        time.sleep(0.2)
        os.kill(neighbour, 0)
    with pytest.raises(ProcessLookupError):
        os.kill(neighbour, 0)


def test_turns_change_from_round_to_round() -> None:
    order: list[str] = []

    def answer(turn: str) -> dict[str, Any]:
        order.append(turn)
        return sample(1)

    failed: dict[str, str] = {}
    *earlier, found = interleave("abc", 3, answer, failed)
    assert len(earlier) == 2
    assert order == [*"abc", *"bca", *"cab"]
    assert {name: len(samples) for name, samples in found.items()} == {"a": 3, "b": 3, "c": 3}
    assert failed == {}


def test_who_fails_leaves_and_the_others_go_on() -> None:
    asked: list[str] = []

    def answer(turn: str) -> dict[str, Any]:
        asked.append(turn)
        if turn == "b":
            raise Failed("no")
        return sample(1)

    failed: dict[str, str] = {}
    *_, found = interleave("ab", 4, answer, failed)
    assert failed == {"b": "no"}
    assert asked.count("b") == 1
    assert list(found) == ["a"]
    assert len(found["a"]) == 4


def test_a_disturbed_run_is_tried_again() -> None:
    answers = iter([sample(1, others=0.5), sample(2, others=0.05), sample(3, others=0.9), sample(4, others=0.3)])
    *_, found = interleave("a", 2, lambda turn: next(answers), {})
    assert [(one["decode_tokens_per_s"], one["disturbed"]) for one in found["a"]] == [(2, False), (4, True)]


def test_medians_and_ratios_are_of_quiet_rounds() -> None:
    rounds = {
        "ours": [sample(10), sample(20), sample(99, disturbed=True), sample(30)],
        "peer": [sample(5), sample(10), sample(1), sample(1, disturbed=True)],
    }
    assert medians(rounds["ours"]) == {"quiet_rounds": 3, "decode_tokens_per_s": 20}
    (row,) = ratios(rounds, ["ours"])
    assert (row["rounds"], row["median"], row["quiet_rounds"]) == ([2, 2], 2, 2)
    noisy = [sample(1, disturbed=True), sample(3, disturbed=True)]
    assert medians(noisy) == {"quiet_rounds": 0, "decode_tokens_per_s": 2}


def test_share_is_taken_within_rounds() -> None:
    assert share([sample(3), sample(8)], [sample(4), sample(8)]) == 0.875
    assert share([sample(3), sample(1)], [sample(4), sample(8, disturbed=True)]) == 0.75
    assert share([sample(3, disturbed=True)], [sample(4)]) == 0.75
    assert share([], [sample(4)]) is None


def test_surprise_is_cross_entropy() -> None:
    assert protocol.surprise([[0.0, 0.0], [0.0, 0.0]], [0, 1]) == pytest.approx(2 * math.log(2))


def test_ours_runs_as_a_peer(tiny_model: Path, tmp_path: Path) -> None:
    make_bundle(tiny_model, tmp_path / "bundle", bits=8)
    contender = ours("edgellm", tmp_path / "bundle")
    prompt = load(tmp_path / "bundle").encode("The sea is grey")
    found = ask(contender, {"threads": 1, "prompt": prompt, "new_tokens": 5})
    assert found["ids"] == load(tmp_path / "bundle").generate(prompt, 5, stop=()).ids
    assert ask(contender, {"threads": 1, "score": prompt, "window": 4})["nats"] > 0


def test_what_cannot_be_made_is_told_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer_files, "OUT", tmp_path)
    monkeypatch.setattr(peer_files, "tied", lambda source, out: source)

    def breaks(source: Path, out: Path) -> None:
        out.mkdir()
        raise peer_files.NotMade("no such architecture")

    made: list[Path] = []

    def works(source: Path, out: Path) -> None:
        made.append(out)
        out.write_bytes(b"file")

    files = {"bad": breaks, "good": works}
    for _ in range(2):
        assert peer_files.make_all(tmp_path / "model.gguf", files) == {"bad": "no such architecture"}
    assert len(made) == 1
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["good"]


@pytest.mark.parametrize("twice", [True, False])
def test_a_matrix_stored_twice_is_stored_once(tiny_gguf: Path, tmp_path: Path, twice: bool) -> None:
    source, out = write_twice(tiny_gguf, tmp_path / "twice.gguf", other=not twice), tmp_path / "tied/once.gguf"
    assert tied(tiny_gguf, out) == tiny_gguf
    assert tied(source, out) == (out if twice else source)
    if twice:
        found = {tensor.name: tensor for tensor in gguf.GGUFReader(out).tensors}
        assert "output.weight" not in found
        assert found[EMBEDDING].tensor_type == gguf.GGMLQuantizationType.F32
        assert len(found) == len(gguf.GGUFReader(tiny_gguf).tensors)


def test_every_peer_has_a_runner_and_a_file_to_make() -> None:
    for peer in peers(Path("model.gguf")):
        assert Path(protocol.__file__).with_name(f"{peer.module}.py").is_file()
        assert peer.model.name in peer_files.FILES


def test_side_by_side(
    fake: Callable[..., Contender], tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = tmp_path / "bundle"
    make_bundle(tiny_gguf, bundle)
    field: Sequence[Contender] = [fake("edgellm new"), fake("peer"), fake("gone", lacks=True)]
    monkeypatch.setattr(read_bandwidth, "MOST", 1 << 16)
    monkeypatch.setattr(side_by_side, "make_all", lambda source: {"other": "never"})
    monkeypatch.setattr(side_by_side, "ours", lambda name, path, kv=None: replace(field[0], name=name))
    monkeypatch.setattr(side_by_side, "from_c", lambda one: replace(one, name=f"{one.name}, from C"))
    monkeypatch.setattr(side_by_side, "load", lambda path: load(bundle))
    monkeypatch.setattr(
        side_by_side, "peers", lambda source: [*field[1:], Contender("lost", "fake", tmp_path / "x", 4)]
    )
    text = tmp_path / "text.txt"
    text.write_text("The sea is grey, and so are the ships. " * 20)
    arguments = [str(tiny_gguf), "--bundle", f"new={bundle}", "--prompt-tokens", "4,8", "--new-tokens", "3", "--busy"]
    arguments += [
        "--kv",
        "window:12",
        "--rounds",
        "2",
        "--text",
        str(text),
        "--text-tokens",
        "50",
        "-o",
        str(tmp_path / "out.json"),
    ]
    done = CliRunner().invoke(side_by_side.main, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    facts = json.loads((tmp_path / "out.json").read_text())
    assert set(facts["contenders"]["peer"]["cases"]) == {"4", "8", "prefill 512", "4 busy"}
    assert facts["contenders"]["peer"]["cases"]["4"]["decode_tokens_per_s"] > 0
    assert facts["contenders"]["peer"]["perplexity"] == pytest.approx(math.exp(2))
    assert {"growth", "busy"} <= set(facts["contenders"]["edgellm new"])
    assert facts["contenders"]["edgellm new window:12"]["cases"]["8"]["decode_tokens_per_s"] > 0
    assert facts["contenders"]["edgellm new, from C"]["cases"]["8"]["decode_tokens_per_s"] > 0
    assert "nobody_has" in facts["contenders"]["gone"]["cases"]["4"]["failed"]
    assert "lost" in facts["skipped"]
    assert {row["metric"] for row in facts["ratios"]["4"]} >= {"decode_tokens_per_s", "start_s", "peak_rss_bytes"}
    assert (tmp_path / "out.png").stat().st_size > 1000
    assert "perplexity" in done.stdout
    quality = [
        str(tiny_gguf),
        "--bundle",
        f"new={bundle}",
        "--rounds",
        "0",
        "--text",
        str(text),
        "-o",
        str(tmp_path / "q"),
    ]
    done = CliRunner().invoke(side_by_side.main, quality, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "q").read_text())["contenders"]["peer"]
    assert found["perplexity"] == pytest.approx(math.exp(2))
    assert found["cases"] == {}


def test_the_table_of_masks_goes_on_where_it_was_killed(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, made = calibration_file(tmp_path), []
    make = prune_table.make
    monkeypatch.setattr(prune_table, "WINDOW", 25)
    monkeypatch.setattr(prune_table, "make", lambda *args: made.append(args[3].sparsity) or make(*args))

    def rows(*options: str) -> list[dict[str, Any]]:
        table = tmp_path / "table.json"
        args = [str(tiny_model), str(text), str(text), "-o", str(table), "--tokens", "200", "--sequences", "4"]
        ran = CliRunner().invoke(prune_table.main, [*args, "--bits", "0", "--recover", "none", *options])
        assert ran.exit_code == 0, ran.output
        found: list[dict[str, Any]] = json.loads(table.read_text())["rows"]
        return found

    (first,) = rows("--only", "magnitude:2:4")
    assert [str(sparsity) for sparsity in made] == ["magnitude:2:4"]
    magnitude, dass = rows("--only", "magnitude:2:4", "--only", "dass:2:4")
    assert [str(sparsity) for sparsity in made] == ["magnitude:2:4", "dass:2:4"]
    assert magnitude == first
    low, high = dass["log_ratio_to_magnitude"]
    assert low <= math.log(dass["perplexity"] / magnitude["perplexity"]) <= high
    with pytest.raises(AssertionError, match="other text or settings"):
        rows("--steps", "7")
