"""Forecasters that are killed, replaced or run side by side: still one forecast per reading."""

import itertools
import json
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.errors import Fenced
from pipeline.kafka.clients import make_admin
from pipeline.kafka.topics import ensure_topics
from pipeline.messages import Forecast
from pipeline.settings import Settings
from tests.conftest import SettingsFactory
from tests.integration.stream_rig import (
    FolderChampion,
    ForecasterProcess,
    assert_same,
    expected_forecasts,
    publish,
    read_all,
    rounds,
    running,
    small_forecaster,
    wait_for_forecasts,
)
from tests.waiting import wait_until

pytestmark = pytest.mark.integration

SENSORS = [f"sensor-{number}" for number in range(10)]


@pytest.fixture
def settings(broker: Settings, fresh_settings: SettingsFactory) -> Settings:
    made = fresh_settings(
        features=["a"], targets=["a"], horizon_steps=2, forecaster={"poll_alias_s": 0.2, "max_batch_readings": 40}
    )
    ensure_topics(made)
    return made


def keeping_partitions(settings: Settings) -> Settings:
    """Settings with which a successor of the same name does not wait for the session timeout."""
    return settings.model_copy(
        update={"forecaster": settings.forecaster.model_copy(update={"static_membership": True})}
    )


# (point of the loop, number of the pass at which the forecaster dies), in the order of the kills on one stream.
KILLS = [("before-flush", 2), ("flushed", 2), ("offsets-sent", 2), ("committed", 2), ("restoring", 1), ("polled", 5)]


def with_flat_forecasts(settings: Settings) -> Settings:
    """The settings with a topic of flat forecasts, which is created."""
    topics = settings.kafka.topics.model_copy(update={"flat_forecasts": f"{settings.kafka.topics.forecasts}-flat"})
    flat = settings.model_copy(update={"kafka": settings.kafka.model_copy(update={"topics": topics})})
    ensure_topics(flat)
    return flat


def flat_records_of(forecast: Forecast) -> list[tuple[object, ...]]:
    """Sensor, target, step, input position and quantiles of the flat records of a forecast."""
    source = forecast.input
    return [
        (forecast.sensor_id, target, step, source.partition, source.offset, *numbers)
        for target, quantiles in forecast.quantiles.items()
        for step, numbers in enumerate(zip(*quantiles.values(), strict=True), start=1)
    ]


def read_flat_records(settings: Settings) -> list[tuple[object, ...]]:
    assert settings.kafka.topics.flat_forecasts is not None
    names = ("sensor_id", "target", "step", "input_partition", "input_offset", "q10", "q50", "q90")
    found = [json.loads(record.value) for record in read_all(settings, settings.kafka.topics.flat_forecasts)]
    return [tuple(record[name] for name in names) for record in found]


@pytest.mark.long(19)
def test_kills_at_every_point_of_the_loop_lose_and_repeat_no_forecast(
    settings: Settings, champion: FolderChampion, tmp_path: Path
) -> None:
    settings = with_flat_forecasts(keeping_partitions(settings))
    count = 0
    for number, (point, times) in enumerate(KILLS):
        count += publish(settings, rounds(settings, SENSORS, range(number * 20, number * 20 + 20)))
        with ForecasterProcess(settings, tmp_path / "champion", die_at=point, times=times) as process:
            assert process.exit_code(60) == -signal.SIGKILL, process.said
    with running(settings, champion) as forecaster:
        found = wait_for_forecasts(settings, count)
    assert_same(found, expected_forecasts(settings, small_forecaster(settings)))
    assert read_flat_records(settings) == [record for forecast in found for record in flat_records_of(forecast)]
    assert forecaster.counters.aborted == 0
    assert forecaster.counters.rebuilt_sensors == 0


def test_sigterm_ends_a_forecaster_with_exit_code_0_within_5_seconds(
    settings: Settings, champion: FolderChampion, tmp_path: Path
) -> None:
    # Long, so that only a forecaster that waits for the session timeout starts late.
    long = {"session_timeout_s": 30.0, "transaction_timeout_s": 31.0}
    settings = settings.model_copy(update={"forecaster": settings.forecaster.model_copy(update=long)})
    publish(settings, rounds(settings, SENSORS, range(50)))
    with ForecasterProcess(settings, tmp_path / "champion") as process:
        wait_for_forecasts(settings, 1)
        process.signal(signal.SIGTERM)
        assert process.exit_code(5) == 0, process.said
    count = len(SENSORS) * 50
    with running(settings, champion):  # the first has left the group, so this one starts at once
        found = wait_for_forecasts(settings, count, 5)
    assert_same(found, expected_forecasts(settings, small_forecaster(settings)))


def test_sigterm_ends_a_forecaster_that_waits_for_a_champion(settings: Settings, tmp_path: Path) -> None:
    folder = tmp_path / "nothing promoted"
    folder.mkdir()
    with ForecasterProcess(settings, folder) as process:
        wait_until(lambda: "there is no champion" in process.said, 30, "the forecaster said what it waits for")
        assert "streamgru retrain" in process.said
        process.signal(signal.SIGTERM)
        assert process.exit_code(5) == 0, process.said


def test_two_forecasters_share_the_partitions(
    broker: Settings, fresh_settings: SettingsFactory, tmp_path: Path
) -> None:
    settings = fresh_settings(
        features=["a"],
        targets=["a"],
        horizon_steps=1,
        kafka={"partitions": 8},
        forecaster={"poll_alias_s": 0.2, "max_batch_readings": 50},
    )
    ensure_topics(settings)
    champion = FolderChampion(tmp_path / "champion", settings)
    champion.promote(1, small_forecaster(settings))
    sensors = [f"sensor-{number}" for number in range(40)]
    count = publish(settings, rounds(settings, sensors, range(10)))
    with running(settings, champion, "first") as first:
        wait_until(lambda: first.counters.readings == count, 30, "the first processed all readings")
        with running(settings, champion, "second") as second:
            wait_until(lambda: second.counters.restored_sensors > 0, 30, "the second took over partitions")
            count += publish(settings, rounds(settings, sensors, range(10, 20)))
            wait_for_forecasts(settings, count)
            assert first.counters.readings < count
            assert second.counters.readings > 0
        # The second has left, so the first has all partitions again.
        count += publish(settings, rounds(settings, sensors, range(20, 30)))
        found = wait_for_forecasts(settings, count)
    assert_same(found, expected_forecasts(settings, small_forecaster(settings)))
    assert first.counters.aborted == second.counters.aborted == 0


def test_states_are_rebuilt_from_the_readings_if_the_changelog_was_deleted(
    settings: Settings, champion: FolderChampion
) -> None:
    count = publish(settings, rounds(settings, SENSORS, range(20)))
    with running(settings, champion) as forecaster:
        wait_until(lambda: forecaster.counters.readings == count, 30, "the readings were processed")
    admin = make_admin(settings)
    admin.delete_topics([settings.kafka.topics.state])
    wait_until(lambda: settings.kafka.topics.state not in admin.list_topics(), 30, "the changelog was deleted")
    admin.close()
    ensure_topics(settings)
    with running(settings, champion) as forecaster:
        wait_until(lambda: forecaster.counters.rebuilt_sensors == len(SENSORS), 30, "the states were rebuilt")
        count += publish(settings, rounds(settings, SENSORS, range(20, 25)))
        found = wait_for_forecasts(settings, count)
    assert_same(found, expected_forecasts(settings, small_forecaster(settings)))
    with running(settings, champion) as forecaster:
        wait_until(lambda: forecaster.counters.restored_sensors == len(SENSORS), 30, "the changelog is complete again")
    assert forecaster.counters.rebuilt_sensors == 0


class Blocker:
    """Blocks a forecaster of this process once, at the first point of its loop for which ``when`` is true."""

    def __init__(self, when: Callable[[str], bool]) -> None:
        self._when = when
        self.is_blocked = threading.Event()
        self.release = threading.Event()

    def reached(self, point: str) -> None:
        if not self.is_blocked.is_set() and self._when(point):
            self.is_blocked.set()
            assert self.release.wait(60)


@pytest.mark.parametrize("point", ["before-flush", "flushed", "offsets-sent"])
def test_a_forecaster_is_fenced_by_a_successor_of_the_same_name(
    settings: Settings, champion: FolderChampion, point: str
) -> None:
    settings = keeping_partitions(settings)
    count = publish(settings, rounds(settings, SENSORS, range(20)))
    passed = itertools.count()
    blocker = Blocker(lambda passing: passing == point and next(passed) == 3)
    with pytest.raises(Fenced, match="--instance"), running(settings, champion, reached=blocker.reached):
        assert blocker.is_blocked.wait(30)
        with running(settings, champion) as second:
            wait_until(lambda: second.counters.restore_s > 0, 30, "the successor has partitions")
            blocker.release.set()
            found = wait_for_forecasts(settings, count)
            count += publish(settings, rounds(settings, SENSORS, range(20, 22)))
            found = wait_for_forecasts(settings, count)
    assert_same(found, expected_forecasts(settings, small_forecaster(settings)))


def test_a_stalled_forecaster_cannot_commit_over_its_successor(settings: Settings, champion: FolderChampion) -> None:
    """The commit uses the group metadata of the last poll; brokers would accept live metadata."""
    short = {"poll_interval_s": 9.0, "transaction_timeout_s": 8.0}
    settings = settings.model_copy(update={"forecaster": settings.forecaster.model_copy(update=short)})
    count = publish(settings, rounds(settings, SENSORS, range(20)))
    # The forecaster blocks before its transaction begins, so only the group's generation can refuse the commit.
    blocker = Blocker(lambda passing: passing == "polled" and stalled.counters.forecasts > 0)
    with running(settings, champion, "stalled", reached=blocker.reached) as stalled:
        assert blocker.is_blocked.wait(30)
        with running(settings, champion, "successor") as successor:
            found = wait_for_forecasts(settings, count)
            assert 0 < successor.counters.forecasts < count
            blocker.release.set()
            wait_until(lambda: stalled.counters.aborted == 1, 30, "the stalled forecaster aborted")
            count += publish(settings, rounds(settings, SENSORS, range(30, 40)))
            found = wait_for_forecasts(settings, count)
    assert_same(found, expected_forecasts(settings, small_forecaster(settings)))


@pytest.mark.parametrize("point", ["flushed", "offsets-sent"])
def test_a_successor_ends_the_hanging_transaction_of_a_dead_forecaster(
    settings: Settings, champion: FolderChampion, tmp_path: Path, caplog: pytest.LogCaptureFixture, point: str
) -> None:
    """Brokers abort the open transaction only after the transaction timeout and up to 10 s more."""
    caplog.set_level("INFO", logger="streamgru")
    count = publish(settings, rounds(settings, SENSORS, range(20)))
    with ForecasterProcess(settings, tmp_path / "champion", "dead", die_at=point, times=2) as process:
        assert process.exit_code(60) == -signal.SIGKILL, process.said
    with running(settings, champion, "successor") as forecaster:
        found = wait_for_forecasts(settings, count)
    assert_same(found, expected_forecasts(settings, small_forecaster(settings)))
    assert any("left the group: dead" in message for message in caplog.messages)
    assert forecaster.counters.aborted == 0
