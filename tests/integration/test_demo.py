"""The demo in a short form: all steps and services, with few sensors, few days and short training."""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.ports import free_ports
from tests.waiting import wait_until

pytestmark = [pytest.mark.integration, pytest.mark.timeout(480)]

StartDemo = Callable[..., subprocess.Popen[str]]

TIMEOUT_S = 420  # a busy machine takes three times as long as an idle one


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Environment variables for a temporary home, free ports and a training of seconds."""
    kafka, mlflow, prefect, page = map(str, free_ports(4))
    return os.environ | {
        "STREAMGRU_HOME": str(tmp_path),
        "STREAMGRU_STACK__KAFKA_PORT": kafka,
        "STREAMGRU_STACK__MLFLOW_PORT": mlflow,
        "STREAMGRU_STACK__PREFECT_PORT": prefect,
        "STREAMGRU_SERVE__PORT": page,
        "STREAMGRU_TRAINING__BUDGET_S": "5",
        "STREAMGRU_TRAINING__HIDDEN_SIZE": "8",
        "STREAMGRU_HORIZON_STEPS": "6",
        "COLUMNS": "200",
    }


@pytest.fixture
def start(environment: dict[str, str]) -> Iterator[StartDemo]:
    """A function that starts a demo, which is terminated after the test if it still runs."""
    started: list[subprocess.Popen[str]] = []

    def begin(*options: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "deploy.cli", "demo", *options]
        started.append(
            subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )
        return started[-1]

    yield begin
    for process in started:
        if process.poll() is None:
            process.terminate()
            process.wait(timeout=60)


def is_free(port: str) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", int(port))) != 0


@pytest.mark.long(145)
def test_the_demo_runs_all_its_steps_and_stops_all_servers(
    start: StartDemo, environment: dict[str, str], tmp_path: Path
) -> None:
    # Enough readings to last at the slowest pace, by two per second and sensor, until the second model takes over.
    short = ("--sensors", "3", "--history-days", "60", "--live-days", "80")
    process = start(*short)
    output, errors = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, output + errors
    assert re.search(r"lost 0, twice 0, out of order 0, unexpected 0", output), output
    counts = re.search(r"([\d,]+) readings, ([\d,]+) accepted .*, ([\d,]+) forecasts", output)
    assert counts is not None, output
    readings, accepted, forecasts = (int(count.replace(",", "")) for count in counts.groups())
    assert 1_000 < accepted == forecasts < readings
    if "not champion; the first model stays" in output:  # the gate, about a training of two seconds
        assert "forecasts by versions 1;" in output
    else:
        assert "forecasts by versions 1, 2" in output
        assert "change from version 1 to 2" in output
    assert "longest wait of a partition" in output
    begun = re.findall(r"^ ?(\d+)/(\d+) ", output, re.MULTILINE)
    assert begun[-1][0] == begun[-1][1], begun
    assert "the page is at http://127.0.0.1:" in output
    assert f"the page is at http://127.0.0.1:{environment['STREAMGRU_SERVE__PORT']}/" in output
    assert (tmp_path / "demo" / "forecasts.png").stat().st_size > 10_000
    report = (tmp_path / "demo" / "report.html").read_text(encoding="utf-8")
    assert report.count("<svg") == 4
    for name in ("KAFKA", "MLFLOW", "PREFECT"):
        assert is_free(environment[f"STREAMGRU_STACK__{name}_PORT"])


@pytest.mark.long(20)
def test_sigterm_during_the_demo_stops_all_servers(
    start: StartDemo, environment: dict[str, str], tmp_path: Path
) -> None:
    process = start("--sensors", "1")
    kafka = environment["STREAMGRU_STACK__KAFKA_PORT"]
    wait_until(lambda: not is_free(kafka), 180, "Kafka was started")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert is_free(kafka)
    assert not list((tmp_path / "demo" / "run").glob("*.json"))
