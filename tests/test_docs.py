"""README names every command and option that there is, and quotes none that there is not."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from normbench import config
from normbench.cli import app

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PROGRAM: Any = typer.main.get_command(app)  # a click group, whichever click Typer brings
EVERYWHERE = {"--help", "--debug"}  # said once, below the table


def section(heading: str) -> str:
    return README.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


def rows() -> dict[str, str]:
    """The lines of the command reference by command."""
    table = re.findall(r"^\| `normbench (\w+).*$", section("Commands"), re.MULTILINE)
    return {
        name: next(re.finditer(rf"^\| `normbench {name}\b.*$", README, re.MULTILINE))[0] for name in table
    }


def options(command: Any) -> set[str]:
    return {name for parameter in command.params for name in parameter.opts if name.startswith("--")}


def quoted() -> Iterator[list[str]]:
    """The words behind ``normbench`` of every command in a code block or between backticks."""
    blocks = re.findall(r"^```sh\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    lines = [line for block in blocks for line in re.split(r"&&|\n", block)]
    inline = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", README, flags=re.DOTALL | re.MULTILINE))
    for line in (*lines, *inline):
        words = shlex.split(line.replace("'", "’") if line.count("'") % 2 else line)
        if words and Path(words[0]).name == "normbench" and len(words) > 1:
            yield words[1:]


COMMANDS = sorted({tuple(words) for words in quoted()})


def test_the_reference_has_every_command() -> None:
    assert list(rows()) == list(PROGRAM.commands)


@pytest.mark.parametrize("name", PROGRAM.commands)
def test_the_reference_names_every_option_of_a_command(name: str) -> None:
    named = set(re.findall(r"--[a-z-]+", rows()[name]))
    assert named | EVERYWHERE == options(PROGRAM.commands[name]) | EVERYWHERE


def test_the_reference_names_what_belongs_to_no_command() -> None:
    for option in (options(PROGRAM) | EVERYWHERE) - {"--help"}:
        assert f"{option}" in section("Commands")


def test_commands_are_quoted() -> None:
    assert len(COMMANDS) > 10


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_quoted_command_can_be_given(words: tuple[str, ...]) -> None:
    """Its command and options exist, and so does its config, which takes the overrides."""
    if words[0].startswith("--"):
        assert words[0] in options(PROGRAM)
        return
    command = PROGRAM.commands[words[0]]
    context = command.make_context(words[0], list(words[1:]))
    path = Path(context.params.get("config") or "")
    if path.parts[:1] == ("configs",):
        config.load(ROOT / path, context.params["overrides"])


def test_the_tests_above_can_fail() -> None:
    with pytest.raises(KeyError):
        test_a_quoted_command_can_be_given(("rum", "configs/quickstart.yaml"))
    with pytest.raises(Exception, match="--worker"):
        test_a_quoted_command_can_be_given(("run", "configs/quickstart.yaml", "--worker", "2"))
    with pytest.raises(config.ConfigError):
        test_a_quoted_command_can_be_given(("run", "configs/quickstart.yml"))


def test_every_module_that_readme_and_contributing_name_exists() -> None:
    text = README + (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for path in set(re.findall(r"`((?:normbench|tests|configs)/[\w/.]+)`", text)):
        assert (ROOT / path).exists() or path.endswith("halves.py"), path
