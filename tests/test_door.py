"""The C API over a tiny bundle does what the Python runtime does: ids, text, limits, errors."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgellm.runtime import load
from edgellm.runtime.errors import EdgellmError
from edgellm.runtime.kv_policy import parse_kv
from edgellm.runtime.manifest import dump, seal
from edgellm.runtime.sampling import Sampling
from tests.bundles import make_bundle
from tests.conftest import ROOT, write_folder
from tests.door import BUNDLE, CONTEXT, END, USAGE, Door, DoorError, array, door, library_file, onnxruntime_file
from tests.prompts import PROMPTS
from tests.test_offline import OFF

IDS = [(7 * i * i + i) % 317 + 3 for i in range(700)]
POLICIES = [
    "full",
    "window:64",
    "vatp:64,sinks=4",
    "window:64,prefill=whole",
    "h2o:64,prefill=whole",
    "vatp-window:64,sinks=4,queries=30,prefill=whole",
    "tova:48,heads=max",
    "a2sf:48,heads=mean",
]


def missing() -> str:
    """Why the C API cannot be tried here; "" if it can."""
    try:
        library_file()
        onnxruntime_file()
    except FileNotFoundError as error:
        return str(error)
    return ""


pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A context of 1024: prompts of several chunks."""
    folder = tmp_path_factory.mktemp("door")
    make_bundle(write_folder(folder / "model", max_position_embeddings=1024), folder / "bundle", bits=8)
    return folder / "bundle"


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Callable[..., Path]:
    """A copy whose manifest is changed and sealed again: copy(lambda data: …)."""

    def make(change: Callable[[dict[str, Any]], object] = lambda data: None) -> Path:
        out = shutil.copytree(bundle, tmp_path / "copy")
        data = json.loads((out / "edgellm.json").read_bytes())
        change(data)
        (out / "edgellm.json").write_bytes(dump(seal(data)))
        return out

    return make


@pytest.mark.parametrize(("kv", "backend"), [*((kv, "cpu") for kv in POLICIES), ("full", "onnxruntime")])
def test_the_same_tokens_as_python(bundle: Path, kv: str, backend: str) -> None:
    here = load(bundle, kv=kv, threads=1, backend=backend)
    there = Door(bundle, kv=kv.encode(), threads=1, backend=backend.encode())
    assert ("libonnxruntime" in there.facts().onnxruntime.decode()) == (backend == "onnxruntime")
    for length, most in ((1, 20), (40, 40), (600, 30), (256, 8)):
        expected = here.generate(IDS[:length], most, stop=[0])
        there.call("edgellm_set_stops", array([0]), 1)
        assert there.generate(IDS[:length], most) == expected.ids
        state = there.state()
        assert there.text() == expected.text
        assert (state.stop_reason.decode(), state.evictions) == (expected.stop_reason, expected.kv_evictions)
    assert there.facts().kv_bytes == here.kv_bytes


def test_a_cache_of_8_bits_and_budgets_a_layer(tmp_path: Path, copy: Callable[..., Path]) -> None:
    make_bundle(write_folder(tmp_path / "model"), tmp_path / "bundle", bits=8, kv="h2o:64", kv_bits=8)
    for bundle in (
        tmp_path / "bundle",
        copy(lambda data: data["kv"].update(policy="vatp", budget=70, budgets=[60, 80])),
    ):
        here, there = load(bundle, threads=1), Door(bundle, threads=1)
        assert there.generate(IDS[:200], 20) == here.generate(IDS[:200], 20).ids
        assert there.facts().kv_bytes == here.kv_bytes
        assert there.state().evictions == here.kv_evictions > 100


@pytest.mark.parametrize("kv", ["h2o:64,prefill=whole,pool=7", "h2o:64,layers=prefix"])
def test_what_only_python_does_is_refused(bundle: Path, kv: str) -> None:
    assert parse_kv(kv, 1024)
    with pytest.raises(DoorError, match="Python runtime") as found:
        Door(bundle, kv=kv.encode())
    assert found.value.code == USAGE


@pytest.mark.parametrize(("kv", "most"), [("full", 301), ("h2o:128", 60)])
def test_a_conversation_keeps_what_is_cached(bundle: Path, kv: str, most: int) -> None:
    here, there = load(bundle, kv=kv, threads=1), Door(bundle, kv=kv.encode(), threads=1)
    turns = [IDS[:50], IDS[:80], [*IDS[:60], 9], [5, *IDS[:300]], [5, *IDS[:320]], IDS[:10]]
    reused = []
    for ids in turns:
        expected = here.generate(ids, 5, stop=[], keep=True)
        there.call("edgellm_set_stops", None, 0)
        assert there.generate(ids, 5, keep=True) == expected.ids
        assert there.state().reused_tokens == expected.reused_tokens
        reused.append(expected.reused_tokens)
    assert max(reused) == most
    there.call("edgellm_reset")
    there.prompt(IDS[:10], keep=True)
    assert there.state().reused_tokens == 0


@pytest.mark.parametrize("seed", [0, 7, 2**40 + 3])
def test_a_seed_draws_what_it_draws_in_python(bundle: Path, seed: int) -> None:
    settings = {"temperature": 0.9, "top_k": 50, "top_p": 0.95, "min_p": 0.01, "repetition_penalty": 1.2}
    here, there = load(bundle, threads=1), Door(bundle, threads=1)
    there.sample(**settings, seed=seed)
    expected = here.generate(IDS[:20], 40, Sampling(**settings, seed=seed))  # type: ignore[arg-type]
    assert there.generate(IDS[:20], 40) == expected.ids
    assert there.generate(IDS[:20], 40) == expected.ids  # every prompt draws from the seed again
    there.call("edgellm_set_sampling", None)
    assert there.generate(IDS[:20], 40) == here.generate(IDS[:20], 40).ids


def test_step_by_step(bundle: Path) -> None:
    """edgellm_next and edgellm_logits, and a stop token's end."""
    here, there = load(bundle, threads=1), Door(bundle, threads=1)
    expected = here.generate("The sea", 12, stop=[])
    there.prompt("The sea")
    assert np.array_equal(there.logits(), here.logits(here.encode("The sea"))[-1])
    there.call("edgellm_set_stops", array([expected.ids[6]]), 1)
    there.prompt("The sea")
    taken = []
    token, piece = array([0]), array([0, 0])
    while (status := there.library.edgellm_next(there.session, token, piece)) == 0:
        taken.append(token[0])
    assert status == END
    assert taken == expected.ids[: expected.ids.index(expected.ids[6])]
    assert there.state().stop_reason == b"stop token"
    assert there.stream(5) == []
    assert there.library.edgellm_next(there.session, token, piece) == END


def test_sessions_run_side_by_side(bundle: Path) -> None:
    expected = [load(bundle, threads=1).generate(IDS[start : start + 30], 20).ids for start in range(4)]

    def generate(start: int) -> list[int]:
        return Door(bundle, threads=1).generate(IDS[start : start + 30], 20)

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(generate, range(4))) == expected


def test_the_caller_can_stop(bundle: Path) -> None:
    session = Door(bundle, threads=1)
    session.prompt("The sea")
    whole = session.stream(30)
    session.prompt("The sea")
    assert session.stream(30, stop_after=2)[:2] == whole[:2]
    assert session.state().stop_reason == b"caller"
    assert session.state().new_tokens < 30


def test_the_context_ends_a_text_and_refuses_a_prompt(bundle: Path) -> None:
    here, there = load(bundle, kv="full:64", threads=1), Door(bundle, kv=b"full:64", threads=1)
    there.call("edgellm_set_stops", None, 0)
    assert there.generate(IDS[:60], 20) == here.generate(IDS[:60], 20, stop=[]).ids
    assert there.state().stop_reason == b"context"
    with pytest.raises(EdgellmError) as expected:
        here.stream(IDS[:65])
    with pytest.raises(DoorError) as found:
        there.prompt(IDS[:65])
    assert found.value.code == CONTEXT
    assert str(found.value) == str(expected.value)
    assert len(there.ids()) == 4  # what was there goes on to be there


WRONG: dict[str, Callable[[Door], object]] = {
    "empty": lambda session: session.prompt([]),
    "an id too high": lambda session: session.prompt([3, 320]),
    "an id below 0": lambda session: session.prompt([-1]),
    "not UTF-8": lambda session: session.encode(b"a\xff"),
    "no tokens": lambda session: session.stream(0),
    "a temperature below 0": lambda session: session.sample(temperature=-1),
    "a struct without its size": lambda session: session.sample(size=0),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_requests_that_cannot_be_right(copy: Callable[..., Path], wrong: str) -> None:
    session = Door(copy(lambda data: data["tokens"].update(bos=None)))
    with pytest.raises(DoorError) as found:
        session.ids()
    assert found.value.code == USAGE
    with pytest.raises(DoorError) as found:
        WRONG[wrong](session)
    assert found.value.code == USAGE
    assert session.library.edgellm_next(None, None, None) == USAGE


@pytest.mark.parametrize(
    "kv",
    [
        *("vatp", "best:5", "full:0", "full:2000", "window:4", "vatp:32,sinks=30", "h2o:64,recent=1.5e9"),
        *("h2o:64,recent=nan", "a2sf:64,forget=2", "tova:64,heads=most", "h2o:64,prefill=half", "full:64,sinks=5"),
        *("window:64,recent=3", "h2o:64,x=1", "h2o:6x", "h2o:64,sinks=a", "h2o:64,queries=99999999999"),
    ],
)
def test_policies_are_refused_as_in_python(bundle: Path, kv: str) -> None:
    with pytest.raises(EdgellmError) as expected:
        parse_kv(kv, 1024)
    with pytest.raises(DoorError) as found:
        Door(bundle, kv=kv.encode())
    assert found.value.code == USAGE
    first = str(found.value).splitlines()[0]
    assert first.split(" is ")[0].split("=")[0] == expected.value.what.split(" is ")[0].split("=")[0]


def test_policies_are_told_as_in_python(bundle: Path) -> None:
    for kv in (*POLICIES, "h2o:128,sinks=20,recent=12,forget=0.99"):
        assert Door(bundle, kv=kv.encode()).facts().kv.decode() == str(parse_kv(kv, 1024))


def swap(folder: Path, name: str, change: Callable[[bytes], bytes]) -> None:
    (folder / name).write_bytes(change((folder / name).read_bytes()))


DAMAGE: dict[str, Callable[[Path], object]] = {
    "no folder": lambda b: shutil.rmtree(b),
    "no manifest": lambda b: (b / "edgellm.json").unlink(),
    "no graph": lambda b: (b / "model.onnx").unlink(),
    "cut weights": lambda b: swap(b, "model.onnx.data", lambda raw: raw[:-64]),
    "an edited graph": lambda b: swap(b, "model.onnx", lambda raw: raw[:-1] + b"x"),
    "edited tables": lambda b: swap(b, "tokenizer.tables", lambda raw: raw[:-1] + b"x"),
    "an edited manifest": lambda b: swap(b, "edgellm.json", lambda raw: raw.replace(b'"layers": 2', b'"layers": 3')),
    "half a manifest": lambda b: swap(b, "edgellm.json", lambda raw: raw[: len(raw) // 2]),
    "another version": lambda b: swap(b, "edgellm.json", lambda raw: raw.replace(b'"operators": 4', b'"operators": 9')),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_told_as_in_python(copy: Callable[..., Path], damage: str) -> None:
    broken = copy()
    DAMAGE[damage](broken)
    with pytest.raises(EdgellmError) as expected:
        load(broken)
    with pytest.raises(DoorError) as found:
        Door(broken)
    assert found.value.code == BUNDLE
    assert str(found.value).splitlines()[0] == expected.value.what


def test_what_only_a_hash_of_the_weights_finds(copy: Callable[..., Path]) -> None:
    broken = copy()
    swap(broken, "model.onnx.data", lambda raw: raw[:-1] + bytes([raw[-1] ^ 1]))
    Door(broken)
    with pytest.raises(DoorError, match=r"model\.onnx\.data is damaged or was edited") as found:
        Door(broken, verify=1)
    assert found.value.code == BUNDLE


def outcome(bundle: Path) -> int:
    """The status of opening it."""
    try:
        Door(bundle)
    except DoorError as error:
        return error.code
    return 0


def test_every_flipped_byte_of_the_manifest_is_told(copy: Callable[..., Path]) -> None:
    broken = copy()
    raw = (broken / "edgellm.json").read_bytes()
    for place in range(0, len(raw), 41):
        (broken / "edgellm.json").write_bytes(raw[:place] + bytes([raw[place] ^ 4]) + raw[place + 1 :])
        assert outcome(broken) == BUNDLE, raw[place - 20 : place + 20]


def test_a_graph_of_others_is_refused(copy: Callable[..., Path]) -> None:
    with pytest.raises(DoorError, match="edgellm's own only") as found:
        Door(copy(lambda data: data.update(graph="optimum")))
    assert found.value.code == BUNDLE


@pytest.mark.parametrize("magic", [b"vtrt", b"ftrt"])
def test_an_engine_alone_is_no_bundle(tmp_path: Path, magic: bytes) -> None:
    (tmp_path / "model.engine").write_bytes(magic + bytes(100))
    with pytest.raises(DoorError, match=r"model\.engine is a TensorRT engine without its bundle: .*\nOpen") as found:
        Door(tmp_path / "model.engine")
    assert found.value.code == BUNDLE


def test_bundles_without_an_engine_or_with_one_not_built(bundle: Path, tiny_model: Path, tmp_path: Path) -> None:
    """Told before anything of NVIDIA's is asked for."""
    with pytest.raises(DoorError, match="exported without an engine\nExport it again with --engine") as found:
        Door(bundle, backend=b"tensorrt")
    assert found.value.code == USAGE
    make_bundle(tiny_model, tmp_path / "bundle", bits=4, recover="none", engine="tensorrt")
    with pytest.raises(DoorError, match=r"model\.engine is not built yet\n.*edgellm build-engine") as found:
        Door(tmp_path / "bundle", backend=b"tensorrt")
    assert found.value.code == BUNDLE
    assert Door(tmp_path / "bundle", backend=b"cpu", threads=1).generate([5], 2)
    with pytest.raises(DoorError, match='backend "gpu" is unknown') as found:
        Door(bundle, backend=b"gpu")
    assert found.value.code == USAGE


def test_the_version_is_the_packages() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert door().edgellm_version().decode() == project["version"]


@pytest.fixture(scope="module")
def hello(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """examples/hello.cc, built as docs/cpp.md says."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++ here")
    program, folder = tmp_path_factory.mktemp("hello") / "hello", library_file().parent
    command = [compiler, "-Wall", "-Wextra", "-Wpedantic", "-Werror", f"-I{ROOT / 'kernels/include'}"]
    command += [str(ROOT / "examples/hello.cc"), "-o", str(program), f"-L{folder}", "-ledgellm", f"-Wl,-rpath,{folder}"]
    subprocess.run(command, check=True)
    return program


def run(program: Path, *arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
    # Without what switches telemetry off, as importing edgellm here did and a machine of continuous integration does.
    clean = {name: value for name, value in os.environ.items() if not name.startswith(OFF)}
    environment = clean | {"EDGELLM_ONNXRUNTIME": str(onnxruntime_file())} | variables
    return subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, env=environment)


def test_hello_says_what_python_says(hello: Path, bundle: Path) -> None:
    told = run(hello, bundle, "The sea", 40)
    assert told.returncode == 0, told.stderr
    expected = load(bundle).generate("The sea", 40)
    assert told.stdout == expected.text
    assert f"{expected.prompt_tokens} prompt tokens" in told.stderr
    assert expected.stop_reason in told.stderr


def test_hello_tells_what_is_wrong(hello: Path, bundle: Path, tmp_path: Path) -> None:
    assert run(hello).returncode == 2
    assert "does not exist" in run(hello, tmp_path / "nowhere").stderr
    (tmp_path / "model.engine").write_bytes(b"vtrt" + bytes(100))
    engine = run(hello, tmp_path / "model.engine")
    assert (engine.returncode, engine.stdout) == (1, "")


def test_onnxruntime_is_needed_only_where_it_is_asked_for(hello: Path, bundle: Path, tmp_path: Path) -> None:
    lost = {"EDGELLM_ONNXRUNTIME": str(tmp_path / "libonnxruntime.so")}
    assert run(hello, bundle, "The sea", 4, **lost).returncode == 0
    code = "import sys; from pathlib import Path; from tests.door import Door\n"
    code += f"Door(Path({str(bundle)!r}), backend=b'onnxruntime', onnxruntime=None)"
    told = run(Path(sys.executable), "-c", code, PYTHONPATH=str(ROOT), **lost)
    assert told.returncode == 1
    assert "libonnxruntime cannot be loaded" in told.stderr
    assert "EDGELLM_ONNXRUNTIME" in told.stderr


def test_hello_leaves_nothing_behind(hello: Path, bundle: Path, tmp_path: Path) -> None:
    """ONNX Runtime's telemetry would keep a device's id in the home folder."""
    assert run(hello, bundle, "The sea", 2, HOME=str(tmp_path)).returncode == 0
    assert list(tmp_path.iterdir()) == []


def test_hello_is_short() -> None:
    assert len((ROOT / "examples/hello.cc").read_text().splitlines()) < 60


@pytest.mark.model
def test_smollm2_says_what_it_says_in_python(real_gguf: Path, tmp_path: Path) -> None:
    make_bundle(real_gguf, tmp_path / "bundle")
    here, there = load(tmp_path / "bundle", threads=1), Door(tmp_path / "bundle", threads=1)
    assert here.chat is not None
    prompts = [here.chat.render([{"role": "user", "content": question}]) for question in PROMPTS]
    assert [there.encode(prompt) for prompt in prompts] == [here.encode(prompt) for prompt in prompts]
    for prompt in prompts:
        expected = here.generate(prompt, 16)
        assert expected.ids
        assert there.generate(prompt, 16) == expected.ids
        assert there.text() == expected.text
