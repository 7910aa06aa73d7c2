"""Evaluation end to end on a tiny bundle: its answers are generate's, and a stopped one goes on."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from edgellm.runtime import load
from edgellm.runtime.cli import main
from edgellm.runtime.evaluation.documents import Document
from edgellm.runtime.evaluation.run import GOLDEN, RUN, SCORED, prompt_ids
from edgellm.runtime.evaluation.tasks import Source, passkey
from edgellm.runtime.kv_policy import parse_kv
from edgellm.runtime.perplexity import surprise
from tests.bundles import make_bundle
from tests.conftest import write_folder

SPEECH = " ".join(f"He said that {n} of them came to see the river and the sea." for n in range(100, 400))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluation")
    make_bundle(write_folder(folder / "model", max_position_embeddings=1024), folder / "bundle", bits=8, kv="full")
    (folder / "speech.txt").write_text(SPEECH)
    return folder / "bundle"


def evaluated(bundle: Path, task: str, *arguments: str) -> dict[str, Any]:
    given = ["--documents", str(bundle.parent / "speech.txt"), "--length", "300", "--threads", "1", "--json"]
    done = CliRunner().invoke(main, ["eval", str(bundle), "--task", task, *given, *arguments])
    assert done.exit_code == 0, done.output
    facts: dict[str, Any] = json.loads(done.stdout)
    return facts


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_answers_are_those_of_generate(bundle: Path, tmp_path: Path) -> None:
    cells = ["--kv", "vatp:25%,sinks=4", "--kv", "tova:40", "--kv", "window:40", "--kv", "h2o:25%,sinks=4,queries=50"]
    evaluated(bundle, "passkey", "--items", "2", "--results", str(tmp_path / "r"), *cells)
    encode = load(bundle, kv="full", threads=1).encode
    source = Source([Document(SPEECH)], lambda text: len(encode(text)), 300)
    items = passkey(source, np.random.default_rng([0, 0]), [i * GOLDEN % 1 for i in range(5)])
    for row, item in zip(rows(tmp_path / "r"), items, strict=False):
        assert set(row["answers"]) == {"full", *cells[1::2]}
        for kv, answer in row["answers"].items():
            budget = kv.replace("25%", str(round(0.25 * row["prompt_tokens"])))
            alone = load(bundle, kv=budget if kv == "full" else f"{budget},prefill=whole", threads=1)
            assert alone.decode(alone.generate(prompt_ids(alone, item), item.new_tokens).ids) == answer, kv
    assert len({answer for row in rows(tmp_path / "r") for answer in row["answers"].values()}) > 2


def test_a_texts_score_is_the_surprise_of_what_follows_its_prompt(bundle: Path, tmp_path: Path) -> None:
    facts = evaluated(bundle, "text", "--items", "1", "--kv", "vatp:80,sinks=4", "--results", str(tmp_path / "r"))
    source = Source([Document(SPEECH)], lambda text: len(load(bundle, kv="full", threads=1).encode(text)), 300)
    alone = load(bundle, kv="vatp:80,sinks=4,prefill=whole", threads=1)
    text = " ".join(source.filler(np.random.default_rng([0, 0]), round(1.1 * (300 + SCORED))))
    ids = alone.encode(text)[: 300 + SCORED]
    logits = [alone.prefill(ids[:300])[None]]
    alone.follow(parse_kv("vatp:80,sinks=4", 1024))
    logits += [alone.prefill(ids[start : start + RUN], "all") for start in range(300, len(ids), RUN)]
    nats = surprise(np.concatenate(logits)[:-1], np.array(ids[300:])) / SCORED
    assert rows(tmp_path / "r")[0]["scores"]["vatp:80,sinks=4"] == pytest.approx(nats, abs=1e-6)
    assert facts["cells"][1]["score"] == pytest.approx(math.exp(nats))
    assert facts["score"] == "perplexity"


def test_a_stopped_evaluation_goes_on_and_new_cells_join(bundle: Path, tmp_path: Path) -> None:
    file, plain = tmp_path / "r", ["--kv", "h2o:50,sinks=4"]
    whole = evaluated(bundle, "needles", "--items", "3", "--results", str(file), *plain)
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(lines[0] + lines[1][:100])  # killed while it wrote
    assert evaluated(bundle, "needles", "--items", "3", "--results", str(file), *plain) == whole
    assert file.read_bytes() == b"".join(lines)
    wider = evaluated(bundle, "needles", "--items", "3", "--results", str(file), *plain, "--kv", "tova:50")
    assert wider["cells"][:2] == whole["cells"]
    assert [list(row["scores"]) for row in rows(file)[3:]] == [["tova:50"]] * 3
    evaluated(bundle, "needles", "--items", "1", "--seed", "1", "--results", str(file), *plain)
    assert len(rows(file)) == 7  # another plan's rows are others


def test_a_table_and_a_picture_for_people(bundle: Path, tmp_path: Path) -> None:
    speech, picture = str(bundle.parent / "speech.txt"), tmp_path / "p.svg"
    given = ["eval", str(bundle), "--task", "needles-all", "--documents", speech, "--length", "300", "--threads", "1"]
    cells = ["--items", "1", "--kv", "h2o,sinks=4", "--kv", "vatp,sinks=4", "--against", "h2o,sinks=4"]
    done = CliRunner().invoke(main, [*given, *cells, "--budgets", "25%", "-o", str(picture)])
    assert done.exit_code == 0, done.output
    assert [line.split()[0] for line in done.stdout.splitlines()] == [
        "kv",
        "full",
        "h2o:25%,sinks=4",
        "vatp:25%,sinks=4",
    ]
    assert done.stdout.splitlines()[-1].endswith("to h2o:25%,sinks=4")
    assert picture.read_text().startswith("<svg")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "give --text FILE or --task TASK"),
        (["--task", "qa"], "--task without --documents"),
        (["--task", "qa", "--text", "x"], "give --text FILE or --task TASK"),
        (["--task", "qa", "--documents", "x", "--window", "9"], "--window means nothing with --task"),
        (["--text", "x", "--items", "9"], "--items means nothing with --text"),
        (["--text", "x", "--kv", "full", "--kv", "full"], "--text has one --kv"),
        (["--task", "qa", "--documents", "x", "-o", "a.png"], "is no .svg file"),
        (["--task", "qa", "--documents", "x", "--kv", "vatp:30%,sinks"], '"sinks" is unknown'),
        (["--task", "passkey", "--documents", "x"], "x cannot be read"),
        (["--task", "passkey", "--documents", "SPEECH", "--length", "2000"], "the model's context holds 1024"),
    ],
)
def test_what_cannot_be_is_told(bundle: Path, arguments: list[str], told: str) -> None:
    speech = str(bundle.parent / "speech.txt")
    done = CliRunner().invoke(main, ["eval", str(bundle), *(speech if one == "SPEECH" else one for one in arguments)])
    assert done.exit_code in (1, 2)
    assert told in done.stderr


def test_a_file_of_other_things_is_no_results(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "r").write_text('{"a": 1}\n')
    given = ["--documents", str(bundle.parent / "speech.txt"), "--length", "300", "--results", str(tmp_path / "r")]
    done = CliRunner().invoke(main, ["eval", str(bundle), "--task", "passkey", *given])
    assert "is no results of" in done.stderr
