"""What the README shows must exist: commands with their options, files, and messages that decode."""

import ast
import json
import re
import shlex
from pathlib import Path

import click
import pytest

from deploy.cli import COMMANDS, streamgru
from pipeline.messages import ReadingDecoder, decode_forecast

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """The fenced blocks of a language, without their indentation."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```", README, flags=re.MULTILINE | re.DOTALL)
    return [re.sub(rf"^{indent}", "", text, flags=re.MULTILINE) for indent, text in found]


def shown_commands() -> list[str]:
    """Every `streamgru …` of the README with a command, in blocks and in running text."""
    lines = [line for block in blocks("bash") for line in block.splitlines()]
    inline = re.findall(r"`(streamgru [^`]+)`", README)
    commands = [line.partition("#")[0].strip() for line in [*lines, *inline]]
    return sorted({command for command in commands if command.startswith("streamgru ")})


@pytest.mark.parametrize("command", shown_commands())
def test_commands_of_the_readme_take_what_they_are_given(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my.csv").write_text("when,station,temperature\n")
    (tmp_path / "deploy").symlink_to(ROOT / "deploy")
    monkeypatch.chdir(tmp_path)
    _, name, *arguments = shlex.split(command)
    if name == "--settings":
        _, name, *arguments = arguments
    parent = click.Context(streamgru)
    found = streamgru.get_command(parent, name)
    assert found is not None, f"there is no command {name}"
    while isinstance(found, click.Group) and arguments:
        parent, (name, *arguments) = click.Context(found, info_name=name, parent=parent), arguments
        found = found.get_command(parent, name)
        assert found is not None, f"there is no command {name}"
    found.make_context(name, list(arguments), parent=parent)  # raises where an option or argument is wrong


def test_every_command_a_newcomer_needs_is_shown() -> None:
    shown = {command.split()[1] for command in shown_commands()}
    assert set(COMMANDS) - shown - {"demo", "down", "status"} == set()


def test_the_example_message_is_a_reading() -> None:
    _, message = blocks("json")
    reading = ReadingDecoder(("temperature", "humidity")).decode(b"roof", message.encode())
    assert (reading.sensor_id, reading.values[0]) == ("roof", 11.5)
    assert json.loads(message)["values"]["humidity"] is None


def test_consuming_takes_ten_lines_of_python() -> None:
    (program,) = blocks("python")
    ast.parse(program)
    assert len([line for line in program.splitlines() if line.strip()]) <= 10


def test_files_and_targets_that_are_named_exist() -> None:
    named = set(re.findall(r"`((?:deploy|flows|model|pipeline|tests)/[\w./-]*)`", README))
    missing = sorted(name for name in named if not (ROOT / name).exists())
    assert missing == []
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"^make (\w+)", README, flags=re.MULTILINE)) | set(
        re.findall(r"`make (\w+)`", README)
    ):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), f"make {target}"


def test_the_example_forecast_is_one() -> None:
    example, _ = blocks("json")
    forecast = decode_forecast(example.encode())
    assert {len(values) for values in forecast.quantiles["PM2.5"].values()} == {2}
