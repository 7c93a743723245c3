"""docs/command-line.md has every command with all of its options, and no others."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from molkv_export.commands import cli

_DOCUMENT = Path(__file__).parent.parent.parent / "docs" / "command-line.md"
_SECTIONS = dict(
    section.split("\n", maxsplit=1) for section in _DOCUMENT.read_text(encoding="utf-8").split("\n## ")[1:]
)
_COMMON = _SECTIONS["Options of every command"]
_SHARED = _SECTIONS["Provider options"]
_OPTION = re.compile(r"(?<![\w-])--?[a-z][a-z-]*")


def _documented(command: str) -> set[str]:
    """Return the options in the section of a command and in the shared section that it links to."""
    section = _SECTIONS[command]
    return set(_OPTION.findall(section + (_SHARED if "(#provider-options)" in section else "")))


def _options(command: str) -> set[str]:
    """Return the options that a command takes, by all of their names."""
    return {
        name
        for parameter in cli.commands[command].get_params(click.Context(cli.commands[command]))
        if isinstance(parameter, click.Option)
        for name in parameter.opts
    }


@pytest.mark.parametrize("command", cli.commands)
def test_a_command_is_documented_with_all_of_its_options(command: str) -> None:
    missing = _options(command) - _documented(command) - set(_OPTION.findall(_COMMON))
    assert not missing, f"docs/command-line.md, section {command}: add {sorted(missing)}"


@pytest.mark.parametrize("command", cli.commands)
def test_a_synopsis_has_no_option_that_the_command_does_not_take(command: str) -> None:
    synopsis = "\n".join(line for line in _SECTIONS[command].splitlines() if line.startswith("    "))
    assert set(_OPTION.findall(synopsis)) <= _options(command)


def test_a_synopsis_shows_the_choices_of_an_option() -> None:
    for name in cli.commands:
        text = _SECTIONS[name] + _SHARED
        for parameter in cli.commands[name].params:
            if isinstance(parameter.type, click.Choice) and parameter.name not in ("profile", "provider"):
                choices = "|".join(parameter.type.choices)
                assert f"{parameter.opts[-1]} {choices}" in text, f"section {name}: {parameter.opts[-1]} {choices}"
