"""Profiles are complete and sourced; unknown names are told; the host is what the system says."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgellm.devices import host, profile
from edgellm.devices.profile import Device, Recipe, UnknownDeviceError, load, names

BOARDS = [
    "dgx-spark", "jetson-agx-orin-64gb", "jetson-agx-thor", "jetson-orin-nano-8gb", "jetson-orin-nx-16gb",
    "raspberry-pi-5", "rtx-pc", "x86-laptop",
]  # fmt: skip


def test_these_boards_are_known() -> None:
    assert names() == BOARDS


@pytest.mark.parametrize("name", BOARDS)
def test_every_figure_has_a_source_that_is_a_page_or_is_called_an_assumption(name: str) -> None:
    device = load(name)
    assert set(device.figures()) == set(device.sources)
    for figure, source in device.sources.items():
        assert any(mark in source for mark in ("https://", "http://", "assumption", "Data Sheet", "(see ")), figure
    assert device.usable_bytes is not None
    assert 2**32 < device.usable_bytes < 2**37
    assert device.bandwidth_gb_s is not None
    assert (device.compute_capability is None) == (device.tensorrt is None)
    assert device.recipe.kv_for(100) in ("full", "full:100")


def test_an_unknown_name_lists_the_known_ones_and_the_nearest() -> None:
    with pytest.raises(UnknownDeviceError) as caught:
        load("jetson-nano")
    assert str(caught.value) == f'device "jetson-nano" is unknown; known: host, {", ".join(BOARDS)}'
    assert caught.value.nearest == "jetson-orin-nano-8gb"
    with pytest.raises(UnknownDeviceError) as caught:
        load("../pyproject")
    assert caught.value.nearest is None


@pytest.mark.parametrize("text", ["title = 3 = 4", 'title = "no recipe"', "[recipe]\ncolour = 3", "[recipe]"])
def test_a_damaged_file_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    (tmp_path / "board.toml").write_text(text)
    monkeypatch.setattr(profile, "FOLDER", tmp_path)
    with pytest.raises(ValueError, match=r"board\.toml is damaged"):
        load("board")


@pytest.mark.parametrize("wrong", [{"usable_share": 0.0}, {"usable_share": 1.5}, {"cores": 0}, {"memory_bytes": -1}])
def test_impossible_figures_are_refused(wrong: dict[str, float]) -> None:
    facts = {"memory_bytes": 1, "usable_share": 1, "bandwidth_gb_s": 1, "cores": 1, **wrong}
    with pytest.raises(ValueError, match="board: "):
        Device(name="board", title="", instruction_set="", **facts)  # type: ignore[arg-type]


def test_a_budget_is_cut_to_the_models_context() -> None:
    assert Recipe(kv="full").kv_for(2048) == "full"
    assert Recipe(kv="full:4096").kv_for(2048) == "full:2048"
    assert Recipe(kv="window:512").kv_for(2048) == "window:512"
    assert Recipe(kv="vatp:512,sinks=4").kv_for(256) == "vatp:256,sinks=4"


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A system that tells nothing until its files are written."""
    monkeypatch.setattr(host, "BOARD", (tmp_path / "model", tmp_path / "product_name"))
    monkeypatch.setattr(host, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(host, "total_bytes", lambda: None)
    return tmp_path


def test_the_host_of_a_system_that_tells_nothing(system: Path) -> None:
    found = host.detect()
    assert (found.name, found.memory_bytes, found.usable_bytes, found.bandwidth_gb_s) == ("host", None, None, None)
    assert set(found.figures()) <= set(found.sources)


def test_a_known_board_is_its_profile_only_with_its_memory(system: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (system / "model").write_text("Raspberry Pi 5 Model B Rev 1.0\0")
    for memory, expected in {8 << 30: "raspberry-pi-5", 7.8 * 2**30: "raspberry-pi-5", 4 << 30: "host"}.items():
        monkeypatch.setattr(host, "total_bytes", lambda memory=memory: int(memory))
        assert host.detect().name == expected
    assert host.detect().title == "this machine (Raspberry Pi 5 Model B Rev 1.0)"
    (system / "model").unlink()
    (system / "product_name").write_text("Some Laptop\n")
    assert host.detect().title == "this machine (Some Laptop)"


@pytest.mark.parametrize(
    ("machine", "flags", "expected"),
    [
        ("x86_64", "flags\t\t: sse2 avx2 avx512_vnni", "avx512-vnni"),
        ("x86_64", "flags\t\t: sse2 avx2", "avx2"),
        ("x86_64", "", "x86_64"),
        ("aarch64", "Features\t: fp asimd asimddp", "armv8.2-a+dotprod"),
        ("aarch64", "Features\t: fp asimd", "armv8-a"),
    ],
)
def test_instruction_sets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, machine: str, flags: str, expected: str
) -> None:
    monkeypatch.setattr(host.platform, "machine", lambda: machine)
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\n{flags}\n")
    assert host.instruction_set(tmp_path / "cpuinfo") == expected
