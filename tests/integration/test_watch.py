"""``streamgru watch`` with a running forecaster on a real broker."""

import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from deploy.commands import watch as watch_module
from deploy.commands.watch import watch
from deploy.context import Context
from deploy.live_forecasts import LatestForecasts, StreamTail
from pipeline.audit.delivery import count_deliveries
from pipeline.audit.topic_logs import read_forecasts, read_readings
from pipeline.errors import StreamgruError
from pipeline.kafka.topics import ensure_topics
from pipeline.settings import Settings
from tests.conftest import SettingsFactory
from tests.integration.stream_rig import (
    FolderChampion,
    Message,
    partition_of,
    publish,
    reading,
    rounds,
    running,
    small_forecaster,
    wait_for_forecasts,
)
from tests.waiting import wait_until

SENSORS = ("attic", "cellar", "roof [east]")
STEPS = 6

pytestmark = pytest.mark.integration


@pytest.fixture
def stream(broker: Settings, fresh_settings: SettingsFactory, tmp_path: Path) -> Iterator[Settings]:
    """A stream with forecasts of three sensors and a running forecaster."""
    settings = fresh_settings(features=("a", "b"), targets=("a",), horizon_steps=8)
    ensure_topics(settings)
    champion = FolderChampion(tmp_path / "champion", settings)
    champion.promote(1, small_forecaster(settings))
    publish(settings, rounds(settings, SENSORS, range(STEPS)))
    with running(settings, champion):
        wait_for_forecasts(settings, len(SENSORS) * STEPS)
        yield settings


def run(settings: Settings, *arguments: str) -> str:
    result = CliRunner().invoke(watch, list(arguments), obj=Context(lambda: settings), catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


def test_watch_prints_every_forecast_beside_its_reading(stream: Settings) -> None:
    lines = run(stream, "--from-beginning", "--limit", str(len(SENSORS) * STEPS)).splitlines()
    assert len(lines) == len(SENSORS) * STEPS
    assert {line.partition(": ")[0].partition(" ")[2] for line in lines} == set(SENSORS)
    for line in lines:
        assert re.search(r": a -?[\d.]+, \+1: \S+ \(\S+ … \S+\) \+6: .* \+8: .* \(v1, (cold|warm)\)$", line), line


def test_watch_prints_only_the_chosen_sensors(stream: Settings) -> None:
    lines = run(stream, "attic", "--from-beginning", "--limit", str(STEPS)).splitlines()
    assert len(lines) == STEPS
    assert all(" attic: " in line for line in lines)


def test_a_quiet_stream_gets_a_word_beside_the_lines(stream: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch_module, "QUIET_S", 0.5)
    monkeypatch.setattr(watch_module, "PATIENCE_S", 2.0)
    result = CliRunner().invoke(watch, ["attc"], obj=Context(lambda: stream))
    assert result.stdout == ""
    assert "no new forecast yet" in result.stderr
    assert "--from-beginning" in result.stderr


def test_an_unknown_sensor_is_an_error_that_names_the_known_ones(
    stream: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch_module, "PATIENCE_S", 1.0)
    with pytest.raises(StreamgruError, match=r"nothing was seen of attc.*attic, cellar, roof \[east\]"):
        run(stream, "attc")


def test_the_tail_counts_only_new_forecasts_and_knows_earlier_sensors(stream: Settings) -> None:
    latest = LatestForecasts()
    with StreamTail(stream, look_back=100) as tail:
        wait_until(lambda: latest.update(tail.poll(0.1)) or len(tail.known_sensors) == 3, 30, "all sensors are known")
        assert tail.forecasts == 0
        publish(stream, rounds(stream, SENSORS, [STEPS]))
        wait_until(lambda: latest.update(tail.poll(0.1)) or tail.forecasts == 3, 30, "three forecasts arrived")
        assert latest.table("").row_count == 3


def test_the_delivery_counts_match_the_published_readings(stream: Settings) -> None:
    spoilt = Message(b"attic", b"{}", partition_of(stream, "attic"))
    publish(
        stream,
        [
            reading(stream, "attic", -1),  # late
            reading(stream, "attic", STEPS - 1),  # duplicate
            spoilt,
            reading(stream, "attic", STEPS),
        ],
    )
    wait_for_forecasts(stream, len(SENSORS) * STEPS + 1)
    readings, forecasts = read_readings(stream), read_forecasts(stream, numbers=True)
    counts = count_deliveries(readings, forecasts, {})
    assert counts.exactly_once
    assert (counts.accepted, counts.late, counts.duplicates, counts.rejected) == (19, 1, 1, 1)
    assert readings.reasons == {"malformed": 1}
    assert forecasts.quantiles is not None
    assert forecasts.quantiles.shape == (19, 1, 3, 8)


def test_ctrl_c_ends_watch_with_exit_code_0(stream: Settings) -> None:
    variables = {
        "STREAMGRU_STACK__KAFKA_PORT": str(stream.stack.kafka_port),
        "STREAMGRU_KAFKA__TOPICS__READINGS": stream.kafka.topics.readings,
        "STREAMGRU_KAFKA__TOPICS__FORECASTS": stream.kafka.topics.forecasts,
        "STREAMGRU_FEATURES": '["a", "b"]',
        "STREAMGRU_TARGETS": '["a"]',
    }
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "deploy.cli", "watch", "--from-beginning"],
        env={"PATH": "/usr/bin:/bin"} | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline()
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
        assert time.monotonic() - began < 10
        assert (process.returncode, errors) == (0, "")
    finally:
        process.kill()
        process.wait()
