"""Logs as JSON: one object per line, regardless of the text in it, in every process of ours."""

import io
import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.orchestrator import prefect_environment
from pipeline.forecaster.stuck_detection import end_process
from pipeline.observability.log_format import JsonFormatter, JsonHandler, final_line
from pipeline.settings import Settings
from tests.environment import environment
from tests.hostile_reports import TEXTS

LOG = logging.getLogger("streamgru.test")
STREAMGRU = Path(sys.executable).with_name("streamgru")


def objects(lines: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines.splitlines()]


@given(st.one_of(st.text(), st.sampled_from(TEXTS)))
def test_any_text_is_one_line_with_the_same_text(text: str) -> None:
    try:
        raise ValueError(text)
    except ValueError:
        caught = sys.exc_info()
    record = logging.LogRecord("streamgru.a", logging.WARNING, "", 0, "sensor %s", (text,), caught)
    line = JsonFormatter().format(record)
    assert line.isascii()
    assert line.isprintable()
    found = json.loads(line)
    assert found["message"] == f"sensor {text}"
    assert (found["level"], found["logger"]) == ("WARNING", "streamgru.a")
    assert found["exception"].startswith("Traceback (most recent call last)")
    assert found["time"].endswith("+00:00")


def test_a_record_without_an_exception_has_four_keys() -> None:
    record = logging.LogRecord("streamgru.a", logging.INFO, "", 0, "ready", (), None)
    record.created = 0.5
    assert json.loads(JsonFormatter().format(record)) == {
        "time": "1970-01-01T00:00:00.500+00:00",
        "level": "INFO",
        "logger": "streamgru.a",
        "message": "ready",
    }


def test_the_line_that_ends_a_process_is_text_by_default() -> None:
    assert final_line("no\x1b broker\nSet its address", "streamgru.cli") == "error: no\\x1b broker\nSet its address"


def test_the_line_that_ends_a_process_is_json_if_its_log_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the watchdog writes it, whose process may hang in a handler."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter())
    monkeypatch.setattr(logging.getLogger(), "handlers", [handler])
    handler.acquire()
    try:
        with monkeypatch.context() as patch:
            patch.setattr("os._exit", lambda code: None)
            end_process("a commit has not returned\nfor 30 s")
    finally:
        handler.release()
    (line,) = objects(capsys.readouterr().err)
    assert (line["level"], line["message"]) == ("ERROR", "a commit has not returned\nfor 30 s")


def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    known = environment(Settings()) | variables
    return subprocess.run([STREAMGRU, *arguments], env=known, capture_output=True, text=True, timeout=120, check=False)


def test_warnings_and_errors_of_a_command_are_json_if_the_setting_says_so(tmp_path: Path) -> None:
    chosen = {"STREAMGRU_LOGGING__FORMAT": "json", "STREAMGRU_COLOUR": "red", "STREAMGRU_HOME": str(tmp_path)}
    ended = run("backtest", str(tmp_path / "missing.csv"), **chosen)
    assert ended.returncode == 1
    warning, error = objects(ended.stderr)
    assert (warning["level"], error["level"]) == ("WARNING", "ERROR")
    assert "STREAMGRU_COLOUR" in warning["message"]
    assert "missing.csv" in error["message"]


def test_an_invalid_format_names_the_forms() -> None:
    ended = run("status", STREAMGRU_LOGGING__FORMAT="xml")
    assert ended.returncode != 0
    assert "STREAMGRU_LOGGING__FORMAT" in ended.stderr
    assert "json" in ended.stderr


SET_UP = """
import logging
from prefect import flow
logging.getLogger("prefect.flow_runs").warning("a run\\nof a flow")
logging.getLogger("streamgru").propagate = True
logging.getLogger("streamgru.flows").warning("sensor %s", "[red]a\\x1b")
"""


def test_the_process_of_a_run_writes_json(tmp_path: Path) -> None:
    """Prefect sets up the log of that process, from the variables that the scheduler gives it."""
    known = environment(Settings()) | prefect_environment(Settings(home=tmp_path, logging={"format": "json"}))
    ended = subprocess.run([sys.executable, "-c", SET_UP], env=known, capture_output=True, text=True, check=True)
    messages = [(each["logger"], each["message"]) for each in objects(ended.stderr)]
    assert ("prefect.flow_runs", "a run\nof a flow") in messages
    assert ("streamgru.flows", "sensor [red]a\x1b") in messages


def test_prefect_logs_text_by_default() -> None:
    assert not [name for name in prefect_environment(Settings()) if "CONSOLE" in name]


def test_the_handler_writes_to_its_stream() -> None:
    stream = io.StringIO()
    handler = JsonHandler(stream, styles={"log.info_level": "cyan"})
    handler.setFormatter(logging.Formatter("%(message)s"))
    handler.handle(logging.LogRecord("prefect", logging.INFO, "", 0, "ready", (), None))
    (line,) = objects(stream.getvalue())
    assert line["message"] == "ready"
