"""What an export cost: references beside the recipe, the gate that refuses, and the page that tells."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from tests.bundles import calibration_file, make_bundle
from tests.export.test_journal import kill_after

from edgellm.export import config as settings
from edgellm.export.checkpoint import open_checkpoint
from edgellm.export.config import ExportConfig, Sparsity
from edgellm.export.decoder import hidden_states
from edgellm.export.drift import drift
from edgellm.export.gate import refuse_loss
from edgellm.export.packed_source import PackedSource, read_placed
from edgellm.export.pipeline import export
from edgellm.export.report import report
from edgellm.runtime.bundle_files import file_facts
from edgellm.runtime.cli import main
from edgellm.runtime.errors import BundleError, EdgellmError, UsageError
from edgellm.runtime.manifest import parse, read_manifest


def references(facts: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {one["name"]: one for one in facts["quality"]["references"]}


def test_the_dense_4_bit_recipe_is_its_own_reference(tiny_model: Path, tmp_path: Path) -> None:
    """Rounded by the same sweep with the same Hessians: what the bundle measures is what the reference told."""
    facts = make_bundle(tiny_model, tmp_path / "bundle", bits=4)
    found, quality = references(facts), facts["quality"]
    assert found["dense 4 bits"]["perplexity"] == pytest.approx(quality["perplexity"], rel=5e-3)
    assert found["dense 4 bits"]["bytes"] == sum(m["bytes"] for m in facts["matrices"])
    assert found["dense 3 bits"]["perplexity"] != found["dense 4 bits"]["perplexity"]
    embedding = next(m for m in facts["matrices"] if m["name"] == "embedding")
    layers = sum(m["n_out"] * m["k_in"] for m in facts["matrices"] if m is not embedding)
    assert found["dense 3 bits"]["bytes"] == embedding["bytes"] + layers * 3.5 / 8


def test_references_are_measured_where_matrices_are_corrected_or_on_request(tiny_model: Path, tmp_path: Path) -> None:
    cases: list[tuple[dict[str, Any], bool]] = [
        (dict(bits=8), False),
        (dict(bits=8, references=True), True),
        (dict(bits=4, references=False), False),
        (dict(bits=8, sparsity="wanda:2:4"), True),
        (dict(bits=8, sparsity="wanda:2:4", recover="none"), False),
    ]
    for number, (asked, expected) in enumerate(cases):
        facts = make_bundle(tiny_model, tmp_path / str(number), **asked)
        assert bool(facts["quality"]["references"]) is expected, asked


def test_references_of_a_killed_export_are_the_same(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # the killed one reads texts of their full length
    text = calibration_file(tmp_path)
    asked = {"sparsity": Sparsity.parse("dass:2:4"), "bits": 4, "calibration": text}
    straight = export(ExportConfig(tiny_model, tmp_path / "straight", **asked))
    kill_after(1, tiny_model, tmp_path / "killed")
    resumed = export(ExportConfig(tiny_model, tmp_path / "killed", **asked))
    assert resumed["quality"] == straight["quality"]


def test_layer_errors_are_those_of_the_states(tiny_model: Path, tmp_path: Path) -> None:
    facts = make_bundle(tiny_model, tmp_path / "bundle", bits=4)
    checkpoint = open_checkpoint(tiny_model)
    placed = read_placed(tmp_path / "bundle")
    arch, packed = checkpoint.architecture, PackedSource(tmp_path / "bundle" / "model.onnx.data", placed)
    ids = torch.randint(0, 320, (3, 40), generator=torch.Generator().manual_seed(0))
    _, errors = drift(arch, checkpoint, packed, ids)
    ours, theirs = (hidden_states(arch, source, [ids])[0] for source in (packed, checkpoint))
    assert errors[-1] == pytest.approx(float(((ours - theirs).norm(dim=-1) / theirs.norm(dim=-1)).median()), rel=1e-4)
    assert len(errors) == len(facts["quality"]["layer_errors"]) == arch.layers
    assert 0 < errors[0] < errors[1]
    assert drift(arch, checkpoint, checkpoint, ids)[1] == [0.0, 0.0]


@pytest.mark.parametrize("json", [True, False])
def test_a_loss_above_the_gate_leaves_nothing(json: bool, tiny_model: Path, tmp_path: Path) -> None:
    text = calibration_file(tmp_path)
    command = ["export", str(tiny_model), str(tmp_path / "bundle"), "--sparsity", "magnitude:2:4", "--bits", "4"]
    # Which way a recipe moves the perplexity of random weights is chance: this one loses 7 %, the usual one nothing.
    command += ["--calibration", str(text), "--recover", "sparsegpt", "--max-loss"]
    refused = CliRunner().invoke(main, [*command, "0", *(["--json"] if json else [])])
    assert refused.exit_code == 1
    assert "--max-loss allows 0" in refused.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["calibration.txt"]
    with pytest.raises(BundleError):
        read_manifest(tmp_path / "bundle")
    passed = CliRunner().invoke(main, [*command, "100"])
    assert passed.exit_code == 0, passed.stderr
    assert "dense 3 bits" in passed.stdout
    assert read_manifest(tmp_path / "bundle").quality is not None


@pytest.mark.parametrize(
    ("asked", "dense4", "expected"),
    [
        (dict(sparsity=Sparsity.parse("dass:2:4")), 10.5, "Dense layers of 4 bits have 10.50"),
        (dict(sparsity=Sparsity.parse("dass:2:4")), 12.5, "Use --bits 8"),
        (dict(bits=4), 10.5, "Use --bits 8"),
    ],
)
def test_the_refusal_names_what_would_do(asked: dict[str, Any], dense4: float, expected: str) -> None:
    config = ExportConfig(Path("model"), Path("out"), max_loss=0.1, **asked)
    quality = {"perplexity": 11.01, "dense_perplexity": 10.0}
    quality |= {"references": [{"name": "dense 4 bits", "perplexity": dense4}]}  # type: ignore[dict-item]
    with pytest.raises(EdgellmError) as caught:
        refuse_loss(config, quality)
    assert expected in caught.value.hint
    refuse_loss(config, quality | {"perplexity": 10.99})
    with pytest.raises(EdgellmError):
        refuse_loss(config, quality | {"perplexity": float("nan")})


def test_a_gate_below_zero_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="--max-loss"):
        ExportConfig(Path("model"), Path("out"), max_loss=-0.1)


class Page(HTMLParser):
    """Tags that are opened and closed, and every attribute that could name something outside."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.seen: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.links += [str(value) for name, value in attrs if name in ("href", "src", "action", "data", "srcset")]
        if tag not in ("meta", "link", "img", "br", "input"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_report_is_one_page_that_needs_nothing_else(tiny_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    facts = make_bundle(tiny_model, out, "dass:2:4", bits=4)
    text = (out / "report.html").read_text(encoding="utf-8")
    assert facts["files"]["report.html"] == vars(file_facts(out / "report.html"))
    page = Page(text)
    assert page.open == []
    assert page.links == []
    assert not re.search(r"https?:|//|@import|url\(", text)
    assert {"script", "iframe", "link", "img", "object"}.isdisjoint(page.seen)
    assert page.seen.count("svg") == 2
    assert page.seen.count("circle") == 3  # the bundle, dense 4 and dense 3
    assert page.seen.count("rect") == 2  # layers
    for told in (facts["quality"]["perplexity"], facts["quality"]["dense_perplexity"]):
        assert f"{told:.3f}" in text
    (out / "report.html").write_text(text + " ")
    with pytest.raises(BundleError, match=r"report\.html"):
        read_manifest(out)


def test_names_of_the_checkpoint_are_text_in_the_report(tiny_model: Path, tmp_path: Path) -> None:
    facts = make_bundle(tiny_model, tmp_path / "bundle", bits=8)
    facts["model"]["name"] = '<script>alert("x")</script>'
    page = report(parse(facts))
    assert "<script" not in page
    assert "Perplexity" in page
    facts["quality"], facts["parity"] = None, None
    assert "Perplexity" not in report(parse(facts))


@pytest.fixture(autouse=True)
def short_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "FROM_FILE", (10, 64))
