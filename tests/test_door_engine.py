"""The C API over an engine file, without a GPU: what is refused and how; and, with a TensorRT and a driver of a few
rules in their places, that it feeds an engine what the Python runtime feeds it.

No engine of TensorRT's own has run. `make tensorrt` fetches the headers, without which these tests are skipped.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgellm.devices.cuda import driver
from edgellm.kernels.library import library_path
from edgellm.runtime.bundle_files import ENGINE
from edgellm.runtime.engine_stamp import stamp
from edgellm.runtime.session import Session
from edgellm.runtime.tensorrt_module import installed, tensorrt
from tests.bundles import make_bundle
from tests.conftest import ROOT, write_folder
from tests.door import BUNDLE, FAILED, USAGE, library_file
from tests.engine_world import HEADERS, TOKENS, World, compile_library
from tests.tensorrt_stubs import tensorrt_stubs

CAPACITY = 600
IDS = [(7 * i * i + i) % 317 + 3 for i in range(700)]
PLUGINS = b"a stand-in"

pytestmark = pytest.mark.skipif(
    not (HEADERS / "NvInferRuntime.h").is_file() or shutil.which("g++") is None,
    reason="TensorRT's headers or g++ are not here: make tensorrt",
)


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Our libraries side by side, as an install has them, with the one that runs engines."""
    folder = tmp_path_factory.mktemp("libraries")
    for path in (library_file(), library_path()):
        shutil.copy(path, folder)
    compile_library(ROOT / "kernels/tensorrt/runner.cc", folder / "libedgellm_runner.so")
    (folder / "libedgellm_tensorrt.so").write_bytes(PLUGINS)
    return folder


@pytest.fixture(scope="module")
def fakes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One library under both names."""
    folder = tmp_path_factory.mktemp("fakes")
    (folder / "stubs.h").write_text(tensorrt_stubs(HEADERS))
    source = ROOT / "tests/native/fake_tensorrt.cc"
    compile_library(source, folder / "libcuda.so.1", "-isystem", str(folder))
    (folder / "libtensorrt_rtx.so.1").symlink_to("libcuda.so.1")
    return folder


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    model = write_folder(folder / "model", max_position_embeddings=1024)
    settings: dict[str, Any] = dict(bits=4, recover="none", engine="tensorrt")
    make_bundle(model, folder / "standard", kv=f"full:{CAPACITY}", **settings)
    make_bundle(model, folder / "plugins", kv="h2o:64", engine_operators="plugins", **settings)
    return folder


@pytest.fixture
def world(exported: Path, libraries: Path, fakes: Path, tmp_path: Path) -> World:
    found = World(libraries, fakes, shutil.copytree(exported / "standard", tmp_path / "bundle"))
    found.build()
    return found


@pytest.fixture
def plugged(exported: Path, libraries: Path, fakes: Path, tmp_path: Path) -> World:
    found = World(libraries, fakes, shutil.copytree(exported / "plugins", tmp_path / "plugged"))
    found.build(tokens=256)
    return found


TURNS = [
    [IDS[:5], 12, False],
    [IDS[:300], 20, False],  # several runs of TOKENS
    [[*IDS[:300], 9, 9], 6, True],  # the next turn
    [IDS[:200], 6, True],  # cut back
    [IDS[:TOKENS], 3, False],
    [IDS[: TOKENS + 1], 3, True],
    [IDS[20:30], 600, False],  # to the last slot
]


def compared(world: World, session: Session, answer: dict[str, Any]) -> None:
    assert "message" not in answer, answer
    for (ids, most, keep), (made, reused, logits) in zip(TURNS, answer["results"], strict=True):
        expected = session.generate(ids, most, stop=[], keep=keep)
        assert made == expected.ids
        assert reused == expected.reused_tokens
        assert len(set(made)) > 2  # the rule tells one state from another
        assert len(set(logits)) > 100
    assert answer["kv_bytes"] == session.kv_bytes
    assert answer["alive"] == 0


def test_an_engine_is_fed_as_python_feeds_it(world: World) -> None:
    answer = world.ask(*TURNS)
    compared(world, session := world.session(f"full:{CAPACITY}"), answer)
    assert (answer["kv"], answer["limit"]) == (f"full:{CAPACITY}", CAPACITY) == (str(session.policy), session.limit)
    assert answer["runtime"].endswith("libtensorrt_rtx.so.1")
    assert max(reused for _, reused, _ in answer["results"]) == 300
    whole = len(answer["results"][-1][0])
    assert whole + 10 == CAPACITY


@pytest.mark.parametrize("kv", ["h2o:64", "window:40", "full:64"])
def test_an_engine_with_plugins_is_fed_as_python_feeds_it(plugged: World, kv: str) -> None:
    turns = [turn for turn in TURNS if kv != "full:64" or len(turn[0]) + turn[1] <= 64]
    answer = plugged.ask(*turns, **({} if kv == "h2o:64" else {"kv": kv}))
    session = plugged.session(kv)
    for (ids, most, keep), (made, reused, _) in zip(turns, answer["results"], strict=True):
        expected = session.generate(ids, most, stop=[], keep=keep)
        assert (made, reused) == (expected.ids, expected.reused_tokens)
    assert (answer["kv"], answer["kv_bytes"], answer["alive"]) == (kv, session.kv_bytes, 0)


def test_an_engine_file_is_opened_as_its_bundle(world: World) -> None:
    expected = world.ask(TURNS[0])["results"]
    assert world.ask(TURNS[0], path=world.bundle / ENGINE, backend="cpu")["results"] == expected


def test_a_longer_prompt_than_the_engine_holds_is_refused(world: World) -> None:
    answer = world.ask(TURNS[0], [IDS[: CAPACITY + 1], 1, False])
    assert len(answer["results"]) == 1
    assert f"holds {CAPACITY}" in answer["message"]


Change = Callable[[World], object]


def truncated(world: World) -> None:
    path = world.bundle / ENGINE
    path.write_bytes(path.read_bytes()[:-7])
    facts = world.facts
    assert facts.built
    stamp(world.bundle, facts, facts.built)


def restamped(world: World, **changes: Any) -> None:
    facts = world.facts
    assert facts.built
    stamp(world.bundle, facts, replace(facts.built, **changes))


REFUSED: dict[str, tuple[Change, str]] = {
    "cut": (lambda w: (w.bundle / ENGINE).write_bytes(b"vtrt"), "model.engine is truncated: 4 bytes"),
    "cut before it was stamped": (truncated, "its header says"),
    "another file": (lambda w: swap(w, b"ELF!"), "is no TensorRT engine"),
    "the other kind": (lambda w: swap(w, b"ftrt"), "a tensorrt engine; the manifest says tensorrt-rtx"),
    "of another TensorRT": (
        lambda w: w.build(version="1.6.0.9"),
        "was built by tensorrt-rtx 1.6.0.9; here is 10.14.1.48",
    ),
    "its stamp is another's": (
        lambda w: restamped(w, version="1.6.0.9"),
        "10.14.1.48 (its header); the manifest says 1.6.0.9",
    ),
    "for another GPU": (
        lambda w: restamped(w, compute_capabilities=["8.7"]),
        "is for compute capability 8.7; this GPU has 8.9",
    ),
    "refused": (lambda w: w.build("wrong refused"), "TensorRT refuses model.engine: the fake refuses this plan"),
    "failing": (lambda w: w.build("wrong fails"), "the engine failed to run: the fake fails as it was told to"),
    "without an input": (lambda w: w.build(drop="start"), "does not fit the manifest: it lacks start"),
    "without an output": (lambda w: w.build(drop="value.1.out"), "it lacks value.1.out"),
    "of other inputs": (lambda w: w.build("input state 0 1 4"), "asks for an unknown input state"),
    "of other sizes": (
        lambda w: larger(w, capacity=CAPACITY + 1),
        "has key.0 as [1, 2, 600, 16] of 2 bytes; expected [1, 2, 601, 16]",
    ),
    "of shorter runs": (
        lambda w: larger(w, tokens=64),
        "model.engine takes no embedded of [64, 64]: embedded is out of its profile",
    ),
}


def swap(world: World, magic: bytes) -> None:
    path = world.bundle / ENGINE
    path.write_bytes(magic + path.read_bytes()[4:])
    restamped(world)


def larger(world: World, **sizes: int) -> None:
    """The manifest says more than the engine has."""
    facts = world.facts
    assert facts.built
    stamp(world.bundle, replace(facts, **sizes), facts.built)


@pytest.mark.parametrize("name", REFUSED)
def test_another_engine_is_refused(world: World, name: str) -> None:
    change, message = REFUSED[name]
    change(world)
    answer = world.ask([IDS[:100], 2, False])
    assert answer["results"] == []
    assert message in answer["message"]
    assert answer["code"] == BUNDLE
    assert len(answer["message"].splitlines()) == 2  # what happened, and what to do
    assert answer["alive"] == 0


def test_policies_that_an_engine_cannot_have(world: World, plugged: World) -> None:
    for answer, message in (
        (world.ask(kv="window:64"), f"standard operators, which evict nothing, and has {CAPACITY} slots"),
        (world.ask(kv=f"full:{CAPACITY + 1}"), f"evict nothing, and has {CAPACITY} slots"),
        (plugged.ask(kv="h2o:65"), "needs 321 slots and 1 scores a slot; this engine has 320 and 1"),
        (plugged.ask(kv="vatp:64"), "needs 320 slots and 2 scores a slot"),
    ):
        assert message in answer["message"]
        assert answer["code"] == USAGE


def test_other_plugins_are_refused(plugged: World, tmp_path: Path) -> None:
    other = shutil.copytree(plugged.libraries, tmp_path / "other")
    (other / "libedgellm_tensorrt.so").write_bytes(b"another")
    again = World(other, plugged.fakes, plugged.bundle)
    assert "built with another libedgellm_tensorrt.so" in again.ask()["message"]
    (other / "libedgellm_tensorrt.so").unlink()
    assert "needs our TensorRT plugins: libedgellm_tensorrt.so is not in" in again.ask()["message"]


def test_headers_of_another_tensorrt_end_in_words(world: World) -> None:
    """Its classes would be called by another's layout."""
    world.build(version="10.15.0.1")
    answer = world.ask(variables={"FAKE_TENSORRT": "10.15.0.1"})
    assert answer["code"] == FAILED
    assert "compiled against the headers of TensorRT 10.14; " in answer["message"]
    assert "libtensorrt_rtx.so.1 is 10.15.0.1" in answer["message"]


def test_what_is_missing_is_told(world: World, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("libedgellm.so", "libedgellm_ort.so"):
        shutil.copy(world.libraries / name, bare)
    answer = World(bare, world.fakes, world.bundle).ask()
    assert answer["code"] == FAILED
    assert "libedgellm_runner.so, which runs engines, cannot be loaded" in answer["message"]
    assert "cmake.define.TENSORRT_INCLUDE" in answer["message"]
    lost = world.ask(variables={"EDGELLM_TENSORRT": str(tmp_path / "nothing.so")})
    assert lost["code"] == FAILED
    assert "libtensorrt_rtx.so.1 cannot be loaded" in lost["message"]
    assert "pip install tensorrt-rtx-cu13" in lost["message"]


@pytest.fixture(scope="module")
def real(libraries: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[World, str]:
    """A bundle whose engine TensorRT-RTX built, no fakes, and TensorRT-RTX's library."""
    if not installed("tensorrt-rtx"):
        pytest.skip("tensorrt_rtx is not installed: make tensorrt")
    folder = tmp_path_factory.mktemp("real")
    settings: dict[str, Any] = dict(bits=4, recover="none", kv="full:64", engine="tensorrt-rtx")
    make_bundle(write_folder(folder / "model"), folder / "bundle", **settings)
    library = Path(tensorrt("tensorrt-rtx").__file__).parents[1] / "tensorrt_rtx_libs" / "libtensorrt_rtx.so.1"
    return World(libraries, folder, folder / "bundle"), str(library)


def test_a_real_engine_without_a_gpu_ends_in_words(real: tuple[World, str]) -> None:
    if driver() is not None:
        pytest.skip("there is a GPU here")
    world, library = real
    answer = world.ask(path=world.bundle / ENGINE, variables={"EDGELLM_TENSORRT": library, "FAKE_TENSORRT": ""})
    assert answer["code"] == FAILED
    assert answer["message"].startswith("no NVIDIA GPU can be used here: libcuda.so.1 is missing or finds none\n")
    assert "it runs on the CPU" in answer["message"]


def test_a_real_engine_and_headers_of_another_tensorrt(real: tuple[World, str], fakes: Path) -> None:
    """With a driver: its classes, called by the layout of these headers, would crash."""
    world, library = real
    answer = World(world.libraries, fakes, world.bundle).ask(variables={"EDGELLM_TENSORRT": library})
    assert answer["code"] == FAILED
    assert "compiled against the headers of TensorRT 10.14; " in answer["message"]
    assert f"is {tensorrt('tensorrt-rtx').__version__}" in answer["message"]
    assert answer["alive"] == 0
