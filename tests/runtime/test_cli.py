"""The command line: flags, JSON keys, exit codes, and what goes to which stream."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from edgellm.runtime.cli import VERBS, main
from edgellm.runtime.session import Session
from tests.runtime.fakes import CHATML, DATA, STOP, FakeBackend, byte_tokenizer, make_bundle, make_session

Fake = Callable[..., tuple[Session, FakeBackend]]


def run(*args: str, stdin: str | bytes | None = None) -> Result:
    return CliRunner().invoke(main, list(args), input=stdin)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    """Make every verb load this session."""

    def replace(answer: str | None = None, **options: Any) -> tuple[Session, FakeBackend]:
        session, backend = make_session(**options)
        if answer is not None:  # whose bytes differ: each names the next, and any other byte the first
            ids = byte_tokenizer().encode(answer).ids
            chain = dict(zip(ids, [*ids[1:], STOP], strict=True))
            backend.following = lambda token, position: chain.get(token, ids[0])  # type: ignore[method-assign]
        for verb in ("generate", "eval", "chat", "cache_prompt"):
            __import__(f"edgellm.runtime.commands.{verb}")
            monkeypatch.setattr(sys.modules[f"edgellm.runtime.commands.{verb}"], "load", lambda *a, **k: session)
        return session, backend

    return replace


def test_help_lists_the_verbs_without_importing_them() -> None:
    result = run("--help")
    assert result.exit_code == 0
    assert all(verb in result.stdout for verb in VERBS)


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb != "export"])
def test_every_verb_shows_an_example_and_takes_json(verb: str) -> None:
    result = run(verb, "--help")
    assert result.exit_code == 0
    assert f"edgellm {verb}" in result.stdout.split("Options:")[0].replace("Usage: edgellm", "")
    assert "--json" in result.stdout


def test_version() -> None:
    assert run("--version").stdout.startswith("edgellm, version ")


def test_unknown_verbs_get_a_suggestion() -> None:
    result = run("genrate")
    assert result.exit_code == 2
    assert "Did you mean generate?" in result.stderr
    assert result.stdout == ""
    assert run("xyzzy").exit_code == 2


def test_export_without_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("edgellm.export")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "edgellm.export.command", None)
    result = run("export", "a", "b")
    assert result.exit_code == 1
    assert "pip install edgellm[export]" in result.stderr


def test_errors_have_no_traceback(tmp_path: Path) -> None:
    result = run("generate", str(tmp_path / "none"), "-p", "x")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: no bundle at ")
    assert "edgellm export" in result.stderr
    assert "Traceback" not in result.output
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("flags", "match"),
    [
        (["--temperature", "-1"], "temperature is -1.0; expected 0"),
        (["--temperature", "nan"], "temperature is nan"),
        (["--top-p", "0"], "top_p is 0.0"),
        (["-n", "0"], "max_new_tokens is 0"),
        (["--system", "x"], "--system without --chat"),
        (["--chat"], "no chat template"),
        (["--bogus"], "No such option"),
    ],
)
def test_wrong_usage_is_exit_code_2(fake: Fake, flags: list[str], match: str) -> None:
    fake()
    result = run("generate", "b", "-p", "?", *flags)
    assert result.exit_code == 2
    assert match in result.stderr
    assert result.stdout == ""


def test_generate(fake: Fake) -> None:
    fake("Paris 🌍!")
    result = run("generate", "b", "-p", "?")
    assert result.exit_code == 0
    assert result.stdout == "Paris 🌍!\n"
    assert "stopped: stop token" in result.stderr


def test_generate_json(fake: Fake) -> None:
    fake("Paris")
    result = run("generate", "b", "-p", "?", "-n", "3", "--json")
    facts = json.loads(result.stdout)
    times = ["load_s", "prefill_s", "decode_s", "decode_tokens_per_s"]
    rest = ["peak_rss_bytes", "kv_bytes", "stop_reason", "reused_tokens"]
    rest += ["kv_evictions", "kv_coverage", "adapter"]
    assert list(facts) == ["text", "prompt_tokens", "new_tokens", *times, *rest]
    assert (facts["text"], facts["prompt_tokens"], facts["new_tokens"]) == ("Par", 1, 3)
    assert facts["stop_reason"] == "length"
    assert facts["peak_rss_bytes"] > 1 << 20


def test_generate_from_stdin_and_chat(fake: Fake) -> None:
    _, backend = fake("ok", template=CHATML, model={**DATA["model"], "context": 512})
    assert run("generate", "b", "-p", "-", "--chat", "--system", "S", stdin="hé\n").stdout == "ok\n"
    prompt = [token for ids, _, _, _ in backend.runs for token in ids]
    text = byte_tokenizer().decode(prompt, skip_special_tokens=False)
    expected = "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nhé<|im_end|>\n<|im_start|>assistant\n"
    assert text == expected + "ok"
    assert "not UTF-8" in run("generate", "b", "-p", "-", stdin=b"\xff").stderr


def test_greedy_says_what_it_ignores(fake: Fake) -> None:
    fake("x")
    assert "--top-k, --seed change nothing" in run("generate", "b", "-p", "a", "--top-k", "3", "--seed", "1").stderr
    assert "change nothing" not in run("generate", "b", "-p", "a", "--seed", "1", "--temperature", "1").stderr


def test_eval(fake: Fake, tmp_path: Path) -> None:
    fake()
    text = tmp_path / "text.txt"
    text.write_text("some words to be surprised by, more or less")
    facts = json.loads(run("eval", "b", "--text", str(text), "--window", "16", "--tokens", "20", "--json").stdout)
    assert list(facts) == ["perplexity", "bits_per_byte", "tokens", "window"]
    assert (facts["tokens"], facts["window"]) == (18, 16)
    assert run("eval", "b", "--text", str(text), "--window", "16").stdout.startswith("perplexity ")
    text.write_bytes(b"abc\xff")
    for args in (["--text", str(text)], ["--text", str(tmp_path)], ["--text", "none"], []):
        assert run("eval", "b", *args).exit_code == 2


def test_inspect(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    facts = json.loads(run("inspect", str(bundle), "--json", "--verify").stdout)
    assert facts["model"]["name"] == "tiny"
    assert facts["bytes"]["weights"] == 256
    assert facts["bytes"]["total"] == sum(file["bytes"] for file in facts["files"].values())
    assert facts["bits_per_weight"] == {
        "overall": 8 * (16384 + 2048 + 6656) / (64 * (256 + 64 + 256)),
        "embedding": 8.0,
        "attention": 4.0,
        "mlp": 3.25,
    }
    result = run("inspect", str(bundle))
    assert result.exit_code == 0
    for part in ("dass:2:4", "21.500, dense 21.250", "gate_up", "3.250", "2:4 out"):
        assert part in result.stdout
    (bundle / "model.onnx.data").write_bytes(bytes(256))
    assert run("inspect", str(bundle)).exit_code == 0
    assert "model.onnx.data is damaged" in run("inspect", str(bundle), "--verify").stderr


def test_doctor(monkeypatch: pytest.MonkeyPatch) -> None:
    from edgellm.runtime.commands import doctor

    monkeypatch.setattr(doctor, "CHECKS", {**doctor.CHECKS, "kernels": lambda: ("warn", "slow")})
    facts = json.loads(run("doctor", "--json").stdout)
    assert [check["name"] for check in facts["checks"]] == list(doctor.CHECKS)
    assert {"python": "ok", "onnxruntime": "ok", "cores": "ok"}.items() <= {
        check["name"]: check["status"] for check in facts["checks"]
    }.items()

    def broken() -> tuple[str, str]:
        raise OSError("no such\nprocessor")

    monkeypatch.setattr(doctor, "CHECKS", {"kernels": broken})
    result = run("doctor")
    assert result.exit_code == 1
    assert "fail kernels: no such processor" in result.stdout


def test_doctor_tells_of_operators_that_onnxruntime_does_not_take(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from edgellm.kernels import library

    (tmp_path / "other.so").write_bytes(b"no library")
    monkeypatch.setattr(library, "library_path", lambda: tmp_path / "other.so")
    checks = {check["name"]: check for check in json.loads(run("doctor", "--json").stdout)["checks"]}
    assert checks["onnxruntime"]["status"] == "fail"
    assert "other.so" in checks["onnxruntime"]["detail"]


def test_chat_keeps_the_cache_between_turns(fake: Fake) -> None:
    model = {**DATA["model"], "context": 512}
    session, backend = fake("yes", template=CHATML, model=model)
    result = run("chat", "b", "--system", "S", stdin="one\n\ntwo\n")
    assert result.stdout == "yes\nyes\n"
    fed = [token for ids, _, _, _ in backend.runs for token in ids]
    assert [p for _, positions, _, _ in backend.runs for p in positions] == list(range(len(fed)))  # nothing twice
    assert byte_tokenizer().decode(fed, skip_special_tokens=False) == (
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\none<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>\n"
        "<|im_start|>user\ntwo<|im_end|>\n<|im_start|>assistant\nyes"
    )
    backend.runs.clear()
    session.reset()
    result = run("chat", "b", "--json", stdin="one\n/reset\ntwo\n/exit\nthree\n")
    facts = json.loads(result.stdout)
    assert facts["messages"] == [{"role": "user", "content": "two"}, {"role": "assistant", "content": "yes"}]
    start = len(byte_tokenizer().encode("<|im_start|>user\n").ids)
    assert [turn["reused_tokens"] for turn in facts["turns"]] == [0, start]  # /reset keeps what is the same
    assert sum(positions[0] == 0 for _, positions, _, _ in backend.runs) == 1


def test_chat_reuses_what_a_template_leaves_of_an_answer(fake: Fake) -> None:
    """This one trims answers, as many do, so the second prompt leaves the cached ids inside the answer."""
    trims = CHATML.replace("message['content']", "message['content'] | trim")
    session, backend = fake("yes  ", template=trims, model={**DATA["model"], "context": 512})
    first, second = json.loads(run("chat", "b", "--json", stdin="one\ntwo\n").stdout)["turns"]
    assert second["reused_tokens"] == first["prompt_tokens"] + len("yes")
    assert [token for _, token in backend.seen] == session.tokens


def test_cache_prompt_then_generate_and_chat(fake: Fake, tmp_path: Path) -> None:
    options = {"template": CHATML, "model": {**DATA["model"], "context": 512}}
    session, _ = fake("ok", **options)
    file = tmp_path / "rules.cache"
    made = json.loads(run("cache-prompt", "b", "--chat", "--system", "Rules.", "-o", str(file), "--json").stdout)
    text = "<|im_start|>system\nRules.<|im_end|>\n<|im_start|>user\n"
    assert session.decode([t for t in session.tokens if t < 256]) == byte_tokenizer().decode(session.encode(text))
    assert made["tokens"] == len(session.tokens)
    assert made["bytes"] == file.stat().st_size
    assert made["kv"] == "full:512"

    fake("ok", **options)
    flags = ["--system", "Rules.", "--prompt-cache", str(file)]
    result = run("generate", "b", "--chat", "-p", "Hi", *flags, "--json")
    assert json.loads(result.stdout)["reused_tokens"] == made["tokens"]
    assert result.stderr == ""
    fake("ok", **options)
    assert f"({made['tokens']} from the cache)" in run("generate", "b", "--chat", "-p", "Hi", *flags).stderr
    fake("ok", **options)
    turns = json.loads(run("chat", "b", *flags, "--json", stdin="Hi\nHo\n/reset\nHi\n").stdout)["turns"]
    assert turns[0]["reused_tokens"] == made["tokens"]
    assert turns[1]["reused_tokens"] == turns[0]["prompt_tokens"] + len("ok")
    assert turns[2]["reused_tokens"] == turns[0]["prompt_tokens"] - 1  # the same question: its last id runs again
    fake("ok", **options)
    result = run("generate", "b", "-p", "Hi", "--prompt-cache", str(file), "--json")
    assert json.loads(result.stdout)["reused_tokens"] == 0
    assert "rules.cache is not used: the prompt does not begin with its tokens" in result.stderr


@pytest.mark.parametrize(
    ("flags", "match"),
    [
        (["--chat"], "there is no prompt to cache"),
        (["--system", "S"], "--system without --chat"),
        (["-p", "a", "--chat"], "no chat template"),
        (["-p", ""], "the prompt is empty"),
    ],
)
def test_wrong_usage_of_cache_prompt(fake: Fake, tmp_path: Path, flags: list[str], match: str) -> None:
    fake()
    result = run("cache-prompt", "b", "-o", str(tmp_path / "file"), *flags)
    assert result.exit_code == 2
    assert match in result.stderr
    assert not list(tmp_path.iterdir())


def test_a_prompt_cache_that_cannot_be_used_ends_the_verb(fake: Fake, tmp_path: Path) -> None:
    fake("ok")
    file = tmp_path / "file"
    assert run("cache-prompt", "b", "-p", "-", "-o", str(file), stdin="abc").exit_code == 0
    fake("ok", kv="window:10")
    result = run("generate", "b", "-p", "abcd", "--prompt-cache", str(file))
    assert result.exit_code == 1
    assert "holds a cache of policy full:64; this session's is window:10" in result.stderr
    assert "--kv full:64" in result.stderr
    assert f"edgellm cache-prompt BUNDLE -p TEXT -o {file}" in result.stderr


def test_chat_needs_a_template_and_room(fake: Fake) -> None:
    fake("yes")
    assert run("chat", "b", stdin="hi\n").exit_code == 2
    fake("yes", template=CHATML)
    result = run("chat", "b", stdin="x" * 100 + "\n")
    assert result.exit_code == 1
    assert "the model's context holds 64" in result.stderr
