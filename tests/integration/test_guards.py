"""The guards of exactly-once on a real broker: the harm that each prevents, and the harm without it.

A counter-test removes a guard in this process and shows the harm. If the product lost that guard, the test beside the
counter-test would fail in the same way.
"""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaConsumer, TopicPartition

from deploy.stack import Stack
from pipeline.forecaster.positions import Position
from pipeline.forecaster.stuck_detection import EXIT_CODE, Watchdog
from pipeline.forecaster.transaction import Committer, KafkaTransport, Records, TransactionAborted, TransactionContent
from pipeline.kafka.clients import make_consumer, make_producer
from pipeline.kafka.group_positions import committed_offsets
from pipeline.kafka.topics import ensure_topics
from pipeline.settings import Settings
from tests.conftest import SettingsFactory
from tests.integration.forecaster_process import run
from tests.integration.stream_rig import (
    FolderChampion,
    broker_pid,
    end_offset,
    expected_forecasts,
    publish,
    read_all,
    read_forecasts,
    rounds,
    running,
    session_of,
    small_forecaster,
    stopped,
    wait_for_forecasts,
)
from tests.ports import is_free
from tests.waiting import wait_until

pytestmark = pytest.mark.integration

SENSORS = ["sensor-0", "sensor-1"]
# A batch expires after 2 s; other calls have more time, because a broker on a busy machine answers late.
TIMEOUTS = {
    "request_timeout_s": 1.0,
    "delivery_timeout_s": 2.0,
    "transaction_timeout_s": 20.0,
    "poll_interval_s": 30.0,
    "commit_timeout_s": 30.0,
}


@contextmanager
def committing(settings: Settings, name: str) -> Iterator[Committer]:
    """A committer with the transactional id ``name``, without a forecaster."""
    watchdog = Watchdog(60)

    def open_transport() -> KafkaTransport:
        return KafkaTransport(make_producer(settings, transactional_id=name), settings.kafka.topics.readings)

    committer = Committer(open_transport, watchdog)
    committer.open()
    try:
        yield committer
    finally:
        committer.close()
        watchdog.close()


def forecast_of(settings: Settings, text: bytes) -> Records:
    return Records(settings.kafka.topics.forecasts, 0, [b"sensor"], [text])


def values(settings: Settings) -> list[bytes]:
    return [record.value for record in read_all(settings, settings.kafka.topics.forecasts)]


# --- the zombie -------------------------------------------------------------------------------------------------------


@pytest.fixture
def one_partition(broker: Settings, fresh_settings: SettingsFactory) -> Settings:
    settings = fresh_settings(kafka={"partitions": 1})
    ensure_topics(settings)
    publish(settings, [message for message in rounds(settings, SENSORS, range(10)) if message.partition == 0])
    return settings


class Zombie:
    """A consumer that polled, stalled for longer than the poll interval, and has a successor by now."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.consumer = self._join(max_poll_interval_ms=3_000)  # on a busy machine joining takes longer than 1 s
        self.snapshot = self.consumer.group_metadata()
        self.successor = self._join()

        def is_out() -> bool:
            self.successor.poll(timeout_ms=100)
            return bool(self.successor.assignment()) and self.consumer.group_metadata().generation_id < 0

        wait_until(is_out, 30, "the successor has the partition, and the zombie is out of the group")

    def _join(self, **overrides: Any) -> KafkaConsumer:
        consumer = make_consumer(self.settings, group_id=self.settings.forecaster.group_id, **overrides)
        consumer.subscribe([self.settings.kafka.topics.readings])
        if overrides:
            wait_until(lambda: consumer.poll(timeout_ms=100), 30, "the first poll brought readings")
        return consumer

    def close(self) -> None:
        self.consumer.close()
        self.successor.close()


@pytest.fixture
def zombie(one_partition: Settings) -> Iterator[Zombie]:
    zombie = Zombie(one_partition)
    with committing(one_partition, "successor") as committer:
        committer.commit(
            TransactionContent(
                [forecast_of(one_partition, b"successor's")], {0: Position(7)}, zombie.successor.group_metadata()
            )
        )
    yield zombie
    zombie.close()


def test_a_zombie_cannot_commit_over_its_successor(zombie: Zombie) -> None:
    work = [forecast_of(zombie.settings, b"zombie's")]
    with committing(zombie.settings, "zombie") as committer:
        with pytest.raises(TransactionAborted, match=r"CommitFailed|IllegalGeneration|UnknownMember"):
            committer.commit(TransactionContent(work, {0: Position(3)}, zombie.snapshot))
        committer.open()
        with pytest.raises(TransactionAborted, match="no longer a member"):
            committer.commit(TransactionContent(work, {0: Position(3)}, zombie.consumer.group_metadata()))
    assert values(zombie.settings) == [b"successor's"]
    assert committed_offsets(zombie.settings) == {0: 7}


def test_the_broker_accepts_a_zombies_commit_without_the_snapshot_and_the_membership_check(
    zombie: Zombie, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.forecaster.transaction.is_member", lambda group_metadata: True)
    with committing(zombie.settings, "zombie") as committer:
        committer.commit(
            TransactionContent(
                [forecast_of(zombie.settings, b"zombie's")], {0: Position(3)}, zombie.consumer.group_metadata()
            )
        )
    assert values(zombie.settings) == [b"successor's", b"zombie's"]
    assert committed_offsets(zombie.settings) == {0: 3}


def overtake(settings: Settings, champion: FolderChampion) -> None:
    """Drop a forecaster from its group without a callback, while a successor processes readings.

    The client calls nothing if the group drops it after it prepared to join and before the broker's answer. Setting
    ``rejoining`` reproduces that moment.
    """
    step = len(SENSORS)
    block, blocked, released = threading.Event(), threading.Event(), threading.Event()

    def reached(point: str) -> None:
        if point == "polled" and block.is_set():
            blocked.set()
            released.wait(60)

    publish(settings, rounds(settings, SENSORS, range(5)))
    with running(settings, champion, "overtaken", reached=reached) as forecaster:
        wait_until(lambda: forecaster.counters.readings == 5 * step, 30, "the first readings were processed")
        block.set()
        assert blocked.wait(30), "the forecaster did not block after an empty poll"
        session_of(forecaster).consumer._coordinator.rejoining = True
        with running(settings, champion, "successor") as successor:
            publish(settings, rounds(settings, SENSORS, range(5, 10)))
            wait_until(lambda: successor.counters.readings == 5 * step, 60, "the successor processed readings")
        block.clear()
        released.set()
        publish(settings, rounds(settings, SENSORS, range(10, 15)))
        wait_for_forecasts(settings, 15 * step)
        wait_until(lambda: forecaster.counters.readings >= 10 * step, 30, "the overtaken forecaster continues")


@pytest.fixture
def impatient(broker: Settings, fresh_settings: SettingsFactory) -> Settings:
    """Settings with which a group drops a forecaster after 7 s without a poll."""
    settings = fresh_settings(
        features=["a"],
        targets=["a"],
        horizon_steps=1,
        forecaster={
            "request_timeout_s": 0.8,
            "delivery_timeout_s": 1.0,
            "transaction_timeout_s": 6.5,
            "poll_interval_s": 7.0,
        },
    )
    ensure_topics(settings)
    return settings


def test_a_forecaster_that_missed_a_generation_restores_its_states(impatient: Settings, tmp_path: Path) -> None:
    champion = FolderChampion(tmp_path / "models", impatient)
    champion.promote(1, small_forecaster(impatient))
    overtake(impatient, champion)
    assert read_forecasts(impatient) == expected_forecasts(impatient, small_forecaster(impatient))


def test_a_forecaster_that_missed_a_generation_repeats_forecasts_without_the_generation_check(
    impatient: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.kafka.rebalances.GenerationTracker.is_continuous", lambda self, group_metadata: True)
    champion = FolderChampion(tmp_path / "models", impatient)
    champion.promote(1, small_forecaster(impatient))
    overtake(impatient, champion)
    assert len(read_forecasts(impatient)) > len(expected_forecasts(impatient, small_forecaster(impatient)))


# --- a broker that does not answer ------------------------------------------------------------------------------------


@pytest.fixture
def own_broker(frail_settings: SettingsFactory) -> Settings:
    """Settings with new topics on a broker that a test may stop."""
    settings = frail_settings(
        features=["a"], targets=["a"], horizon_steps=1, kafka={"partitions": 1}, forecaster=TIMEOUTS
    )
    ensure_topics(settings)
    return settings


@pytest.fixture
def member(own_broker: Settings) -> Iterator[KafkaConsumer]:
    """The only member of a new group, which has polled readings and committed no offset."""
    settings = with_group(own_broker, f"group-{time.monotonic_ns()}")
    publish(settings, rounds(settings, SENSORS, range(2)))
    consumer = make_consumer(settings, group_id=settings.forecaster.group_id)
    consumer.subscribe([settings.kafka.topics.readings])
    wait_until(lambda: consumer.poll(timeout_ms=100), 30, "the member joined")
    consumer.settings = settings
    yield consumer
    consumer.close()


def with_group(settings: Settings, group_id: str) -> Settings:
    forecaster = settings.forecaster.model_copy(update={"group_id": group_id})
    return settings.model_copy(update={"forecaster": forecaster})


class LateTransport(KafkaTransport):
    """Freezes the broker during a flush, for longer than the delivery timeout.

    The first batch arrives before that. The second is in flight and may still arrive. The third waits behind the second
    and expires.
    """

    def __init__(self, settings: Settings) -> None:
        producer = make_producer(settings, transactional_id=settings.forecaster.group_id)
        super().__init__(producer, settings.kafka.topics.readings)
        self._settings = settings

    def begin(self) -> None:
        super().begin()
        self.append(forecast_of(self._settings, b"arrives"))
        super().flush()

    def flush(self) -> None:
        with stopped(self._settings):
            self.append(forecast_of(self._settings, b"on its way"))
            self._producer._sender.wakeup()  # an append alone leaves the batch until the flush
            wait_until(self._producer._sender._in_flight_batches.values, 5, "a batch is in flight")
            self.append(forecast_of(self._settings, b"lost"))
            super().flush()


def commit_late(settings: Settings, consumer: KafkaConsumer) -> None:
    watchdog = Watchdog(60)
    committer = Committer(lambda: LateTransport(settings), watchdog, exclusive=True)
    committer.open()
    try:
        committer.commit(TransactionContent([], {0: Position(1)}, consumer.group_metadata()))
    finally:
        committer.close()
        watchdog.close()


def test_a_transaction_with_an_expired_batch_is_aborted(member: Any) -> None:
    before = values(member.settings)
    with pytest.raises(TransactionAborted):
        commit_late(member.settings, member)
    assert values(member.settings) == before
    assert committed_offsets(member.settings) == {}


def test_a_transaction_with_an_expired_batch_commits_without_the_check_of_every_future(
    member: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(KafkaTransport, "check", lambda self: None)
    commit_late(member.settings, member)
    assert b"arrives" in values(member.settings)
    assert b"lost" not in values(member.settings)
    assert committed_offsets(member.settings) == {0: 1}


def test_a_transaction_that_was_open_when_the_broker_died_is_aborted(frail_settings: SettingsFactory) -> None:
    """Consumers of committed records, such as forecasters, would wait for the end of an open transaction for ever."""
    settings = frail_settings(kafka={"partitions": 1})
    ensure_topics(settings)
    topic = settings.kafka.topics.forecasts
    producer = make_producer(settings, transactional_id="orphan", transaction_timeout_ms=2_000)
    producer.init_transactions()
    producer.begin_transaction()
    producer.send(topic, b"never committed", partition=0).get(30)
    os.kill(broker_pid(settings), signal.SIGKILL)
    wait_until(lambda: is_free(settings.stack.kafka_port), 30, "the broker is dead")
    Stack(settings).up(("kafka",))
    where = TopicPartition(topic, 0)
    committed = make_consumer(settings)
    everything = make_consumer(settings, isolation_level="read_uncommitted")
    end = end_offset(everything, where)
    # The abort writes a marker, so the end of the committed records lies after the record.
    wait_until(lambda: end_offset(committed, where) >= end, 60, "the transaction was aborted")
    for client in (committed, everything):
        client.close()
    producer._sender.force_close()


def hang_in_commit(settings: Settings, models: Path, log: Path) -> None:
    """Run a forecaster whose commit never returns; the target of a separate process."""
    KafkaTransport.commit = lambda self: threading.Event().wait()
    run(settings, models, "hanging", None, 0, log)


def test_a_commit_that_hangs_while_brokers_answer_ends_the_process_with_a_message(
    broker: Settings, fresh_settings: SettingsFactory, tmp_path: Path
) -> None:
    short = TIMEOUTS | {"commit_timeout_s": 3.0}
    settings = fresh_settings(features=["a"], targets=["a"], horizon_steps=1, forecaster=short)
    ensure_topics(settings)
    FolderChampion(tmp_path / "models", settings).promote(1, small_forecaster(settings))
    publish(settings, rounds(settings, SENSORS, range(3)))
    log = tmp_path / "log"
    log.touch()
    process = multiprocessing.get_context("forkserver").Process(
        target=hang_in_commit, args=(settings, tmp_path / "models", log), daemon=True
    )
    process.start()
    try:
        process.join(60)
        assert process.exitcode == EXIT_CODE, log.read_text()
    finally:
        process.kill()
    assert "has not returned for 3 s" in log.read_text()
    assert "Traceback" not in log.read_text()


# --- isolation and timeouts -------------------------------------------------------------------------------------------


def publish_aborted(settings: Settings, steps: range) -> None:
    producer = make_producer(settings, transactional_id=f"{settings.forecaster.group_id}-publisher")
    producer.init_transactions()
    producer.begin_transaction()
    for message in rounds(settings, SENSORS, steps):
        producer.send(settings.kafka.topics.readings, message.value, message.key, partition=message.partition)
    producer.flush()
    producer.abort_transaction()
    producer.close()


@pytest.fixture
def half_aborted(broker: Settings, fresh_settings: SettingsFactory, tmp_path: Path) -> Settings:
    """A stream with readings of steps 0 to 14; those of steps 5 to 9 are in an aborted transaction."""
    settings = fresh_settings(features=["a"], targets=["a"], horizon_steps=1)
    ensure_topics(settings)
    FolderChampion(tmp_path / "models", settings).promote(1, small_forecaster(settings))
    publish(settings, rounds(settings, SENSORS, range(5)))
    publish_aborted(settings, range(5, 10))
    publish(settings, rounds(settings, SENSORS, range(10, 15)))
    return settings


def test_readings_of_an_aborted_transaction_are_not_forecast(half_aborted: Settings, tmp_path: Path) -> None:
    champion = FolderChampion(tmp_path / "models", half_aborted)
    with running(half_aborted, champion) as forecaster:
        found = wait_for_forecasts(half_aborted, 10 * len(SENSORS))
    assert found == expected_forecasts(half_aborted, small_forecaster(half_aborted))
    assert forecaster.counters.accepted == 10 * len(SENSORS)


def test_readings_of_an_aborted_transaction_are_forecast_without_read_committed(
    half_aborted: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make_uncommitted(settings: Settings, **options: Any) -> KafkaConsumer:
        return make_consumer(settings, **options | {"isolation_level": "read_uncommitted"})

    monkeypatch.setattr("pipeline.forecaster.session.make_consumer", make_uncommitted)
    champion = FolderChampion(tmp_path / "models", half_aborted)
    with running(half_aborted, champion):
        assert len(wait_for_forecasts(half_aborted, 15 * len(SENSORS))) == 15 * len(SENSORS)


def test_the_clients_get_timeouts_in_increasing_order(one_partition: Settings) -> None:
    """A batch must expire before its transaction, which could otherwise end with a batch in flight."""
    producer = make_producer(one_partition, transactional_id="order")
    consumer = make_consumer(one_partition, group_id="order")
    ours, groups = producer.config, consumer.config
    assert ours["request_timeout_ms"] < ours["delivery_timeout_ms"] < groups["session_timeout_ms"]
    assert groups["session_timeout_ms"] < ours["transaction_timeout_ms"] < groups["max_poll_interval_ms"]
    producer.close()
    consumer.close()
