"""Thirty kinds of bad input at the command line: one clear first line, what to do, exit code 1 or 2, no traceback."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from edgellm.runtime.cli import main
from tests.bundles import calibration_file, make_bundle
from tests.conftest import write_folder

Case = tuple[list[str], int, str]  # arguments, exit code, pattern of the first line


class Desk:
    """A folder with a good checkpoint, a good bundle and a text, to be spoiled."""

    def __init__(self, folder: Path, model: Path, gguf: Path, bundle: Path) -> None:
        self.folder = folder
        self.model = Path(shutil.copytree(model, folder / "model"))
        self.gguf = Path(shutil.copy(gguf, folder / "tiny.gguf"))
        self.bundle = Path(shutil.copytree(bundle, folder / "bundle"))
        self.text = calibration_file(folder)

    def config(self, **changes: object) -> Path:
        path = self.model / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
        return self.model

    def weights(self, change: Callable[[dict[str, torch.Tensor]], object]) -> Path:
        tensors = load_file(self.model / "model.safetensors")
        change(tensors)
        save_file(tensors, self.model / "model.safetensors")
        return self.model

    def export(self, source: object, *more: str) -> list[str]:
        return ["export", str(source), str(self.folder / "out"), "--calibration", str(self.text), *more]

    def spoilt(self, name: str, change: Callable[[bytes], bytes]) -> list[str]:
        path = self.bundle / name
        path.write_bytes(change(path.read_bytes()))
        return self.generate()

    def generate(self, *more: str) -> list[str]:
        return ["generate", str(self.bundle), "-p", "hello", "-n", "4", *more]


def wrong(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


KINDS: dict[str, Callable[[Desk], Case]] = {
    "no such source": lambda d: (d.export(d.folder / "nothing"), 1, "nothing does not exist"),
    "an empty folder": lambda d: (d.export(Path(shutil.copytree(d.folder / "bundle" / "..", d.folder / "x",
        ignore=lambda *_: ["model", "tiny.gguf", "bundle", "calibration.txt"]))), 1, "x has no config.json"),
    "a bundle as source": lambda d: (d.export(d.bundle), 1, "bundle has no config.json"),
    "a text as gguf": lambda d: (d.export(d.text), 1, r"calibration.txt is not a GGUF file"),
    "a truncated gguf": lambda d: (d.export(wrong(d.gguf, d.gguf.read_bytes()[:20_000])), 1, "truncated"),
    "a pickle": lambda d: (d.export(wrong(d.folder / "model.bin", b"\x80\x04")), 1, "model.bin is a pickle"),
    "a pickle folder": lambda d: (d.export((d.model / "model.safetensors").rename(d.model / "a.bin").parent), 1,
        "holds its weights as a pickle"),
    "loose weights": lambda d: (d.export(d.model / "model.safetensors"), 1, "model.safetensors holds weights only"),
    "a missing shard": lambda d: (d.export(wrong(d.model / "model.safetensors.index.json",
        b'{"weight_map": {"a": "model-2.safetensors"}}').parent), 1, "shard model-2.safetensors is missing"),
    "a truncated safetensors": lambda d: (d.export(wrong(d.model / "model.safetensors",
        (d.model / "model.safetensors").read_bytes()[:5000]).parent), 1, "truncated or damaged"),
    "NaN weights": lambda d: (d.export(d.weights(lambda t: t["model.layers.1.mlp.up_proj.weight"].fill_(torch.nan))), 1,
        r"layers\.1\.up holds NaN"),
    "a missing tensor": lambda d: (d.export(d.weights(lambda t: t.pop("model.norm.weight"))), 1,
        r"tensor model\.norm\.weight is missing"),
    "a tensor too many": lambda d: (d.export(d.weights(lambda t: t.update(lora_A=torch.zeros(2, 2)))), 1,
        "llama has no tensor lora_A"),
    "an unknown architecture": lambda d: (d.export(d.config(model_type="lama")), 1, '"lama" is not supported'),
    "a quantized folder": lambda d: (d.export(d.config(quantization_config={"bits": 4})), 1, "quantization_config"),
    "unknown rotary scaling": lambda d: (d.export(d.config(rope_scaling={"rope_type": "longrope"})), 1, '"longrope"'),
    "an unreadable config": lambda d: (d.export(wrong(d.model / "config.json", b"{").parent), 1, "is not JSON"),
    "no tokenizer": lambda d: (d.export((d.model / "tokenizer.json").rename(d.folder / "t").parent / "model"), 1,
        "has no tokenizer.json"),
    "an unreadable tokenizer": lambda d: (d.export(wrong(d.model / "tokenizer.json", b"{}").parent), 1,
        "tokenizer.json does not load"),
    "a size no tile holds": lambda d: (d.export(write_folder(d.folder / "odd", intermediate_size=96)), 1,
        "96 inputs do not divide by 64"),
    "no calibration file": lambda d: (["export", str(d.model), str(d.folder / "out"), "--calibration", "none.txt"], 1,
        "none.txt does not exist"),
    "too short a calibration": lambda d: (["export", str(d.model), str(d.folder / "out"), "--calibration",
        str(wrong(d.folder / "s.txt", b"short"))], 1, "one calibration sequence needs 256"),
    "an output that exists": lambda d: (["export", str(d.model), str(d.bundle)], 1, "bundle already exists"),
    "unknown sparsity": lambda d: (d.export(d.model, "--sparsity", "topk:2:4"), 2, "is not METHOD:N:M"),
    "N:M no tile holds": lambda d: (d.export(d.model, "--sparsity", "dass:2:5"), 2, "2:5 sparsity"),
    "bits no tile holds": lambda d: (d.export(d.model, "--bits", "3"), 2, "Usage"),
    "a KV budget too large": lambda d: (d.export(d.model, "--kv", "window:9999"), 2, "9999 tokens is outside"),
    "an unknown KV policy": lambda d: (d.generate("--kv", "lru:64"), 2, 'policy "lru" is unknown'),
    "a bundle that is none": lambda d: (["generate", str(d.model), "-p", "x"], 1, "model is not a bundle"),
    "a truncated bundle": lambda d: (d.spoilt("model.onnx.data", lambda b: b[:99]), 1, "model.onnx.data is truncated"),
    "an edited manifest": lambda d: (d.spoilt("edgellm.json", lambda b: b.replace(b"full", b"open")), 1,
        "does not match"),
    "a prompt too long": lambda d: (["generate", str(d.bundle), "-p", "word " * 400], 1,
        "the model's context holds 256"),
    "a temperature below 0": lambda d: (d.generate("--temperature", "-1"), 2, "temperature is -1.0; expected 0"),
    "no text to score": lambda d: (["eval", str(d.bundle), "--text", "none.txt"], 2, "none.txt cannot be read"),
    "an unknown verb": lambda d: (["genrate", str(d.bundle)], 2, "Did you mean generate"),
}  # fmt: skip


@pytest.fixture(scope="module")
def good_bundle(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("good") / "bundle"
    make_bundle(tiny_model, out, bits=8)
    return out


@pytest.mark.parametrize("kind", KINDS)
def test_one_clear_line_and_an_exit_code(
    kind: str, tiny_model: Path, tiny_gguf: Path, good_bundle: Path, tmp_path: Path
) -> None:
    desk = Desk(tmp_path, tiny_model, tiny_gguf, good_bundle)
    arguments, code, pattern = KINDS[kind](desk)
    result = CliRunner().invoke(main, arguments)
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    told = [line for line in lines if re.search(pattern, line)]
    assert result.exit_code == code, result.stderr
    assert told, result.stderr
    assert "Traceback" not in result.stderr
    assert code == 2 or told[0].startswith("error: ")
    assert not (tmp_path / "out").exists()


def test_there_are_thirty() -> None:
    assert len(KINDS) >= 30
