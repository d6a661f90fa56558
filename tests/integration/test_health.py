"""What a forecaster says of itself over HTTP, and that being idle is told from being stuck, with a real broker."""

import json
import os
import signal
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

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
    rounds,
    run_until_it_fails,
    running,
    session_of,
    small_forecaster,
)
from tests.ports import free_ports
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


def test_it_says_how_it_is_from_the_start_to_the_end(settings: Settings, tmp_path: Path) -> None:
    (port,) = free_ports(1)
    champion = FolderChampion(tmp_path / "champion", settings)
    count = publish(settings, rounds(settings, SENSORS, range(3)))
    publish(settings, [Message(b"sensor-0", b"no JSON", 0)])
    stats = tmp_path / "stats.json"
    with running(settings, champion, health_port=port, stats=stats):
        wait_until(lambda: is_listening(port), 10, "it answers")
        code, said = ask(port, "/readyz")
        assert (code, said["state"], said["model_version"]) == (503, "starting", None)
        assert ask(port, "/healthz")[0] == 200
        champion.promote(1, small_forecaster(settings))
        wait_until(lambda: ask(port, "/readyz")[0] == 200, 30, "it is ready")
        wait_until(lambda: ask(port, "/healthz")[1]["counters"]["forecasts"] == count, 30, "it counts")
        wait_until(lambda: ask(port, "/healthz")[1]["lag"] == {"0": 0, "1": 0}, 10, "it says how far it has read")
        code, said = ask(port, "/healthz")
        assert (code, said["state"], said["model_version"], said["sensors"]) == (200, "serving", 1, len(SENSORS))
        wait_until(lambda: ask(port, "/readyz")[1]["counters"]["dead_letters"], 10, "it counts the dead letter")
        letters = ask(port, "/readyz")[1]["counters"]["dead_letters"]
        assert list(letters.values()) == [1]
        assert said["since_poll_s"] < 2
        assert said["since_commit_s"] > 0
        with pytest.raises(StreamgruError, match=f"cannot listen on 127.0.0.1:{port}: .*--health-port"):
            run_until_it_fails(settings, champion, health_port=port)
    assert not is_listening(port)
    assert json.loads(stats.read_text())["dead_letters"] == letters


def is_listening(port: int) -> bool:
    try:
        ask(port, "/healthz")
    except OSError:
        return False
    return True


def hold(forecaster: StreamForecaster) -> None:
    """Make it stuck as a client's bug would: it stays in its group and polls, and nothing comes."""
    for where in session_of(forecaster).consumer.assignment():
        session_of(forecaster).consumer.pause(where)


def test_a_stuck_one_is_reported_and_without_max_idle_goes_on(settings: Settings, tmp_path: Path) -> None:
    (port,) = free_ports(1)
    forecaster_settings = settings.forecaster.model_copy(update={"stuck_after_s": 1.5})
    settings = settings.model_copy(update={"forecaster": forecaster_settings})
    champion = FolderChampion(tmp_path / "champion", settings)
    champion.promote(1, small_forecaster(settings))
    publish(settings, rounds(settings, SENSORS, range(3)))
    with running(settings, champion, health_port=port) as forecaster:
        wait_until(lambda: is_listening(port) and ask(port, "/readyz")[0] == 200, 30, "it serves")
        wait_until(lambda: forecaster.counters.forecasts == 3 * len(SENSORS), 30, "it did what there was")
        hold(forecaster)
        publish(settings, rounds(settings, SENSORS, range(3, 5)))
        code, said = wait_until(lambda: is_stuck(port), 20, "it is stuck")
        assert (code, sum(said["lag"].values())) == (503, 2 * len(SENSORS))
        session_of(forecaster).consumer.resume(*session_of(forecaster).consumer.assignment())
        wait_until(lambda: ask(port, "/readyz")[0] == 200, 20, "it serves again")
        assert forecaster.counters.forecasts == 5 * len(SENSORS)


def is_stuck(port: int) -> tuple[int, dict[str, Any]] | None:
    code, said = ask(port, "/healthz")
    return (code, said) if said["state"] == "stuck" else None


def test_markers_at_a_logs_end_are_no_work(settings: Settings, tmp_path: Path) -> None:
    """They take offsets that no reader is ever handed: counted as readings, an idle forecaster would seem stuck."""
    champion = FolderChampion(tmp_path / "champion", settings)
    champion.promote(1, small_forecaster(settings))
    publish(settings, rounds(settings, SENSORS, range(3)))
    with running(settings, champion, max_idle_s=1.0) as forecaster:
        wait_until(lambda: forecaster.counters.forecasts == 3 * len(SENSORS), 30, "it did what there was")
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
        looks = 0

        def has_looked_often() -> bool:
            nonlocal looks
            looks += 1
            assert monitor.failure is None
            return looks > 100  # some 5 s

        wait_until(has_looked_often, 20, "it was watched for long enough")
        assert dict(monitor.lag) == {0: 0, 1: 0}


@pytest.fixture
def own_broker(frail_settings: SettingsFactory) -> Settings:
    """A broker that may be stopped."""
    settings = frail_settings(features=["a"], targets=["a"], horizon_steps=1)
    ensure_topics(settings)
    return settings


def test_a_broker_that_goes_away_is_waited_for_and_said(
    own_broker: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (port,) = free_ports(1)
    champion = FolderChampion(tmp_path / "champion", own_broker)
    champion.promote(1, small_forecaster(own_broker))
    count = publish(own_broker, rounds(own_broker, SENSORS, range(3)))
    with running(own_broker, champion, health_port=port, max_idle_s=30.0) as forecaster:
        wait_until(lambda: forecaster.counters.forecasts == count, 30, "it did what there was")
        stack = Stack(own_broker)
        pid = stack.status()[0].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: ask(port, "/healthz")[1]["state"] == "waiting for broker", 30, "it waits")
        assert (ask(port, "/healthz")[0], ask(port, "/readyz")[0]) == (200, 503)
        assert any("no Kafka broker answers" in message for message in caplog.messages)
        stack.up(("kafka",))
        count += publish(own_broker, rounds(own_broker, SENSORS, range(3, 6)))
        wait_until(lambda: forecaster.counters.forecasts == count, 60, "it goes on")
        wait_until(lambda: ask(port, "/readyz")[0] == 200, 20, "it says so")
