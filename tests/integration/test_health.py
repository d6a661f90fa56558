"""The health endpoint of a forecaster on a real broker, and the difference between idle and stuck."""

import json
import os
import signal
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from deploy.stack import Stack
from pipeline.errors import StreamgruError
from pipeline.forecaster.loop import StreamForecaster
from pipeline.kafka.clients import make_producer
from pipeline.kafka.topics import ensure_topics
from pipeline.settings import Settings
from tests.conftest import SettingsFactory
from tests.integration.stream_rig import (
    FolderChampion,
    Message,
    publish,
    read_all,
    read_forecasts,
    rounds,
    run_until_it_fails,
    running,
    session_of,
    small_forecaster,
)
from tests.ports import free_port
from tests.waiting import wait_until

pytestmark = pytest.mark.integration

SENSORS = [f"sensor-{number}" for number in range(5)]


@pytest.fixture
def settings(broker: Settings, fresh_settings: SettingsFactory) -> Settings:
    made = fresh_settings(features=["a"], targets=["a"], horizon_steps=1, forecaster={"poll_alias_s": 0.2})
    ensure_topics(made)
    return made


def ask(port: int, path: str) -> tuple[int, dict[str, Any]]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as refused:
        return refused.code, json.load(refused)


def test_the_health_endpoint_reports_state_lag_and_counters_until_the_forecaster_ends(
    settings: Settings, tmp_path: Path
) -> None:
    port = free_port()
    champion = FolderChampion(tmp_path / "champion", settings)
    count = publish(settings, rounds(settings, SENSORS, range(3)))
    publish(settings, [Message(b"sensor-0", b"no JSON", 0)])
    stats = tmp_path / "stats.json"
    with running(settings, champion, health_port=port, stats=stats):
        wait_until(lambda: is_listening(port), 30, "the endpoint answers")
        code, said = ask(port, "/readyz")
        assert (code, said["state"], said["model_version"]) == (503, "starting", None)
        assert ask(port, "/healthz")[0] == 200
        champion.promote(1, small_forecaster(settings))
        wait_until(lambda: ask(port, "/readyz")[0] == 200, 30, "the forecaster is ready")
        wait_until(lambda: ask(port, "/healthz")[1]["counters"]["forecasts"] == count, 30, "the forecasts are counted")
        wait_until(lambda: ask(port, "/healthz")[1]["lag"] == {"0": 0, "1": 0}, 30, "no partition lags")
        code, said = ask(port, "/healthz")
        assert (code, said["state"], said["model_version"], said["sensors"]) == (200, "serving", 1, len(SENSORS))
        wait_until(lambda: ask(port, "/readyz")[1]["counters"]["dead_letters"], 30, "the dead letter is counted")
        letters = ask(port, "/readyz")[1]["counters"]["dead_letters"]
        assert list(letters.values()) == [1]
        assert_metrics_agree(port, settings, count, letters)
        assert said["since_poll_s"] < 10
        assert said["since_commit_s"] > 0
        with pytest.raises(StreamgruError, match=f"cannot listen on 127.0.0.1:{port}: .*--health-port"):
            run_until_it_fails(settings, champion, health_port=port)
    assert not is_listening(port)
    assert json.loads(stats.read_text())["dead_letters"] == letters


def assert_metrics_agree(port: int, settings: Settings, count: int, letters: dict[str, int]) -> None:
    """Compare /metrics of an idle forecaster with the topics."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        families = list(text_string_to_metric_families(answer.read().decode()))
    found = {(each.name, *each.labels.values()): each.value for family in families for each in family.samples}
    states = read_all(settings, settings.kafka.topics.state)
    assert {
        name: found[f"streamgru_{name}", *labels]
        for name, *labels in (
            ("readings_total",),
            ("accepted_readings_total",),
            ("forecasts_total",),
            ("sensors",),
            ("state_written_bytes_total",),
            ("restores_total",),
            ("start_overs_total",),
            ("reading_to_forecast_seconds_count",),
            ("model_info", settings.model_name, "1"),
        )
    } == {
        "readings_total": count + 1,
        "accepted_readings_total": count,
        "forecasts_total": len(read_forecasts(settings)),
        "sensors": len(SENSORS),
        "state_written_bytes_total": sum(len(record.key) + len(record.value) for record in states),
        "restores_total": 1,
        "start_overs_total": 0,
        "reading_to_forecast_seconds_count": count,
        "model_info": 1,
    }
    for reason, number in letters.items():
        assert found["streamgru_dead_letters_total", reason] == number
    for partition in range(settings.kafka.partitions):
        assert found["streamgru_lag_readings", str(partition)] == 0
    assert found["streamgru_forecaster_state", "serving"] == 1
    transactions = found["streamgru_transactions_total",]
    for work in ("step", "commit"):
        assert found[f"streamgru_{work}_seconds_count",] == transactions
        assert 0 < found[f"streamgru_{work}_seconds_sum",] < 30 * transactions
    # The readings waited for a first champion.
    assert 0 < found["streamgru_reading_to_forecast_seconds_sum",] < 600 * count
    assert abs(found["streamgru_last_commit_timestamp_seconds",] - time.time()) < 60


def is_listening(port: int) -> bool:
    try:
        ask(port, "/healthz")
    except OSError:
        return False
    return True


def make_stuck(forecaster: StreamForecaster) -> None:
    """Make a forecaster stuck as a client's bug would: it stays in its group, but polls return nothing."""
    for where in session_of(forecaster).consumer.assignment():
        session_of(forecaster).consumer.pause(where)


def test_a_stuck_forecaster_is_reported_and_continues_without_max_idle(settings: Settings, tmp_path: Path) -> None:
    port = free_port()
    forecaster_settings = settings.forecaster.model_copy(update={"stuck_after_s": 1.5})
    settings = settings.model_copy(update={"forecaster": forecaster_settings})
    champion = FolderChampion(tmp_path / "champion", settings)
    champion.promote(1, small_forecaster(settings))
    publish(settings, rounds(settings, SENSORS, range(3)))
    with running(settings, champion, health_port=port) as forecaster:
        wait_until(lambda: is_listening(port) and ask(port, "/readyz")[0] == 200, 30, "the forecaster serves")
        wait_until(lambda: forecaster.counters.forecasts == 3 * len(SENSORS), 30, "all readings were forecast")
        make_stuck(forecaster)
        publish(settings, rounds(settings, SENSORS, range(3, 5)))
        code, said = wait_until(lambda: is_stuck(port), 30, "it is reported as stuck")
        assert (code, sum(said["lag"].values())) == (503, 2 * len(SENSORS))
        session_of(forecaster).consumer.resume(*session_of(forecaster).consumer.assignment())
        wait_until(lambda: ask(port, "/readyz")[0] == 200, 30, "the forecaster serves again")
        assert forecaster.counters.forecasts == 5 * len(SENSORS)


def is_stuck(port: int) -> tuple[int, dict[str, Any]] | None:
    code, said = ask(port, "/healthz")
    return (code, said) if said["state"] == "stuck" else None


def test_transaction_markers_at_the_end_of_a_log_do_not_make_an_idle_forecaster_stuck(
    settings: Settings, tmp_path: Path
) -> None:
    """Markers have offsets that no consumer receives; they must not count as readings to process."""
    champion = FolderChampion(tmp_path / "champion", settings)
    champion.promote(1, small_forecaster(settings))
    publish(settings, rounds(settings, SENSORS, range(3)))
    with running(settings, champion, max_idle_s=3.0) as forecaster:
        wait_until(lambda: forecaster.counters.forecasts == 3 * len(SENSORS), 30, "all readings were forecast")
        producer = make_producer(settings, transactional_id=f"{settings.forecaster.group_id}-publisher")
        producer.init_transactions()
        producer.begin_transaction()
        for message in rounds(settings, SENSORS, range(3, 4)):
            producer.send(settings.kafka.topics.readings, message.value, message.key, partition=message.partition)
        producer.flush()
        producer.abort_transaction()
        producer.close()
        monitor = forecaster._monitor
        assert monitor is not None
        checks = 0

        def has_checked_often() -> bool:
            nonlocal checks
            checks += 1
            assert monitor.failure is None
            return checks > 100  # some 5 s

        wait_until(has_checked_often, 30, "the monitor was checked 100 times")
        assert dict(monitor.lag) == {0: 0, 1: 0}


@pytest.fixture
def own_broker(frail_settings: SettingsFactory) -> Settings:
    """Settings on a broker that a test may stop."""
    settings = frail_settings(features=["a"], targets=["a"], horizon_steps=1)
    ensure_topics(settings)
    return settings


def test_a_forecaster_waits_for_an_unreachable_broker_and_reports_it(
    own_broker: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    port = free_port()
    champion = FolderChampion(tmp_path / "champion", own_broker)
    champion.promote(1, small_forecaster(own_broker))
    count = publish(own_broker, rounds(own_broker, SENSORS, range(3)))
    with running(own_broker, champion, health_port=port, max_idle_s=30.0) as forecaster:
        wait_until(lambda: forecaster.counters.forecasts == count, 30, "all readings were forecast")
        stack = Stack(own_broker)
        pid = stack.status()[0].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: ask(port, "/healthz")[1]["state"] == "waiting for broker", 30, "the forecaster waits")
        assert (ask(port, "/healthz")[0], ask(port, "/readyz")[0]) == (200, 503)
        assert any("no Kafka broker answers" in message for message in caplog.messages)
        stack.up(("kafka",))
        count += publish(own_broker, rounds(own_broker, SENSORS, range(3, 6)))
        wait_until(lambda: forecaster.counters.forecasts == count, 60, "the new readings were forecast")
        wait_until(lambda: ask(port, "/readyz")[0] == 200, 30, "the forecaster is ready again")
