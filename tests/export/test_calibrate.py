from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tests.conftest import ROOT
from tokenizers import Tokenizer

from edgellm.export import calibrate, decoder
from edgellm.export.checkpoint import open_checkpoint
from edgellm.export.vocabulary import embed
from edgellm.runtime.errors import EdgellmError

C4 = ROOT.parent / "shared" / "data" / "c4-300.json"


def test_statistics_equal_what_hooks_on_transformers_see(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import LlamaForCausalLM

    ids = torch.randint(0, 320, (5, 24), generator=torch.Generator().manual_seed(0))
    model = LlamaForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    names = {"self_attn": ("q", "k", "v", "o"), "mlp": ("gate", "up", "down")}
    sums: dict[str, torch.Tensor] = {}
    for part, roles in names.items():
        for role in roles:
            linear = getattr(getattr(model.model.layers[1], part), f"{role}_proj")
            linear.register_forward_pre_hook(
                lambda _, inputs, role=role: sums.update({role: inputs[0].double().square().sum((0, 1))})
            )
    with torch.no_grad():
        model(ids)

    monkeypatch.setattr(calibrate, "TOKENS_AT_ONCE", 48)  # two sequences at a time, and one left over
    checkpoint = open_checkpoint(tiny_model)
    arch = checkpoint.architecture
    x = embed(arch, checkpoint, ids)
    decoder.propagate(arch, 0, decoder.load_block(arch, checkpoint, 0), x)
    before = x.clone()
    found = calibrate.statistics(arch, 1, decoder.load_block(arch, checkpoint, 1), x)
    assert torch.equal(x, before)
    assert set(found) == set(sums)
    for role, total in sums.items():
        assert found[role].dtype == torch.float64
        torch.testing.assert_close(found[role], total / 5, rtol=1e-4, atol=1e-6)


DOCUMENTS = [
    "The weights of a small model are random.\n",
    "Numbers such as 12 or 2024.",
    "日本語 and more text here. " * 9,
]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("list.json", json.dumps([{"text": text, "url": "x"} for text in DOCUMENTS], indent=1)),
        ("strings.json", json.dumps(DOCUMENTS)),
        ("lines.jsonl", "\n".join(json.dumps({"text": text}) for text in DOCUMENTS) + "\n\n"),
        ("lines.json", "\n".join(json.dumps(text) for text in DOCUMENTS)),
        ("plain.txt", "".join(text + "\n\n" for text in DOCUMENTS)),
        ("plain", "".join(text + "\n\n" for text in DOCUMENTS)),
    ],
)
def test_every_format_gives_the_same_tokens(name: str, content: str, tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    text = open_checkpoint(tiny_model).tokenizer_json()
    ids = calibrate.calibration_ids(text, tmp_path / name, 4, 16)
    assert (ids.shape, ids.dtype) == ((4, 16), torch.int64)
    start = Tokenizer.from_str(text).decode(ids.flatten().tolist())
    assert "".join(document + "\n\n" for document in DOCUMENTS).startswith(start)


def test_text_that_looks_like_json_is_text_when_named_so(tiny_model: Path, tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text('["not", a list] ' * 20)
    assert calibrate.calibration_ids(open_checkpoint(tiny_model).tokenizer_json(), file, 1, 16).shape == (1, 16)


def test_a_short_file_gives_fewer_sequences_and_too_short_an_error(tiny_model: Path, tmp_path: Path) -> None:
    text = open_checkpoint(tiny_model).tokenizer_json()
    file = tmp_path / "short.txt"
    file.write_text("12345678 " * 5)
    tokens = len(Tokenizer.from_str(text).encode("12345678 " * 5).ids)
    assert calibrate.calibration_ids(text, file, 100, 16).shape == (tokens // 16, 16)
    with pytest.raises(EdgellmError, match=f"holds {tokens} tokens; one calibration sequence needs 1000"):
        calibrate.calibration_ids(text, file, 1, 1000)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("broken.json", b'[{"text": "a"}, ', "is not a text, a JSON list"),
        ("broken.jsonl", b'{"text": "a"}\n{"text"\n', "is not a text, a JSON list"),
        ("other.json", b'[{"content": "a"}]', 'nor an object with "text"'),
        ("bytes.txt", b"\xff\xfe\x00a", "is not a text"),
    ],
)
def test_malformed_files_are_refused(name: str, content: bytes, message: str, tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    text = open_checkpoint(tiny_model).tokenizer_json()
    with pytest.raises(EdgellmError, match=message):
        calibrate.calibration_ids(text, tmp_path / name, 2, 16)
    with pytest.raises(EdgellmError, match="does not exist"):
        calibrate.calibration_ids(text, tmp_path / "nothing", 2, 16)


@pytest.mark.skipif(not C4.exists(), reason="the shared data set is not here")
def test_the_shared_c4_sample_reads(tiny_model: Path) -> None:
    assert calibrate.calibration_ids(open_checkpoint(tiny_model).tokenizer_json(), C4, 8, 128).shape == (8, 128)
