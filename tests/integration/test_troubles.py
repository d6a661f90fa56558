"""Faults under a running forecaster: it waits or ends by a stated policy, and reports the fault."""

import kafka.errors as client_errors
import pytest
from kafka import OffsetAndMetadata, TopicPartition
from kafka.admin import NewPartitions

from pipeline.errors import OffsetsLost, StreamgruError, TopicError
from pipeline.forecaster.loop import StreamForecaster
from pipeline.forecaster.stuck_detection import ForecasterState
from pipeline.forecaster.transaction import KafkaTransport
from pipeline.kafka.clients import make_admin
from pipeline.kafka.topics import ensure_topics
from pipeline.settings import Settings
from tests.conftest import SettingsFactory
from tests.integration.stream_rig import (
    FolderChampion,
    expected_forecasts,
    publish,
    read_forecasts,
    rounds,
    running,
    session_of,
    small_forecaster,
    wait_for_forecasts,
)
from tests.waiting import wait_until

pytestmark = pytest.mark.integration

SENSORS = [f"sensor-{number}" for number in range(5)]


@pytest.fixture
def settings(broker: Settings, fresh_settings: SettingsFactory) -> Settings:
    made = fresh_settings(features=["a"], targets=["a"], horizon_steps=1)
    ensure_topics(made)
    return made


@pytest.fixture
def champion(settings: Settings, champion: FolderChampion) -> FolderChampion:
    publish(settings, rounds(settings, SENSORS, range(3)))
    return champion


def has_ended(forecaster: StreamForecaster) -> bool:
    """Whether the forecaster ended by itself, because of a failure that its monitor found."""
    return forecaster._monitor is not None and forecaster._monitor._closed.is_set()


@pytest.mark.parametrize("which", ["readings", "forecasts", "state"])
def test_a_topic_deleted_under_a_forecaster_ends_it(settings: Settings, champion: FolderChampion, which: str) -> None:
    name = getattr(settings.kafka.topics, which)
    with pytest.raises(TopicError, match=f"{name}|topic does not exist"), running(settings, champion) as forecaster:
        wait_until(lambda: forecaster.counters.forecasts == 3 * len(SENSORS), 30, "the readings were forecast")
        with make_admin(settings) as admin:
            admin.delete_topics([name])
        wait_until(lambda: has_ended(forecaster), 40, "the forecaster ended")


def test_a_forecaster_whose_commits_all_fail_is_stuck(
    settings: Settings, champion: FolderChampion, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A restore succeeds after each failed commit and must not count as progress."""
    refused = client_errors.KafkaError("not enough replicas")

    def commit(transport: KafkaTransport) -> None:
        raise refused

    monkeypatch.setattr(KafkaTransport, "commit", commit)
    monkeypatch.setattr("pipeline.forecaster.session.LONGEST_RETRY_S", 0.2)  # long retries alone would count as stuck
    with (
        pytest.raises(StreamgruError, match="no transaction for 3 s"),
        running(settings, champion, max_idle_s=3.0) as forecaster,
    ):
        wait_until(lambda: has_ended(forecaster), 40, "the forecaster ended")
    assert read_forecasts(settings) == []


def test_the_monitor_survives_an_unexpected_error_of_its_check(
    settings: Settings, champion: FolderChampion, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dead monitor would report its last result for ever: "serving"."""

    def fail(*args: object) -> None:
        raise KeyError("something new")

    with running(settings, champion) as forecaster:
        wait_until(lambda: forecaster.counters.forecasts == 3 * len(SENSORS), 30, "the readings were forecast")
        monitor = forecaster._monitor
        assert monitor is not None
        wait_until(lambda: monitor.state is ForecasterState.SERVING, 30, "the monitor has checked")
        with monkeypatch.context() as patched:
            patched.setattr("pipeline.forecaster.stuck_detection.check_topics", fail)
            wait_until(lambda: "something new" in monitor.trouble, 30, "the monitor reports the error")
            assert not monitor.waits_for_brokers
        wait_until(lambda: not monitor.trouble, 30, "the monitor checks again")


def test_a_partition_without_a_leader_is_reported_and_the_others_are_checked(
    settings: Settings, champion: FolderChampion, monkeypatch: pytest.MonkeyPatch
) -> None:
    def leaderless(consumer: object, partitions: list[TopicPartition]) -> list[TopicPartition]:
        return [where for where in partitions if where.partition == 1]

    with running(settings, champion) as forecaster:
        wait_until(lambda: forecaster.counters.forecasts == 3 * len(SENSORS), 30, "the readings were forecast")
        monitor = forecaster._monitor
        assert monitor is not None
        with monkeypatch.context() as patched:
            patched.setattr("pipeline.forecaster.stuck_detection.leaderless", leaderless)
            wait_until(lambda: "no broker leads partition 1" in monitor.trouble, 30, "it says so")
            wait_until(lambda: monitor.state is ForecasterState.SERVING, 30, "the other partition is checked")
            assert list(monitor.lag) == [0]
        wait_until(lambda: not monitor.trouble and list(monitor.lag) == [0, 1], 30, "both are checked again")


def truncate(settings: Settings, forecaster: StreamForecaster, partition: int, offset: int) -> None:
    """Do as the client does if the log of a new leader ends before the position of the consumer."""
    where = TopicPartition(settings.kafka.topics.readings, partition)
    lost = client_errors.LogTruncationError({where: OffsetAndMetadata(offset, "", -1)})
    session_of(forecaster).consumer._fetcher._cached_log_truncation = lost


def test_readings_lost_after_their_forecast_end_the_forecaster_unless_loss_is_accepted(
    settings: Settings, champion: FolderChampion
) -> None:
    count = 3 * len(SENSORS)
    with (
        pytest.raises(OffsetsLost, match=r"partition 0 \(from offset 1 on\).*--accept-loss"),
        running(settings, champion) as forecaster,
    ):
        wait_until(lambda: forecaster.counters.forecasts == count, 30, "the readings were forecast")
        truncate(settings, forecaster, 0, 1)
        wait_until(lambda: has_ended(forecaster), 40, "the forecaster ended")
    with running(settings, champion, accept_loss=True) as forecaster:
        heartbeat = forecaster._statistics.heartbeat
        wait_until(lambda: not heartbeat.is_restoring and heartbeat.positions, 30, "it serves")
        truncate(settings, forecaster, 0, 1)
        publish(settings, rounds(settings, SENSORS, range(3, 5)))
        wait_for_forecasts(settings, 5 * len(SENSORS))


def test_readings_lost_before_their_forecast_do_not_end_the_forecaster(
    settings: Settings, champion: FolderChampion
) -> None:
    count = 3 * len(SENSORS)
    with running(settings, champion) as forecaster:
        wait_until(lambda: forecaster.counters.forecasts == count, 30, "the readings were forecast")
        truncate(settings, forecaster, 0, session_of(forecaster).partitions.positions[0])
        wait_until(lambda: forecaster.counters.aborted, 30, "the forecaster started over")
        publish(settings, rounds(settings, SENSORS, range(3, 5)))
        wait_for_forecasts(settings, 5 * len(SENSORS))
    assert read_forecasts(settings) == expected_forecasts(settings, small_forecaster(settings))


def test_partitions_added_under_a_forecaster_end_it(settings: Settings, champion: FolderChampion) -> None:
    name = settings.kafka.topics.readings
    with (
        pytest.raises(TopicError, match=f"{name}: has 3 partitions, and the settings say 2"),
        running(settings, champion) as forecaster,
    ):
        wait_until(lambda: forecaster.counters.forecasts == 3 * len(SENSORS), 30, "the readings were forecast")
        with make_admin(settings) as admin:
            admin.create_partitions({name: NewPartitions(3)})
        wait_until(lambda: has_ended(forecaster), 40, "the forecaster ended")
