"""Brokers that lose part of a committed transaction: an offset, or the newest changelog records."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import pytest
from kafka import KafkaProducer, TopicPartition
from kafka.admin import ConfigResource, ConfigResourceType, KafkaAdminClient
from kafka.producer.transaction_manager import TransactionalRequestResult, TxnOffsetCommitHandler
from kafka.structs import ConsumerGroupMetadata, OffsetAndMetadata

import pipeline.forecaster.partitions
from pipeline.kafka.clients import make_admin, make_producer
from pipeline.kafka.group_positions import committed_offsets
from pipeline.kafka.instance import Instance
from pipeline.kafka.topics import ensure_topics
from pipeline.settings import Settings
from tests.conftest import SettingsFactory
from tests.integration.stream_rig import (
    FolderChampion,
    Message,
    assert_same,
    expected_forecasts,
    partition_of,
    publish,
    read_all,
    reading,
    rounds,
    run_until_it_fails,
    running,
    small_forecaster,
    wait_for_forecasts,
)
from tests.waiting import wait_until

pytestmark = pytest.mark.integration

SENSORS = [f"sensor-{number}" for number in range(8)]
Offsets = Mapping[TopicPartition, OffsetAndMetadata]


@pytest.fixture(params=[0, 3], ids=["no buffer", "reorder buffer"])
def settings(broker: Settings, fresh_settings: SettingsFactory, request: pytest.FixtureRequest) -> Settings:
    made = fresh_settings(features=["a"], targets=["a"], horizon_steps=2, grace_steps=request.param)
    ensure_topics(made)
    return made


def some(settings: Settings, start: int) -> list[Message]:
    """Nine readings of every sensor, with a gap before the ninth, and then one invalid record each."""
    readings = [*rounds(settings, SENSORS, range(start, start + 8)), *rounds(settings, SENSORS, [start + 9])]
    return [*readings, *(Message(sensor.encode(), b"rubbish", partition_of(settings, sensor)) for sensor in SENSORS)]


@contextmanager
def admin_of(settings: Settings) -> Iterator[KafkaAdminClient]:
    admin = make_admin(settings)
    try:
        yield admin
    finally:
        admin.close()


def committed(settings: Settings) -> Offsets:
    group = settings.forecaster.group_id
    with admin_of(settings) as admin:
        found: Offsets = admin.list_group_offsets([group])[group]
    return found


def processed(settings: Settings) -> int:
    return sum(committed_offsets(settings).values())


def commit(settings: Settings, offsets: Offsets) -> None:
    """Set the offsets of the group, which has no members."""
    with admin_of(settings) as admin:
        admin.alter_group_offsets(settings.forecaster.group_id, offsets)
    assert committed(settings) == offsets


def process(settings: Settings, champion: FolderChampion, messages: list[Message]) -> None:
    """Publish the messages, and process all readings of the topic."""
    publish(settings, messages)
    count = len(read_all(settings, settings.kafka.topics.readings))
    with running(settings, champion):
        wait_until(lambda: processed(settings) == count, 30, "the readings were processed")


def assert_outputs_are_complete(settings: Settings) -> None:
    expected = expected_forecasts(settings, small_forecaster(settings))
    assert_same(wait_for_forecasts(settings, len(expected)), expected)
    letters = read_all(settings, settings.kafka.topics.dead_letters)
    rejected = [record for record in read_all(settings, settings.kafka.topics.readings) if record.value == b"rubbish"]
    assert len(letters) == len(rejected)


def test_a_lost_committed_offset_repeats_no_forecast(
    settings: Settings, champion: FolderChampion, caplog: pytest.LogCaptureFixture
) -> None:
    process(settings, champion, some(settings, 0))
    before = committed(settings)
    process(settings, champion, some(settings, 10))
    commit(settings, before)
    with running(settings, champion) as forecaster:
        publish(settings, some(settings, 20))
        count = len(read_all(settings, settings.kafka.topics.readings))
        wait_until(lambda: processed(settings) == count, 30, "the readings were processed")
    assert_outputs_are_complete(settings)
    assert forecaster.counters.rebuilt_sensors == 0
    assert "the brokers lost an offset that was committed" in caplog.text


def test_a_group_without_offsets_continues_at_the_offset_of_the_changelog(
    settings: Settings, champion: FolderChampion
) -> None:
    settings = settings.model_copy(update={"forecaster": settings.forecaster.model_copy(update={"start": "latest"})})
    with running(settings, champion):
        wait_until(lambda: len(committed_offsets(settings)) == settings.kafka.partitions, 30, "the stream has begun")
        count = publish(settings, some(settings, 0))
        wait_until(lambda: processed(settings) == count, 30, "the readings were processed")
    with admin_of(settings) as admin:
        admin.delete_group_offsets(settings.forecaster.group_id, list(committed(settings)))
    assert not processed(settings)
    count += publish(settings, some(settings, 10))  # while no forecaster runs
    with running(settings, champion):
        wait_until(lambda: processed(settings) == count, 30, "the readings were processed")
    assert_outputs_are_complete(settings)


def test_an_offset_that_a_user_reset_repeats_forecasts_from_rebuilt_states(
    settings: Settings, champion: FolderChampion
) -> None:
    process(settings, champion, some(settings, 0))
    before = committed(settings)
    process(settings, champion, some(settings, 10))
    commit(settings, {where: OffsetAndMetadata(at.offset, "", -1) for where, at in before.items()})
    count = len(read_all(settings, settings.kafka.topics.readings))
    with running(settings, champion) as forecaster:
        wait_until(lambda: processed(settings) == count, 30, "the readings were processed again")
    assert forecaster.counters.rebuilt_sensors == len(SENSORS)
    assert forecaster.counters.readings == count - sum(at.offset for at in before.values())
    with running(settings, champion) as forecaster:  # the changelog holds the rebuilt states
        wait_until(lambda: forecaster.counters.restored_sensors == len(SENSORS), 30, "the states were restored")
    assert forecaster.counters.rebuilt_sensors == 0


def lose_newest_of_changelog(settings: Settings, champion: FolderChampion) -> None:
    """Process readings, and delete their states and positions from the changelog."""
    process(settings, champion, some(settings, 0))
    topic = settings.kafka.topics.state
    before = read_all(settings, topic)
    process(settings, champion, [*some(settings, 10), reading(settings, "newcomer", 10)])
    with admin_of(settings) as admin:
        admin.delete_topics([topic])
        wait_until(lambda: topic not in admin.list_topics(), 30, "the changelog was deleted")
    ensure_topics(settings)
    producer = make_producer(settings)
    for record in before:
        producer.send(topic, record.value, record.key, partition=record.partition)
    producer.flush()
    producer.close()


def test_readings_behind_a_changelog_without_its_newest_records_are_stepped_again(
    settings: Settings, champion: FolderChampion, caplog: pytest.LogCaptureFixture
) -> None:
    lose_newest_of_changelog(settings, champion)
    with running(settings, champion) as forecaster:
        publish(settings, [*some(settings, 20), reading(settings, "newcomer", 20)])
        count = len(read_all(settings, settings.kafka.topics.readings))
        wait_until(lambda: processed(settings) == count, 30, "the readings were processed")
    assert_outputs_are_complete(settings)
    assert forecaster.counters.rebuilt_sensors == 0
    assert "stepping the readings in between again" in caplog.text


def test_last_timestamps_are_kept_if_readings_behind_the_changelog_were_deleted(
    settings: Settings, champion: FolderChampion
) -> None:
    lose_newest_of_changelog(settings, champion)
    forecast = len(read_all(settings, settings.kafka.topics.forecasts))
    with admin_of(settings) as admin:
        admin.delete_records({where: at.offset - 2 for where, at in committed(settings).items()})
    publish(settings, rounds(settings, SENSORS, range(8)))  # no newer than the states in the changelog
    with running(settings, champion) as forecaster:
        wait_until(lambda: forecaster.counters.readings == 8 * len(SENSORS), 30, "the readings were processed")
    assert forecaster.counters.duplicates + forecaster.counters.late == 8 * len(SENSORS)
    assert len(read_all(settings, settings.kafka.topics.forecasts)) == forecast


@contextmanager
def without_partition_verification(settings: Settings) -> Iterator[None]:
    """Let the broker accept records whose partition is not in their transaction; they stay hanging."""
    name = "transaction.partition.verification.enable"
    with admin_of(settings) as admin:
        (node,) = (str(broker["broker_id"]) for broker in admin.describe_cluster()["brokers"])
        admin.alter_configs([ConfigResource(ConfigResourceType.BROKER, node, {name: "false"})])
        try:
            yield
        finally:
            admin.alter_configs([ConfigResource(ConfigResourceType.BROKER, node, {name: "true"})])


def leave_offsets_hanging(producer: KafkaProducer, settings: Settings) -> None:
    """Commit offset 0 in the transaction without adding the group to it, so that it gets no marker there."""
    where, result = TopicPartition(settings.kafka.topics.readings, 0), TransactionalRequestResult()
    manager = producer._transaction_manager
    manager._pending_txn_offset_commits[where] = OffsetAndMetadata(0, "", -1)
    group = ConsumerGroupMetadata(group_id=settings.forecaster.group_id)
    commits = manager._pending_txn_offset_commits
    manager._enqueue_request(TxnOffsetCommitHandler(manager, group, commits, result))
    producer._sender.wakeup()
    assert result.wait(30_000)


@pytest.mark.xdist_group("broker configuration")  # one worker at a time may change it
@pytest.mark.parametrize("committed", [True, False])
def test_a_hanging_transaction_ends_as_it_ended_in_its_other_partitions(
    settings: Settings, champion: FolderChampion, caplog: pytest.LogCaptureFixture, committed: bool
) -> None:
    """A broker that restarts while it writes the markers of a transaction may leave out some markers.

    The partition has a marker of an earlier transaction, as after the first commit of any forecaster.
    """
    letters = settings.kafka.topics.dead_letters
    its_own = Instance("forecaster", exclusive=False).transactional_id(settings)
    hidden, marked = TopicPartition(letters, 0), TopicPartition(letters, 1)

    def leave_hanging() -> bool:
        producer = make_producer(settings, transactional_id=its_own)
        producer.init_transactions()
        producer.begin_transaction()
        producer._transaction_manager._partitions_in_transaction.add(hidden)
        arrived = producer.send(letters, b"hanging", partition=hidden.partition)
        producer.flush()
        if arrived.succeeded():
            leave_offsets_hanging(producer, settings)
            producer.send(letters, b"ended", partition=marked.partition)
            producer.flush()
            if committed:
                producer.commit_transaction()
            else:
                producer.abort_transaction()
        producer.close()
        return bool(arrived.succeeded())

    earlier = make_producer(settings, transactional_id=its_own)
    earlier.init_transactions()
    earlier.begin_transaction()
    earlier.send(letters, b"earlier", partition=hidden.partition)
    earlier.commit_transaction()
    earlier.close()
    with without_partition_verification(settings):
        wait_until(leave_hanging, 30, "the broker accepts the record, soon after its reconfiguration")
    others = make_producer(settings)
    others.send(letters, b"behind it", partition=hidden.partition).get(30)
    others.close()
    visible = {b"earlier", b"ended"} if committed else {b"earlier"}
    assert {letter.value for letter in read_all(settings, letters)} == visible
    with running(settings, champion):
        wait_until(lambda: len(read_all(settings, letters)) == len(visible) + 1 + committed, 30, "all can be read")
        publish(settings, rounds(settings, SENSORS, range(2)))
        wait_for_forecasts(settings, 2 * len(SENSORS))
    expected = visible | ({b"hanging", b"behind it"} if committed else {b"behind it"})
    assert {letter.value for letter in read_all(settings, letters)} == expected
    assert f"hanging in {letters}-0, the offsets of {settings.forecaster.group_id};" in caplog.text


class Died(Exception):
    """Ends a forecaster at a point of its loop, in place of a SIGKILL."""


def test_a_kill_while_caught_up_states_are_written_loses_and_repeats_no_forecast(
    settings: Settings, champion: FolderChampion, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first transaction writes the states of one partition; the position of the other partition must not move."""
    lose_newest_of_changelog(settings, champion)
    publish(settings, some(settings, 20))
    monkeypatch.setattr(pipeline.forecaster.partitions, "FULL_WRITE_BYTES", 1)

    def die(point: str) -> None:
        if point == "committed":
            raise Died

    with pytest.raises(Died):
        run_until_it_fails(settings, champion, reached=die)
    with running(settings, champion):
        count = len(read_all(settings, settings.kafka.topics.readings))
        wait_until(lambda: processed(settings) == count, 30, "the readings were processed")
    assert_outputs_are_complete(settings)


def test_positions_of_a_deleted_topic_do_not_count_for_the_recreated_one(
    settings: Settings, champion: FolderChampion
) -> None:
    process(settings, champion, some(settings, 0))
    topic = settings.kafka.topics.readings
    before = read_all(settings, topic)
    with admin_of(settings) as admin:
        admin.delete_topics([topic])
        wait_until(lambda: topic not in admin.list_topics(), 30, "the readings topic was deleted")
    ensure_topics(settings)
    publish(settings, some(settings, 100))
    with running(settings, champion) as forecaster:
        wait_until(lambda: processed(settings) == len(before), 30, "all readings of the new topic were processed")
    assert forecaster.counters.readings == len(before)
