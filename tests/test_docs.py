"""What the documents say is what the program says."""

from __future__ import annotations

import re

from edgellm.runtime.cli import VERBS
from tests.conftest import ROOT
from tests.help_page import page


def test_the_commands_page_is_the_help() -> None:
    assert (ROOT / "docs" / "commands.md").read_text(encoding="utf-8") == page()


def test_the_readme_begins_with_demo_and_test() -> None:
    first_screen = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()[:25]
    commands = [line.split()[1] for line in first_screen if line.startswith("make ")]
    assert commands == ["demo", "test"]


def test_every_make_target_and_verb_the_readme_names_exists() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`?make ([a-z0-9-]+)", readme)) <= targets
    assert set(re.findall(r"^edgellm ([a-z-]+)", readme, re.MULTILINE)) <= set(VERBS)
