"""A cache that is reused, cut back or restored from a file gives the logits of a fresh prefill, on a real bundle."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray

from edgellm.runtime import load
from edgellm.runtime.cli import main
from edgellm.runtime.errors import PromptCacheError
from edgellm.runtime.session import Session
from edgellm.runtime.transcript import Transcript
from tests.bundles import make_bundle


@pytest.fixture(scope="module")
def bundle(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("turns") / "bundle"
    make_bundle(tiny_model, out, "dass:2:4", bits=4)
    return out


def error(got: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    return float(np.linalg.norm(got - expected) / np.linalg.norm(expected))


def fresh(session: Session, ids: list[int]) -> NDArray[np.float32]:
    session.reset()
    return session.prefill(ids)


IDS = np.random.default_rng(0).integers(3, 320, 250).tolist()


@pytest.mark.parametrize("kv", ["full", "window:240"])
def test_a_cache_cut_back_anywhere_equals_a_fresh_prefill(bundle: Path, kv: str) -> None:
    session, other = load(bundle, kv=kv, threads=1), load(bundle, kv=kv, threads=1)
    for common in (0, 1, 5, 99, 150, 199, 200):
        fresh(session, IDS[:150])
        session.prefill(IDS[150:198])
        for token in IDS[198:200]:
            session.step(token)
        ids = [*IDS[:common], *IDS[220:]]
        got = session.extend(ids, keep=True)
        assert session.reused_tokens == common
        assert error(got, fresh(other, ids)) < 1e-5
        assert error(session.step(9), other.step(9)) < 1e-5


def test_a_window_that_evicted_goes_on_and_starts_over(bundle: Path) -> None:
    session, other = load(bundle, kv="window:64", threads=1), load(bundle, kv="window:64", threads=1)
    runs = (IDS[:100], IDS[100:140])
    for common, reused in ((140, 140), (120, 120), (100, 100), (99, 0)):
        session.reset()
        for run in runs:
            session.prefill(run)
        got = session.extend([*IDS[:common], 7], keep=True)
        assert session.reused_tokens == reused
        other.reset()
        for run in (runs[0], IDS[100:common]) if reused else ():  # what a window sees depends on where runs end
            if run:
                other.prefill(run)
        assert error(got, other.extend([*IDS[:common], 7], keep=True)) < 1e-5


def test_later_turns_prefill_only_their_new_tokens(bundle: Path) -> None:
    """Answers are drawn a letter at a time, as no tokenizer would cut them; the last letter is drawn but never run."""
    session, other = load(bundle, threads=1), load(bundle, threads=1)
    transcript, spelled = Transcript(session), [session.encode(letter)[0] for letter in "thethethe"]
    assert len(session.encode("thethethe")) < len(spelled)
    messages, before = [{"role": "system", "content": "Be brief."}], 0
    for turn, question in enumerate(("A word?", "Two?", "", " thé 🌍 ")):
        messages.append({"role": "user", "content": question})
        letters = iter(spelled)
        ids = transcript.encode(messages)
        result = session.generate(ids, len(spelled), lambda logits, letters=letters: next(letters), keep=True)
        transcript.add(result)
        assert session.decode(ids) == session.decode(session.encode_chat(messages))
        assert result.reused_tokens == (before - 1 if turn else 0)
        assert error(session.extend([*ids, 7], keep=True), fresh(other, [*ids, 7])) < 1e-5
        session.extend([*ids, *result.ids[:-1]], keep=True)
        messages.append({"role": "assistant", "content": result.text})
        before = len(ids) + len(result.ids)


def test_an_edited_history_is_encoded_again(bundle: Path) -> None:
    session = load(bundle, threads=1)
    transcript, spelled = Transcript(session), [session.encode(letter)[0] for letter in "thethethe"]
    messages = [{"role": "user", "content": "A word?"}]
    letters = iter(spelled)
    transcript.add(session.generate(transcript.encode(messages), len(spelled), lambda logits: next(letters)))
    for answer in ("thethet", "thethethe more", ""):
        told = [*messages, {"role": "assistant", "content": answer}, {"role": "user", "content": "Two?"}]
        assert transcript.encode(told) == session.encode_chat(told)
    told[1]["content"] = "thethethe"
    assert transcript.encode(told) != session.encode_chat(told)


@pytest.mark.parametrize("kv", ["full", "window:240", "window:64"])
def test_a_restored_prompt_cache_equals_a_fresh_prefill(bundle: Path, tmp_path: Path, kv: str) -> None:
    """In another process's place: a session of its own. The file has the slots in use and little else."""
    session, other = load(bundle, kv=kv, threads=1), load(bundle, kv=kv, threads=1)
    expected = fresh(session, IDS[:200])
    session.reset()
    session.prefill(IDS[:199])
    session.save_cache(tmp_path / "cache")
    a_slot = 2 * 2 * (2 * 16 * 2 + 4)
    assert (tmp_path / "cache").stat().st_size < 199 * (a_slot + 8) + 4096
    assert other.restore_cache(tmp_path / "cache") == 199
    got = other.extend(IDS[:200], keep=True)
    assert other.reused_tokens == 199
    if kv != "window:64":
        assert error(got, expected) < 1e-5  # nothing was evicted: where runs end does not matter
    assert error(got, session.step(IDS[199])) < 1e-5
    for token in (5, 6, 7):
        np.testing.assert_array_equal(other.step(token), session.step(token))


def test_the_command_line_uses_the_file(bundle: Path, tmp_path: Path) -> None:
    def run(*arguments: str) -> dict[str, object]:
        done = CliRunner().invoke(main, [*arguments, "--threads", "1", "--json"])
        assert done.exit_code == 0, done.output
        found: dict[str, object] = json.loads(done.stdout)
        return found

    question, file = ["--chat", "--system", "Count the ships.", "-p", "How many?"], str(tmp_path / "ships")
    plain = run("generate", str(bundle), *question, "-n", "12")
    made = run("cache-prompt", str(bundle), "--chat", "--system", "Count the ships.", "-o", file)
    fast = run("generate", str(bundle), *question, "-n", "12", "--prompt-cache", file)
    assert fast["text"] == plain["text"]
    assert (plain["reused_tokens"], fast["reused_tokens"]) == (0, made["tokens"])


def test_a_file_of_another_export_is_refused(bundle: Path, tiny_model: Path, tmp_path: Path) -> None:
    make_bundle(tiny_model, tmp_path / "dense", bits=4)
    session = load(tmp_path / "dense", threads=1)
    session.prefill(IDS[:10])
    session.save_cache(tmp_path / "cache")
    with pytest.raises(PromptCacheError, match="another model, or by another export"):
        load(bundle, threads=1).restore_cache(tmp_path / "cache")
