"""The command line: behaviour that all commands share."""

import errno
import importlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from deploy import cli
from deploy.commands.publish import moment_us
from deploy.context import Context
from pipeline.errors import Fenced, SettingsError
from pipeline.messages import iso_timestamp
from pipeline.settings import Settings
from tests.unit.test_loading import output_of

SLOW_IMPORTS = ("torch", "mlflow", "prefect", "polars", "deltalake", "kafka", "numba", "pydantic")


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    assert isinstance(stopped.value.code, int)
    return stopped.value.code


@pytest.fixture(autouse=True)
def _restored_logging() -> Iterator[None]:
    root, before = logging.getLogger(), list(logging.getLogger().handlers)
    levels = {name: logging.getLogger(name).level for name in (None, "streamgru", "kafka")}
    yield
    root.handlers[:] = before
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


@pytest.fixture
def probe(monkeypatch: pytest.MonkeyPatch) -> list[Context]:
    """The contexts that the command `probe` receives; its argument chooses how it ends."""
    seen: list[Context] = []

    @click.command()
    @click.argument("outcome", default="ends well")
    @click.pass_obj
    def probe(context: Context, outcome: str) -> None:
        seen.append(context)
        if outcome == "fenced":
            raise Fenced("a successor has taken over; start it again")
        if outcome == "full":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/data/history")
        if outcome == "interrupted":
            raise KeyboardInterrupt
        if outcome == "exits":
            click.get_current_context().exit(7)
        if outcome == "settings":
            assert context.settings

    monkeypatch.setattr(cli, "probe", probe, raising=False)
    monkeypatch.setitem(cli.COMMANDS, "probe", cli.LazyCommand("deploy.cli", "probe", "Probe."))
    return seen


def test_help_and_the_settings_import_no_slow_module() -> None:
    code = f"""
import sys
from deploy.cli import main
try:
    main(["--help"])
except SystemExit as stopped:
    assert stopped.code == 0
slow = [name for name in {SLOW_IMPORTS!r} if name in sys.modules]
assert not slow, slow
import pipeline.settings
slow = [name for name in {SLOW_IMPORTS!r} if name in sys.modules and name != "pydantic"]
assert not slow, slow
"""
    printed = output_of(code)
    for name, entry in cli.COMMANDS.items():
        assert f"  {name} " in printed
        assert entry.help in printed


def test_publishing_the_page_and_rounding_do_without_compiled_code() -> None:
    modules = (
        "deploy.commands.publish",
        "pipeline.dead_letters",
        "pipeline.live.follower",
        "pipeline.forecast_encoding",
    )
    output_of(f"""
import importlib, sys
for module in {modules!r}:
    importlib.import_module(module)
assert "numba" not in sys.modules
""")


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_listed_exists_under_its_name(name: str) -> None:
    entry = cli.COMMANDS[name]
    command = getattr(importlib.import_module(entry.module), entry.attribute)
    assert isinstance(command, click.Command)
    assert command.name == name
    assert command.help


@pytest.mark.parametrize("name", cli.RENAMED)
def test_the_old_name_of_a_command_still_works_and_names_the_new_one(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(name, "--help") == 0
    by_old_name = capsys.readouterr()
    new = cli.RENAMED[name]
    assert by_old_name.err == f"`streamgru {name}` is now `streamgru {new}`\n"
    assert run(new, "--help") == 0
    by_new_name = capsys.readouterr()
    assert by_old_name.out == by_new_name.out
    assert by_new_name.err == ""
    assert run(name) == run(new) == 2, "both names require an argument"


def test_the_old_command_dlq_replay_runs_dlq_republish(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("dlq", "replay", "--dry-run", "nonsense") == 2
    told = capsys.readouterr().err
    assert told.startswith("`streamgru dlq replay` is now `streamgru dlq republish`\nUsage: streamgru dlq republish ")
    assert "is not PARTITION:OFFSET" in told


def test_help_does_not_list_old_names(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ([], ["dlq"]):
        assert run(*command, "--help") == 0
        assert "replay" not in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["frobnicate"], ["--frobnicate"], ["status", "--frobnicate"], ["up", "redis"]])
def test_wrong_usage_exits_2_and_names_the_wrong_argument(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments) == 2
    error = capsys.readouterr().err
    assert arguments[-1] in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    "option", [("--budget", "inf"), ("--budget", "nan"), ("--budget", "0"), ("--seed", "-1"), ("--seed", str(2**63))]
)
def test_an_invalid_budget_or_seed_is_wrong_usage(option: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run("retrain", *option) == 2
    assert f"Invalid value for '{option[0]}'" in capsys.readouterr().err


def test_an_error_is_one_plain_message_on_stderr(probe: list[Context], capsys: pytest.CaptureFixture[str]) -> None:
    assert run("probe", "fenced") == 1
    captured = capsys.readouterr()
    assert captured.err == "error: a successor has taken over; start it again\n"
    assert captured.out == ""


def test_an_operating_system_error_has_no_traceback_unless_verbose(
    probe: list[Context], capsys: pytest.CaptureFixture[str]
) -> None:
    message = f"error: /data/history: {os.strerror(errno.ENOSPC)}\n"
    assert run("probe", "full") == 1
    assert capsys.readouterr().err == message
    assert run("-v", "probe", "full") == 1
    told = capsys.readouterr().err
    assert "Traceback" in told
    assert told.endswith(message)


def test_the_exit_code_is_that_of_the_command(probe: list[Context]) -> None:
    assert run("probe") == 0
    assert run("probe", "exits") == 7
    assert run("probe", "interrupted") == 130


def test_the_settings_file_applies_to_the_command_and_to_processes_it_starts(
    probe: list[Context], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my.toml").write_text("horizon_steps = 7\n")
    monkeypatch.chdir(tmp_path)
    assert run("--settings", "my.toml", "probe") == 0
    assert probe[0].settings.horizon_steps == 7
    assert os.environ["STREAMGRU_SETTINGS"] == str(tmp_path / "my.toml")


def test_invalid_settings_are_refused_with_file_field_and_reason(
    probe: list[Context], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "my.toml"
    file.write_text("horizon_steps = 0\nhorizont = 3\n[stack]\nkafka_port = 70000\n")
    assert run("--settings", str(file), "probe", "settings") == SettingsError.exit_code
    error = capsys.readouterr().err
    for part in (str(file), "horizon_steps", "horizont", "stack.kafka_port", "65535"):
        assert part in error
    assert "mlflow_tracking_uri" not in error  # derived from the wrong port


def test_a_settings_file_that_is_missing_is_named(probe: list[Context], capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--settings", "/nowhere/my.toml", "probe", "settings") == SettingsError.exit_code
    assert "/nowhere/my.toml" in capsys.readouterr().err


def test_addresses_follow_the_ports_of_the_stack_unless_set() -> None:
    stack = {"kafka_port": 1001, "mlflow_port": 1002, "prefect_port": 1003}
    derived = Settings(stack=stack, kafka={"partitions": 3})
    assert derived.kafka.bootstrap_servers == "127.0.0.1:1001"
    assert derived.mlflow_tracking_uri == "http://127.0.0.1:1002"
    assert derived.prefect_api_url == "http://127.0.0.1:1003/api"
    given = Settings(
        stack=stack,
        kafka={"bootstrap_servers": "broker:9092"},
        mlflow_tracking_uri="https://mlflow",
        prefect_api_url="https://prefect/api",
    )
    assert given.kafka.bootstrap_servers == "broker:9092"
    assert given.mlflow_tracking_uri == "https://mlflow"
    assert given.prefect_api_url == "https://prefect/api"
    assert Settings(**given.model_dump()) == given


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2024-03-01T24:00:00Z", "2024-03-02T00:00:00Z"),
        ("2016-12-31 23:59:60 UTC", "2017-01-01T00:00:00Z"),
        ("2024-03-01 13:00", "2024-03-01T12:00:00Z"),
        ("2024-03-01", "2024-02-29T23:00:00Z"),
        ("20240301T24", "2024-03-01T23:00:00Z"),
        ("2024-07-01 12:00:00,5", "2024-07-01T10:00:00.500000Z"),
    ],
)
def test_publish_selects_by_the_times_that_messages_accept(text: str, expected: str) -> None:
    assert iso_timestamp(moment_us(text, "Europe/Berlin", "--from")) == expected
    for refused in ("soon", "2024-W09-5", "²", "9" * 5_000, "9999-12-31T24:00"):
        with pytest.raises(click.BadParameter, match="neither a row nor a time"):
            moment_us(refused, "Pacific/Kiritimati", "--from")
