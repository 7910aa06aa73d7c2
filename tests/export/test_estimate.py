"""The estimate is what happens; what cannot fit is refused with options that do."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from tests.bundles import make_bundle
from tests.conftest import write_folder

from edgellm.devices.profile import Device, Recipe, load
from edgellm.export import fit, self_written
from edgellm.export.architectures import Architecture, Layer
from edgellm.export.checkpoint import Checkpoint, open_checkpoint
from edgellm.export.config import ExportConfig, Sparsity
from edgellm.export.estimate import Estimate, estimate
from edgellm.export.fit import Room, refuse_unfit, size
from edgellm.export.packed_source import read_placed
from edgellm.export.pipeline import export
from edgellm.export.plan import planned
from edgellm.export.rope import Rope
from edgellm.kernels.layout import Format
from edgellm.runtime.cli import main
from edgellm.runtime.errors import EdgellmError, UsageError

LLAMA_7B = Architecture(
    "llama", "Llama 2 7B", 32, 4096, 32, 32, 128, 11008, 32000, 4096, 1e-5, "silu", False, 128**-0.5,
    (Layer(Rope(1e4, 128)),) * 32,
)  # fmt: skip
LLAMA_70B = replace(
    LLAMA_7B, layers=80, layers_as=LLAMA_7B.layers_as[:1] * 80, hidden=8192, heads=64, kv_heads=8, ff=28672
)
GIGABYTE = 10**9


class Header:
    """A checkpoint that has nothing but its header."""

    chat_template = None

    def __init__(self, architecture: Architecture) -> None:
        self.architecture = architecture

    def stored_format(self, name: str) -> Format | None:
        return None

    def tokenizer_json(self) -> str:
        return "{}"


@pytest.fixture(autouse=True)
def roomy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with 64 GB of free memory and a disk of a terabyte, whatever runs the tests."""
    monkeypatch.setattr(fit, "available_bytes", lambda: 64 * GIGABYTE)
    monkeypatch.setattr(self_written, "available_bytes", lambda: 64 * GIGABYTE)
    monkeypatch.setattr(fit, "peak_rss_bytes", lambda: 0)
    monkeypatch.setattr(fit, "_free_disk", lambda out: 1000 * GIGABYTE)


def config(device: str = "jetson-orin-nano-8gb", **settings: Any) -> ExportConfig:
    return ExportConfig(Path("model"), Path("bundle"), device=load(device), **settings)


@pytest.mark.parametrize(
    ("sparsity", "settings"),
    [
        ("none", {}),
        ("none", {"bits": 4}),
        ("none", {"bits": 8}),
        ("dass:2:4", {"bits": 4}),
        ("magnitude:4:8", {"scope": "all"}),
        ("none", {"kv_bits": 8}),
    ],
)
@pytest.mark.parametrize("kind", ["folder", "gguf", "untied"])
def test_every_tensor_is_planned_as_it_is_packed(
    tiny_model: Path, tiny_gguf: Path, tmp_path: Path, kind: str, sparsity: str, settings: dict[str, Any]
) -> None:
    source = {"folder": tiny_model, "gguf": tiny_gguf}.get(kind) or write_folder(
        tmp_path / "untied", tie_word_embeddings=False
    )
    out = tmp_path / "bundle"
    make_bundle(source, out, sparsity, **settings)
    asked = ExportConfig(source, out, Sparsity.parse(sparsity), **settings)
    found = planned(asked, open_checkpoint(source))
    made = read_placed(out)
    assert {name: (at.format, at.nbytes) for name, at in found.items()} == {
        name: (at.format, at.nbytes) for name, at in made.items()
    }
    assert max(at.offset + at.nbytes for at in found.values()) == pytest.approx(
        (out / "model.onnx.data").stat().st_size, abs=4096
    )
    expected = estimate(open_checkpoint(source), asked)
    files = {file.name: file.stat().st_size for file in out.iterdir()}
    assert expected.weight_bytes == pytest.approx(files["model.onnx.data"], abs=4096)
    # A tiny model is mostly manifest, which is only guessed at.
    rest = sum(files.values()) - files["model.onnx.data"] - files["edgellm.json"]
    assert expected.bundle_bytes - expected.weight_bytes == pytest.approx(rest + 6500, abs=2000)


def test_gate_and_up_stored_apart_are_planned_alike(tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = open_checkpoint(tiny_gguf)
    stored = checkpoint.stored_format
    monkeypatch.setattr(checkpoint, "stored_format", lambda name: None if name.endswith("1.up") else stored(name))
    found = planned(ExportConfig(tiny_gguf, Path("bundle")), checkpoint)
    assert found["layers.0.gate_up"].format == Format(256, 64, 4, 32)
    assert found["layers.1.gate_up"].format == Format(256, 64, 8, 64)


def test_queries_keys_and_values_stored_apart_stay_apart(
    tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file may hold v in a wider format than q and k: nothing is rounded again, and one graph serves both layers."""
    for method in ("stored", "stored_format"):
        found = getattr(Checkpoint, method)
        hidden = lambda self, name, *rest, found=found: None if name.endswith("1.v") else found(self, name, *rest)  # noqa: E731
        monkeypatch.setattr(Checkpoint, method, hidden)
    out = tmp_path / "bundle"
    facts = make_bundle(tiny_gguf, out)
    names = {m["name"] for m in facts["matrices"]}
    assert {"layers.0.qkv", "layers.1.q", "layers.1.v"} <= names
    assert "layers.1.qkv" not in names
    planned_here = planned(ExportConfig(tiny_gguf, out), open_checkpoint(tiny_gguf))
    assert {n for n, at in planned_here.items() if at.format} == names


def test_the_device_side() -> None:
    expected = estimate(Header(LLAMA_7B), config(bits=8))  # type: ignore[arg-type]
    weights = 6_738_415_616 * 8.25 / 8
    assert expected.kv == "full:4096"
    assert expected.weight_bytes == pytest.approx(weights, rel=1e-3)
    assert expected.kv_bytes == 32 * 32 * (4096 + 256) * (2 * 128 * 2 + 4)
    assert expected.device_bytes == pytest.approx(weights + expected.kv_bytes, rel=0.02)
    # An untied embedding gives a token one row; a tied one is the head, and read whole.
    assert expected.token_bytes == pytest.approx(weights - 32000 * 4096 * 8.25 / 8, rel=1e-3)
    tied = estimate(Header(replace(LLAMA_7B, tied=True)), config(bits=8))  # type: ignore[arg-type]
    assert tied.token_bytes == pytest.approx(expected.token_bytes, rel=1e-4)
    assert expected.tokens_per_s == pytest.approx(102e9 / expected.token_bytes)
    cache = 32 * 32 * 4096 * (2 * 128 * 2 + 4)
    assert expected.tokens_per_s_full_cache == pytest.approx(102e9 / (expected.token_bytes + cache))


def test_a_cache_of_8_bits_is_half() -> None:
    expected = estimate(Header(LLAMA_7B), config(bits=8, kv_bits=8))  # type: ignore[arg-type]
    assert expected.kv_bytes == 32 * 32 * (4096 + 256) * (2 * (128 + 4) + 4)
    wide = estimate(Header(LLAMA_7B), config(bits=8))  # type: ignore[arg-type]
    assert wide.device_bytes - expected.device_bytes == wide.kv_bytes - expected.kv_bytes
    with pytest.raises(UsageError, match="KV bits is 4"):
        config(kv_bits=4)


def test_the_devices_budget_is_the_default_and_gives_way_to_the_users() -> None:
    header: Any = Header(replace(LLAMA_7B, context=131072))
    assert estimate(header, config()).kv == "full:4096"
    assert estimate(header, config(kv="full")).kv == "full:131072"
    assert estimate(header, config("dgx-spark")).kv == "full:131072"
    assert estimate(Header(replace(LLAMA_7B, context=2048)), config()).kv == "full:2048"  # type: ignore[arg-type]


def test_a_device_of_unknown_bandwidth_has_no_speed() -> None:
    board = replace(load("raspberry-pi-5"), bandwidth_gb_s=None)
    expected = estimate(Header(LLAMA_7B), replace(config(), device=board))  # type: ignore[arg-type]
    assert expected.tokens_per_s is None
    assert expected.tokens_per_s_full_cache is None


def test_host_memory_is_that_of_a_block_whatever_the_depth() -> None:
    header: Any = Header(LLAMA_7B)
    file = Path("text.txt")
    from_file, calibrated = (estimate(header, config(calibration=file, sparsity=Sparsity(*nm)))
                             for nm in (("none",), ("dass", 2, 4)))  # fmt: skip
    held = [found.host_bytes - found.host_mapped_bytes for found in (from_file, estimate(header, config()), calibrated)]
    assert held == sorted(held)
    assert held[1] < 2.5 * GIGABYTE
    deep: Any = Header(replace(LLAMA_7B, layers=64, layers_as=LLAMA_7B.layers_as * 2))
    deeper = estimate(deep, config(calibration=file))
    assert deeper.host_bytes - deeper.host_mapped_bytes < held[0] + 100_000_000  # positions of the cache
    assert from_file.seconds < calibrated.seconds


def test_a_small_model_writes_its_text_from_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    small: Any = Header(replace(LLAMA_7B, layers=2, layers_as=LLAMA_7B.layers_as[:2], vocabulary=1000, ff=4096))
    sampled = estimate(small, config())
    assert sampled.host_bytes > 4 * small.architecture.parameters
    monkeypatch.setattr(self_written, "available_bytes", lambda: GIGABYTE)  # blocks are read again at every step
    assert estimate(small, config()).host_bytes < sampled.host_bytes
    assert estimate(small, config()).seconds > sampled.seconds


def refusal(architecture: Architecture, asked: ExportConfig) -> tuple[str, str]:
    header: Any = Header(architecture)
    with pytest.raises(EdgellmError) as caught:
        refuse_unfit(header, asked, estimate(header, asked))
    assert caught.value.exit_code == 1
    return caught.value.what, caught.value.hint


def test_a_model_too_large_for_the_device() -> None:
    what, hint = refusal(LLAMA_7B, config())
    assert what == (
        "jetson-orin-nano-8gb has 6.4 GB of memory for a model, and this one needs 9.3 GB: "
        "weights 6.9 GB, KV cache 2.3 GB (full:4096)"
    )
    assert hint == (
        "What would fit: --bits 4 (6.2 GB); --bits 4 --head-bits 4 (6.2 GB); --bits 4 --sparsity dass:2:4 (5.5 GB)."
    )


def test_a_cache_too_large_for_the_device() -> None:
    what, hint = refusal(replace(LLAMA_7B, kv_heads=8, context=131072), config("jetson-orin-nx-16gb", kv="full"))
    assert what == (
        "jetson-orin-nx-16gb has 13.7 GB of memory for a model, and this one needs 23.5 GB: "
        "weights 6.1 GB, KV cache 17.3 GB (full:131072)"
    )
    assert hint == (
        "What would fit: --kv window:57408 (13.7 GB); --kv window:110784 --kv-bits 8 (13.7 GB); "
        "--bits 4 --kv window:77504 (13.7 GB)."
    )


def test_a_model_no_setting_makes_fit() -> None:
    what, hint = refusal(LLAMA_70B, config("raspberry-pi-5"))
    assert what.startswith("raspberry-pi-5 has 6.9 GB of memory for a model, and this one needs 72")
    assert hint == (
        "What would fit: --device dgx-spark (72.5 GB); --device jetson-agx-thor (72.5 GB); "
        "a model of up to about 12 B parameters."
    )


def test_a_disk_too_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit, "_free_disk", lambda out: 5 * GIGABYTE)
    what, hint = refusal(LLAMA_7B, config("dgx-spark"))
    assert what == "the disk of bundle has 5.0 GB free, and the export needs 6.9 GB"
    assert hint == (
        "What would fit: --bits 4 (3.9 GB); --bits 4 --head-bits 4 (3.8 GB); --bits 4 --sparsity dass:2:4 (3.2 GB)."
    )
    monkeypatch.setattr(fit, "_free_disk", lambda out: GIGABYTE // 20)
    assert refusal(LLAMA_7B, config("dgx-spark"))[1] == (
        "What would fit: an OUT on a disk with 6.9 GB free; a model of up to about 0.1 B parameters."
    )


def test_a_host_too_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit, "available_bytes", lambda: GIGABYTE)
    monkeypatch.setattr(self_written, "available_bytes", lambda: GIGABYTE)
    what, hint = refusal(LLAMA_7B, config("dgx-spark"))
    assert re.fullmatch(r"this machine has 1\.0 GB of memory free, and the export needs \d\.\d GB", what)
    assert re.fullmatch(
        r"What would fit: a machine with \d\.\d GB of memory free; a model of up to about \d\.\d B parameters\.", hint
    )


def test_training_is_left_out_where_only_it_is_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    header: Any = Header(LLAMA_7B)
    trained = config("dgx-spark", bits=4, calibration=Path("text"), recover="distill")
    most, least = (estimate(header, one).host_bytes for one in (trained, replace(trained, recover="sparsegpt")))
    assert least < most
    monkeypatch.setattr(fit, "available_bytes", lambda: (least + most) // 2)
    what, hint = refusal(LLAMA_7B, trained)
    assert "of memory free" in what
    assert "--recover sparsegpt" in hint.split(";")[0]


def pairs(words: list[str]) -> dict[str, str]:
    return dict(zip(words[::2], words[1::2], strict=True))


@pytest.mark.parametrize("memory", [5, 6.4, 8, 10])
@pytest.mark.parametrize("free", [3, 4, 6, 1000])
def test_every_option_fits(monkeypatch: pytest.MonkeyPatch, memory: float, free: float) -> None:
    monkeypatch.setattr(fit, "_free_disk", lambda out: int(free * GIGABYTE))
    board = replace(load("dgx-spark"), name="board", memory_bytes=int(memory * GIGABYTE), usable_share=1.0)
    header: Any = Header(LLAMA_7B)
    asked = replace(config(), device=board)
    room = Room.of(asked)
    before = estimate(header, asked)
    if room.short(before) is None:
        refuse_unfit(header, asked, before)
        return
    _, hint = refusal(LLAMA_7B, asked)
    options = hint.removeprefix("What would fit: ").removesuffix(".").split("; ")
    assert 2 <= len(options) <= 3
    for option in options:
        flags = pairs(option.split(" (")[0].split()) if option.startswith("--") else {}
        if not flags or "--device" in flags:
            continue
        changes = {name.strip("-").replace("-", "_"): text for name, text in flags.items()}
        typed: dict[str, Any] = {
            key: {"bits": int, "head_bits": int, "kv_bits": int, "sparsity": Sparsity.parse}.get(key, str)(text)
            for key, text in changes.items()
        }
        assert room.short(estimate(header, replace(asked, **typed))) is None, option


def test_what_is_not_known_refuses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit, "available_bytes", lambda: None)
    monkeypatch.setattr(fit, "_free_disk", lambda out: None)
    unknown = Device("host", "", None, 0.8, None, 1, "")
    header: Any = Header(LLAMA_70B)
    asked = replace(config(), device=unknown)
    refuse_unfit(header, asked, estimate(header, asked))


def test_the_disk_is_that_of_the_nearest_folder_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert (fit._free_disk(tmp_path / "a" / "b") or 0) > 0


def test_nothing_is_written_when_it_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    board = replace(load("raspberry-pi-5"), memory_bytes=25_000_000)
    told: list[Estimate] = []
    with pytest.raises(EdgellmError, match="raspberry-pi-5 has 20 MB of memory for a model"):
        export(ExportConfig(tiny_model, tmp_path / "new" / "bundle", device=board), announce=told.append)
    assert len(told) == 1
    assert not (tmp_path / "new").exists()


def test_the_command_tells_the_estimate_first_and_names_the_device(tiny_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    shown = CliRunner().invoke(main, ["export", str(tiny_model), str(out), "--device", "raspberry-pi-5", "--json"])
    assert shown.exit_code == 0, shown.output
    told = json.loads(shown.stdout)
    assert told["device"] == told["estimate"]["device"] == "raspberry-pi-5"
    assert json.loads((out / "edgellm.json").read_bytes())["device"] == "raspberry-pi-5"
    assert set(told["estimate"]) == set(Estimate.__dataclass_fields__)
    assert shown.stderr.index("estimate") < shown.stderr.index("text ")
    for line in ("at most", "of 6.9 GB for a model", "mapped files", "roughly"):
        assert line in shown.stderr


def test_an_unknown_device_is_wrong_usage(tiny_model: Path, tmp_path: Path) -> None:
    shown = CliRunner().invoke(main, ["export", str(tiny_model), str(tmp_path / "b"), "--device", "raspberry"])
    assert shown.exit_code == 2
    assert shown.stderr.startswith('error: device "raspberry" is unknown; known: host, dgx-spark, ')
    assert shown.stderr.endswith("Did you mean raspberry-pi-5?\n")


def test_a_profiles_recipe_is_the_default(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    board = replace(load("raspberry-pi-5"), recipe=Recipe(4, "window:64", "magnitude:2:4"))
    monkeypatch.setattr("edgellm.export.command.find_device", lambda name: board)
    shown = CliRunner().invoke(main, ["export", str(tiny_model), str(tmp_path / "a"), "--json"])
    told = json.loads(shown.stdout)
    assert (told["recipe"]["bits"], told["recipe"]["sparsity"]) == (4, "magnitude:2:4")
    assert told["kv"] == {"policy": "window", "budget": 64, "sinks": 4, "bits": 16}
    given = ["--bits", "8", "--sparsity", "none", "--kv", "full"]
    told = json.loads(
        CliRunner().invoke(main, ["export", str(tiny_model), str(tmp_path / "b"), "--json", *given]).stdout
    )
    assert (told["recipe"]["bits"], told["recipe"]["sparsity"]) == (8, "none")
    assert told["kv"] == {"policy": "full", "budget": 256, "sinks": 4, "bits": 16}


def test_a_budget_beyond_the_context_is_refused_before_the_estimate(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="512 tokens is outside"):
        export(ExportConfig(tiny_model, tmp_path / "bundle", kv="window:512"))


def test_sizes_for_people() -> None:
    assert [size(n) for n in (1500, 98_461_738, 7_300_000_000)] == ["2 kB", "98 MB", "7.3 GB"]
