"""Outside the table: Optimum's exporter where it is installed and works, else an error that names what would help."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from tests.bundles import calibration_file
from tests.conftest import TEMPLATE, tiny_tokenizer, write_folder
from tests.export.optimum import export

from edgellm.devices.host import detect
from edgellm.export.config import ExportConfig, Sparsity
from edgellm.export.fallback import HONOURED, check_loss, outside_the_table, refuse_settings
from edgellm.export.fallback_room import weights
from edgellm.export.family import supported
from edgellm.export.fit import Room
from edgellm.export.hf_folder import HfFolder
from edgellm.runtime import load
from edgellm.runtime.cli import main
from edgellm.runtime.errors import EdgellmError, UsageError

SIZES = {"vocab_size": 320, "bos_token_id": 1, "eos_token_id": 0}
# model_type -> (transformers' class, its sizes)
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt_neox": ("GPTNeoX", dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128,
                                 max_position_embeddings=256)),
    "opt": ("OPT", dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, ffn_dim=128, pad_token_id=0,
                        max_position_embeddings=256, word_embed_proj_dim=64)),
    "gpt2": ("GPT2", dict(n_embd=64, n_layer=2, n_head=4, n_positions=256)),
}  # fmt: skip
SUFFIX = {"gpt2": "LMHeadModel"}
PROMPTS = ["The stairs are many, 31 of them.", "A", "He writes letters that nobody reads; he reads books " * 4]


def write_checkpoint(folder: Path, model_type: str, seed: int = 0) -> torch.nn.Module:
    """A tiny random model as transformers writes it, and the tiny tokenizer; returns the model."""
    transformers = pytest.importorskip("transformers")
    stem, sizes = MODELS[model_type]
    torch.manual_seed(seed)
    settings = getattr(transformers, f"{stem}Config")(**SIZES, **sizes)
    model = getattr(transformers, stem + SUFFIX.get(model_type, "ForCausalLM"))(settings).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():  # as a trained model's: logits spread, rounding breaks few ties
            if weight.dim() == 2:
                vocabulary = weight.shape[0] == SIZES["vocab_size"]
                weight.normal_(0, 0.4 if vocabulary else 0.125)
            elif name.endswith("bias"):
                weight.normal_(0, 0.1)
    transformers.utils.logging.disable_progress_bar()
    model.save_pretrained(folder)
    tiny_tokenizer().save(str(folder / "tokenizer.json"))
    named = {"bos_token": "<|im_start|>", "eos_token": "<|endoftext|>", "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **named}))
    return model


@dataclass
class Made:
    source: Path
    bundle: Path
    model: Any
    printed: dict[str, Any]


@pytest.fixture(scope="module", params=MODELS)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A bundle at 8 bits by the command line, its text written by the model."""
    folder = tmp_path_factory.mktemp(request.param)
    model = write_checkpoint(folder / "model", request.param)
    done = export(folder / "model", folder / "bundle", "--bits", "8", "--json")
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in folder.iterdir()) == ["bundle", "model"]  # nothing else is left
    return Made(folder / "model", folder / "bundle", model, json.loads(done.stdout))


def torch_logits(model: Any, ids: list[int]) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].numpy()


@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_tokens_are_transformers_own(made: Made, prompt: str) -> None:
    session = load(made.bundle, threads=1, verify=True)
    text = session.encode(prompt)
    start, logits = len(text), session.extend(text)
    for _ in range(16):
        text.append(int(logits.argmax()))
        logits = session.step(text[-1])
    rows, chosen = torch_logits(made.model, text)[start - 1 : -1], text[start:]
    missed = rows.max(axis=1) - rows[np.arange(len(chosen)), chosen]
    assert (missed > 0).sum() <= 1  # rounding may break one tie, where torch itself hardly prefers its token
    assert missed.max() < 0.3


def test_logits_are_torchs_but_for_rounding(made: Made) -> None:
    session = load(made.bundle, threads=1)
    ids = session.encode(PROMPTS[2])
    expected, got = torch_logits(made.model, ids), session.logits(ids)
    assert np.linalg.norm(got - expected) < 0.05 * np.linalg.norm(expected)
    assert made.printed["parity"]["logit_error"] < 1e-4  # before rounding
    assert made.printed["parity"]["greedy_agreement"] == made.printed["parity"]["prompts"] == 22


def test_the_manifest_says_what_it_is(made: Made) -> None:
    session = load(made.bundle, threads=1)
    manifest, model = session.manifest, session.manifest.model
    assert manifest.graph == "optimum"
    assert (model.layers, model.hidden, model.heads, model.kv_heads, model.head_dim) == (2, 64, 4, 4, 16)
    assert (model.vocabulary, model.context, model.ff) == (320, 256, 256 if model.architecture == "gpt2" else 128)
    assert model.parameters == sum(weight.numel() for weight in made.model.parameters())
    assert (manifest.recipe.sparsity, manifest.recipe.bits, manifest.recipe.head_bits) == ("none", 8, 8)
    assert (manifest.kv.policy, manifest.kv.budget) == ("full", 256)
    assert manifest.chat is not None
    quality = manifest.quality
    assert quality is not None
    assert quality.perplexity == pytest.approx(quality.dense_perplexity, rel=0.05)


def test_every_linear_layer_is_rounded_and_counted(made: Made) -> None:
    manifest = load(made.bundle, threads=1).manifest
    named = [(name, w) for name, w in made.model.named_parameters() if w.dim() == 2]
    inner = [w for name, w in named if not re.search("embed|wte|wpe|lm_head", name)]
    rounded = {m.name: m for m in manifest.matrices if m.bits == 8}
    head = rounded.pop("head")
    assert (head.n_out, head.k_in, head.bytes) == (320, 64, 320 * (64 + 4 + 1))  # a float32 scale and a zero point
    assert sorted(m.n_out * m.k_in for m in rounded.values()) == sorted(w.numel() for w in inner)
    floats = {m.bits for m in manifest.matrices if m.name not in ("head", *rounded)}
    assert floats == {16}


def test_a_conversation_reuses_the_cache(made: Made) -> None:
    result = CliRunner().invoke(
        main, ["chat", str(made.bundle), "-n", "6", "--threads", "1", "--json"], input="Hello\nAgain\n"
    )
    assert result.exit_code == 0, result.stderr
    first, second = json.loads(result.stdout)["turns"]
    assert first["reused_tokens"] == 0
    assert second["reused_tokens"] >= first["prompt_tokens"] + first["new_tokens"] - 1


def test_the_verbs_work_and_say_that_it_is_a_fallback(made: Made, tmp_path: Path) -> None:
    bundle, run = str(made.bundle), CliRunner().invoke
    text = str(calibration_file(tmp_path))
    assert "Optimum's, a fallback" in run(main, ["inspect", bundle, "--verify"]).stdout
    assert json.loads(run(main, ["inspect", bundle, "--json"]).stdout)["graph"] == "optimum"
    scored = json.loads(
        run(main, ["eval", bundle, "--text", text, "--window", "64", "--threads", "1", "--json"]).stdout
    )
    assert scored["tokens"] > 1000
    cache = str(tmp_path / "cache")
    assert run(main, ["cache-prompt", bundle, "-p", "The sea", "-o", cache, "--threads", "1"]).exit_code == 0
    asked = ["generate", bundle, "-p", "The sea is", "-n", "4", "--threads", "1", "--json"]
    plain, cached = (json.loads(run(main, [*asked, *more]).stdout) for more in ([], ["--prompt-cache", cache]))
    assert cached["reused_tokens"] > 0
    assert cached["text"] == plain["text"]
    long = run(main, ["generate", bundle, "-p", "word " * 400])
    assert (long.exit_code, "the model's context holds 256" in long.stderr) == (1, True)


def test_four_bits_with_a_text_to_measure_with(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "model", "gpt2")
    text = calibration_file(tmp_path)
    settings = ["--bits", "4", "--kv", "full:128", "--calibration", text]
    killed = tmp_path / ".bundle.partial" / "floats.partial"  # of an export to the same folder that was killed
    killed.mkdir(parents=True)
    done = export(tmp_path / "model", tmp_path / "bundle", *settings)
    assert done.returncode == 0, done.stderr
    assert '"gpt2" is not in the table: Optimum\'s graph' in " ".join(done.stdout.split())
    assert not killed.parent.exists()
    manifest = load(tmp_path / "bundle", threads=1).manifest
    assert {m.name: m.bits for m in manifest.matrices if m.name in ("head", "layers.1.attn.c_attn")} == {
        "head": 8, "layers.1.attn.c_attn": 4,
    }  # fmt: skip
    assert manifest.quality is not None
    assert manifest.quality.text == "held out from calibration.txt"
    assert manifest.kv.budget == 128


def test_a_kind_optimum_does_not_know_names_the_nearest(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "model", model_type="lama")
    done = export(source, tmp_path / "bundle")
    assert done.returncode == 1
    assert 'error: architecture "lama" is not supported (Optimum cannot export it: ' in done.stderr
    assert 'The nearest is "llama". Convert a model of a supported architecture' in done.stderr  # nothing to install
    assert "Traceback" not in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_code_in_the_folder_is_not_run(tmp_path: Path) -> None:
    code = {"AutoConfig": "mine.MineConfig", "AutoModelForCausalLM": "mine.Mine"}
    source = write_folder(tmp_path / "model", model_type="mine", auto_map=code)
    (source / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    done = export(source, tmp_path / "bundle")
    assert done.returncode == 1
    assert 'error: architecture "mine" is not supported (Optimum cannot export it: ' in done.stderr
    assert not (tmp_path / "ran").exists()


# Without Optimum.


@pytest.fixture
def no_optimum(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optimum", None)


@pytest.fixture
def another_optimum(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A package of that name; write its optimum/exporters/onnx.py."""
    folder = tmp_path / "site" / "optimum" / "exporters"
    folder.mkdir(parents=True)
    had = {name: sys.modules.pop(name) for name in [*sys.modules] if name.split(".")[0] == "optimum"}
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setitem(sys.modules, "onnx_ir", ModuleType("onnx_ir"))  # comes with Optimum's extra
    yield folder / "onnx.py"
    for name in [name for name in sys.modules if name.split(".")[0] == "optimum"]:
        del sys.modules[name]
    sys.modules.update(had)


def told(folder: Path, *more: str) -> tuple[int, list[str]]:
    result = CliRunner().invoke(main, ["export", str(folder), str(folder.parent / "out"), *more])
    assert not (folder.parent / "out").exists()
    return result.exit_code, [line for line in result.stderr.splitlines() if line.strip()]


def test_without_optimum_the_error_names_what_was_asked_the_nearest_and_what_to_install(
    tmp_path: Path, no_optimum: None
) -> None:
    folder = write_folder(tmp_path / "model", model_type="qwen2_moe")
    assert told(folder) == (1, [
        'error: architecture "qwen2_moe" is not supported; supported: gemma2, gemma3_text, llama, mistral, '
        "phi3, qwen2, qwen3, smollm3",
        'The nearest is "qwen2". Optimum exports others, dense: pip install "edgellm[optimum]". '
        "Convert a model of a supported architecture, or add a file to export/families (docs/architectures.md).",
    ])  # fmt: skip


def test_an_optimum_that_cannot_be_imported_is_told_with_its_reason(tmp_path: Path, another_optimum: Path) -> None:
    another_optimum.write_text("raise ImportError('cannot import name is_tf_available from transformers')")
    code, lines = told(write_folder(tmp_path / "model", model_type="opt"))
    assert code == 1
    assert lines[0].startswith(
        'error: architecture "opt" is not supported (Optimum cannot be imported: cannot import name is_tf_available '
        "from transformers); supported: gemma2, "
    )


def test_without_what_onnxruntimes_quantizer_imports_it_counts_as_not_installed(
    tmp_path: Path, another_optimum: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    another_optimum.write_text("onnx_export_from_model = None")
    monkeypatch.setitem(sys.modules, "onnx_ir", None)
    code, lines = told(write_folder(tmp_path / "model", model_type="opt"))
    assert code == 1
    assert lines[0].startswith('error: architecture "opt" is not supported; supported: ')
    assert 'pip install "edgellm[optimum]"' in lines[1]


def test_a_failing_export_leaves_nothing(tmp_path: Path, another_optimum: Path) -> None:
    another_optimum.write_text(
        "def onnx_export_from_model(model, output, **settings):\n"
        "    output.mkdir()\n    raise ValueError('opt is a custom architecture\\nand more')\n"
    )
    write_checkpoint(tmp_path / "model", "opt")
    code, lines = told(tmp_path / "model")
    assert code == 1
    assert any("(Optimum cannot export it: opt is a custom architecture); supported: gemma2, " in s for s in lines)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "site"]


def test_pickles_are_not_opened(tmp_path: Path, another_optimum: Path) -> None:
    another_optimum.write_text("onnx_export_from_model = None")
    write_checkpoint(tmp_path / "model", "opt")
    (tmp_path / "model" / "model.safetensors").rename(tmp_path / "model" / "pytorch_model.bin")
    code, lines = told(tmp_path / "model")
    assert code == 1
    assert any("holds its weights as a pickle" in line for line in lines)


@pytest.mark.parametrize(
    ("room", "message"),
    [
        (Room(None, 10**5, None), "this machine's free memory is 100 kB, and a model of 0.1 M weights needs "),
        (Room(None, None, 10**5), "the disk of .*out is 100 kB, and a model of 0.1 M weights needs "),
        (Room(10**4, None, None), "the memory of device host for a model is 10 kB, and .* weights needs 52 kB"),
    ],
)
def test_what_does_not_fit_is_told_before_the_work(
    tmp_path: Path, another_optimum: Path, monkeypatch: pytest.MonkeyPatch, room: Room, message: str
) -> None:
    another_optimum.write_text("onnx_export_from_model = None")
    model = write_checkpoint(tmp_path / "model", "opt")
    assert weights(HfFolder(tmp_path / "model")) == sum(weight.numel() for weight in model.parameters())
    monkeypatch.setattr(Room, "of", lambda config: room)
    code, lines = told(tmp_path / "model", "--bits", "4")
    assert code == 1
    assert any(re.search(message, line) for line in lines), lines


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (["--sparsity", "dass:2:4"], "--sparsity dass:2:4"),
        (["--scope", "all"], "--scope all"),
        (["--kv", "window:64"], "--kv window:64"),
    ],
)
def test_settings_that_a_standard_graph_cannot_have_are_usage_errors(
    tmp_path: Path, no_optimum: None, settings: list[str], named: str
) -> None:
    code, lines = told(write_folder(tmp_path / "model", model_type="opt"), *settings)
    assert code == 2
    reason = '"opt" is not in our table and goes through Optimum: dense, with a full KV cache'
    assert lines[0] == f"error: {named}: {reason}"


def test_a_setting_that_comes_later_is_refused_until_it_is_honoured(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Later(ExportConfig):
        soon: str = "none"

    assert {entry.name for entry in fields(ExportConfig)} >= HONOURED
    given = dict(source=tmp_path, out=tmp_path / "x", device=detect(), bits=4, head_bits=4, kv="full:9", seed=3)
    refuse_settings(Later(**given), "opt")
    with pytest.raises(UsageError, match='--soon 300MB: "opt" is not in our table'):
        refuse_settings(Later(**given, soon="300MB"), "opt")
    with pytest.raises(UsageError, match="--sparsity magnitude:2:4"):
        refuse_settings(ExportConfig(**given, sparsity=Sparsity("magnitude", 2, 4)), "opt")


@pytest.mark.parametrize("perplexity", [float("nan"), float("inf"), 2001.0])
def test_rounding_that_leaves_nothing_of_the_model_is_refused(perplexity: float) -> None:
    check_loss(1999.0, 20.0)
    with pytest.raises(EdgellmError, match="the rounded bundle's perplexity is"):
        check_loss(perplexity, 20.0)


def test_what_is_in_the_table_or_no_folder_is_not_outside(tmp_path: Path) -> None:
    for kind in supported():
        folder = tmp_path / kind
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({"model_type": kind}))
        assert outside_the_table(folder) is None
    (folder / "config.json").write_text('{"model_type": "opt"}')
    assert outside_the_table(folder) == "opt"
    (folder / "config.json").write_text("{}")
    assert outside_the_table(folder) is None
    assert outside_the_table(tmp_path / "model.gguf") is None
