"""`edgellm devices`: this machine first, and where every figure is from."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner, Result

from edgellm.devices.profile import names
from edgellm.runtime.cli import main


def run(*args: str) -> Result:
    return CliRunner().invoke(main, ["devices", *args])


def test_this_machine_is_first() -> None:
    shown = run()
    assert shown.exit_code == 0
    lines = shown.stdout.splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["host", *names()]
    assert "204.8 GB/s" in shown.stdout
    told = json.loads(run("--json").stdout)["devices"]
    assert [device["name"] for device in told] == ["host", *names()]
    assert told[0]["bandwidth_gb_s"] is None


@pytest.mark.parametrize("name", ["host", *names()])
def test_one_device_with_its_sources(name: str) -> None:
    told = json.loads(run(name, "--json").stdout)
    assert told["usable_bytes"] == int(told["memory_bytes"] * told["usable_share"])
    shown = run(name)
    assert shown.exit_code == 0
    words = "".join(shown.stdout.split())
    for source in told["sources"].values():
        assert "".join(source.split())[:40] in words
    assert "defaults of edgellm export: bits as stored, else 8" in shown.stdout


def test_an_unknown_name_is_wrong_usage() -> None:
    shown = run("orin-nano")
    assert shown.exit_code == 2
    assert shown.stderr.endswith("Did you mean jetson-orin-nano-8gb?\n")
