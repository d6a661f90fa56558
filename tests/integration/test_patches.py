"""Faults of kafka-python that ``patches`` works around: the client with and without each patch."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import kafka.errors as client_errors
import kafka.net.selector as client_loop
import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor
from kafka.coordinator.base import MemberState
from kafka.errors import LogTruncationError

from deploy.stack import Stack
from pipeline.errors import BrokerUnreachable
from pipeline.kafka.clients import (
    TRANSACTION_BACKOFF_MS,
    close_producer,
    look_up_topics,
    make_admin,
    make_consumer,
    make_producer,
)
from pipeline.kafka.patches import TRANSACTION_RETRY_MS, leaderless, next_offset, skip_trace_messages
from pipeline.kafka.topics import ensure_topics
from pipeline.settings import Settings
from tests.conftest import SettingsFactory
from tests.integration.stream_rig import broker_pid, publish, read_all, rounds, stopped
from tests.ports import free_port, is_free
from tests.waiting import wait_until

pytestmark = pytest.mark.integration

both_ways = pytest.mark.parametrize("is_patched", [True, False], ids=["patched", "unpatched"])


@pytest.fixture
def settings(broker: Settings, fresh_settings: SettingsFactory) -> Settings:
    made = fresh_settings(kafka={"partitions": 2})
    ensure_topics(made)
    publish(made, rounds(made, ["sensor-0", "sensor-1"], range(3)))
    return made


@pytest.fixture
def partitions(settings: Settings) -> list[TopicPartition]:
    return [TopicPartition(settings.kafka.topics.readings, number) for number in range(2)]


# --- consumers --------------------------------------------------------------------------------------------------------


@pytest.fixture
def leader(settings: Settings, partitions: list[TopicPartition]) -> Iterator[KafkaConsumer]:
    """The only member of its group, to which all partitions are assigned."""
    topic = settings.kafka.topics.readings
    consumer = make_consumer(
        settings,
        group_id=settings.forecaster.group_id,
        partition_assignment_strategy=(CooperativeStickyAssignor,),
    )
    consumer.subscribe([topic])
    coordinator = consumer._coordinator

    def has_settled() -> bool:
        consumer.poll(timeout_ms=100)
        knows = coordinator._assignment_snapshot == coordinator._metadata_snapshot == {topic: {0, 1}}
        return knows and is_stable(consumer) and consumer.assignment() == set(partitions)

    wait_until(has_settled, 30, "all partitions are assigned to it")
    yield consumer
    consumer.close()


def is_stable(consumer: KafkaConsumer) -> bool:
    return consumer.group_metadata().state is MemberState.STABLE


def begin_a_join(consumer: KafkaConsumer) -> None:
    """Begin to join in a poll that does not wait, and then wait for the answers of the brokers."""
    consumer.poll(timeout_ms=0)
    joining = consumer._coordinator._join_task
    assert joining is not None
    wait_until(lambda: joining.is_done, 30, "the brokers answered")


@both_ways
def test_a_rejoin_for_another_partition_is_finished_after_its_poll_timed_out(
    leader: KafkaConsumer, is_patched: bool
) -> None:
    coordinator = leader._coordinator
    if not is_patched:
        del coordinator.need_rejoin  # the client's own method remains
    coordinator._assignment_snapshot = {topic: set() for topic in coordinator._assignment_snapshot}
    begin_a_join(leader)
    for _ in range(10):
        leader.poll(timeout_ms=100)
    assert is_stable(leader) is is_patched
    assert coordinator._heartbeat_enabled is is_patched


@both_ways
def test_a_join_that_finished_between_two_polls_is_used(leader: KafkaConsumer, is_patched: bool) -> None:
    coordinator = leader._coordinator
    if not is_patched:
        del coordinator._do_join_and_sync_async
    before = leader.group_metadata().generation_id
    coordinator.request_rejoin()
    begin_a_join(leader)
    leader.poll(timeout_ms=0)
    if is_patched:
        assert is_stable(leader)
        assert leader.group_metadata().generation_id == before + 1
    else:
        second = coordinator._join_task
        wait_until(lambda: second.is_done, 30, "the brokers answered")
        assert not is_stable(leader)
        assert leader.group_metadata().generation_id == before + 2, "every poll begins another join"


def claimed(consumer: KafkaConsumer) -> list[Any]:
    """The partitions that the consumer claims to own in its next JoinGroup."""
    [(_, metadata)] = consumer._coordinator.group_protocols()
    return [number for topic in metadata.owned_partitions for number in topic.partitions]


@both_ways
def test_a_consumer_that_left_its_group_claims_no_partitions(leader: KafkaConsumer, is_patched: bool) -> None:
    for assignor in leader._coordinator._assignors.values():
        if not is_patched:
            del assignor.metadata
    assert claimed(leader) == [0, 1]
    leader._coordinator.maybe_leave_group()
    assert claimed(leader) == ([] if is_patched else [0, 1])


@both_ways
def test_end_offsets_name_a_partition_without_a_leader(
    settings: Settings, partitions: list[TopicPartition], is_patched: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(make_consumer(settings)) as consumer:
        if not is_patched:
            del consumer._fetcher.beginning_or_end_offset
        assert sum(consumer.end_offsets(partitions).values()) == 6
        cluster = consumer._cluster
        led = cluster.leader_for_partition
        monkeypatch.setattr(cluster, "leader_for_partition", lambda at: led(at) if at.partition == 0 else -1)
        with pytest.raises(client_errors.LeaderNotAvailableError if is_patched else KeyError, match="partition"):
            consumer.end_offsets(partitions)
        asked: list[str] = []
        monkeypatch.setattr(cluster, "request_update", lambda: asked.append("metadata"))
        assert leaderless(consumer, partitions) == partitions[1:]
        assert asked


def test_next_offset_leaves_a_truncation_error_for_poll(settings: Settings, partitions: list[TopicPartition]) -> None:
    lost = LogTruncationError({partitions[0]: None})
    with closing(make_consumer(settings)) as consumer:
        consumer.assign(partitions[:1])
        assert next_offset(consumer, partitions[0]) is None
        consumer.seek(partitions[0], 2)
        consumer._fetcher._cached_log_truncation = lost
        assert next_offset(consumer, partitions[0]) == 2
        assert next_offset(consumer, partitions[1]) is None
        with pytest.raises(LogTruncationError):
            consumer.position(partitions[0], timeout_ms=0)
        assert consumer._fetcher._cached_log_truncation is None, "position() takes the error that poll has to raise"


# --- consumers and producers ------------------------------------------------------------------------------------------


def test_a_metadata_request_does_not_create_a_topic(settings: Settings) -> None:
    with closing(make_consumer(settings)) as consumer, closing(make_producer(settings)) as producer:
        assert not consumer._cluster.metadata_request().allow_auto_topic_creation
        assert not producer._metadata.metadata_request().allow_auto_topic_creation
    options = {"bootstrap_servers": settings.kafka.bootstrap_servers, "allow_auto_create_topics": False}
    with closing(KafkaConsumer(**options)) as unpatched:
        assert unpatched._cluster.metadata_request().allow_auto_topic_creation


@pytest.mark.parametrize("make", [make_admin, make_consumer])
def test_a_client_that_reaches_no_broker_leaves_no_thread_behind(
    make: Callable[[Settings], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that waits for brokers makes one client after the other."""
    monkeypatch.setattr("pipeline.kafka.clients.BOOTSTRAP_TIMEOUT_MS", 200)
    nobody = free_port()
    settings = Settings(kafka={"bootstrap_servers": f"127.0.0.1:{nobody}"})

    before = threading.active_count()
    for _ in range(3):
        with pytest.raises(BrokerUnreachable):
            make(settings)
    # Only threads are counted: a client's sockets close when it is freed, and captured log records keep it here.
    wait_until(lambda: threading.active_count() == before, 30, "the threads of the clients ended")


# --- producers --------------------------------------------------------------------------------------------------------


@pytest.fixture
def transactional(settings: Settings) -> Iterator[Callable[[], KafkaProducer]]:
    """A function that makes producers of one transactional id, each with an open transaction."""
    made: list[KafkaProducer] = []

    def make() -> KafkaProducer:
        producer = make_producer(settings, transactional_id=settings.forecaster.group_id)
        made.append(producer)
        producer.init_transactions()
        producer.begin_transaction()
        producer.send(settings.kafka.topics.forecasts, b"forecast", partition=0).get(30)
        return producer

    yield make
    for producer in made:
        producer._sender.force_close()


@both_ways
def test_a_predecessor_does_not_end_its_successors_transaction(
    settings: Settings, transactional: Callable[[], KafkaProducer], is_patched: bool
) -> None:
    predecessor = transactional()
    if not is_patched:
        del predecessor._transaction_manager._supports_epoch_bump
    successor = transactional()
    late = predecessor.send(settings.kafka.topics.forecasts, b"late", partition=0)
    with pytest.raises(client_errors.KafkaError):
        late.get(30)
    if not is_patched:
        wait_until(
            lambda: predecessor._transaction_manager.has_fatal_error(),
            30,
            "the predecessor has asked for another epoch",
        )
        with pytest.raises(client_errors.KafkaError):
            successor.commit_transaction()
        return
    successor.commit_transaction()
    assert [record.value for record in read_all(settings, settings.kafka.topics.forecasts)] == [b"forecast"]


@both_ways
def test_a_refused_login_is_tried_again(
    settings: Settings, transactional: Callable[[], KafkaProducer], is_patched: bool
) -> None:
    manager = transactional()._sender._client._manager
    if not is_patched:
        del manager.maybe_raise_auth_failure
    node = next(iter(manager._conns))
    manager._auth_failures[node] = client_errors.SaslAuthenticationFailedError("the accounts are not loaded yet")
    if is_patched:
        assert manager.get_connection(node) is not None
    else:
        with pytest.raises(client_errors.SaslAuthenticationFailedError):
            manager.get_connection(node)


@both_ways
def test_the_producer_looks_up_no_leader_for_a_partition_without_records(
    transactional: Callable[[], KafkaProducer], is_patched: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    producer = transactional()
    accumulator, cluster = producer._accumulator, producer._metadata
    if not is_patched:
        del accumulator.ready
    monkeypatch.setattr(cluster, "leader_for_partition", lambda where: -1)
    assert accumulator.ready(cluster)[2] is not is_patched


@both_ways
def test_a_turn_of_the_event_loop_logs_nothing(
    transactional: Callable[[], KafkaProducer], is_patched: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages: list[str] = []
    monkeypatch.setattr(client_loop, "log_trace", lambda message, *_: messages.append(message))
    if is_patched:
        skip_trace_messages()
    transactional().commit_transaction()
    assert (not messages) is is_patched


def test_a_transactional_request_is_sent_again_soon_and_a_batch_later(
    transactional: Callable[[], KafkaProducer],
) -> None:
    producer = transactional()
    assert producer._sender.config["retry_backoff_ms"] == TRANSACTION_RETRY_MS
    assert producer._accumulator.config["retry_backoff_ms"] == TRANSACTION_BACKOFF_MS > TRANSACTION_RETRY_MS


@pytest.fixture
def own_broker(frail_settings: SettingsFactory) -> Settings:
    """Settings on a broker that a test may kill."""
    settings = frail_settings(kafka={"partitions": 1})
    ensure_topics(settings)
    return settings


@pytest.mark.parametrize("is_patched", [True, False])
def test_the_first_request_for_metadata_names_all_topics(settings: Settings, is_patched: bool) -> None:
    topics = settings.kafka.topics
    with closing(make_producer(settings)) as producer:
        if is_patched:
            look_up_topics(producer, [topics.forecasts, topics.state])
        producer.partitions_for(topics.forecasts)
        assert (producer._metadata.partitions_for_topic(topics.state) is not None) == is_patched


def test_close_producer_ends_its_thread_if_the_broker_does_not_answer(own_broker: Settings) -> None:
    producers = [make_producer(own_broker) for _ in range(2)]
    for producer in producers:
        producer.partitions_for(own_broker.kafka.topics.readings)
    with stopped(own_broker):
        for producer in producers:
            producer.send(own_broker.kafka.topics.readings, b"never arrives")
        with pytest.raises(client_errors.KafkaTimeoutError):
            producers[0].close(timeout=0.2)
        assert producers[0]._sender.is_alive(), "close() alone ends the thread too"
        for producer in producers:
            close_producer(producer, timeout_s=0.2)
            producer._sender.join(30)
            assert not producer._sender.is_alive()


@both_ways
def test_a_commit_that_a_killed_broker_missed_is_sent_after_its_restart(own_broker: Settings, is_patched: bool) -> None:
    topic = own_broker.kafka.topics.forecasts
    producer = make_producer(own_broker, transactional_id=f"caught-{is_patched}", transaction_timeout_ms=60_000)
    if not is_patched:
        del producer._sender._client.await_ready
    producer.init_transactions()
    producer.begin_transaction()
    producer.send(topic, str(is_patched).encode(), partition=0).get(30)
    os.kill(broker_pid(own_broker), signal.SIGKILL)
    wait_until(lambda: is_free(own_broker.stack.kafka_port), 30, "the broker is dead")
    wait_until(lambda: not producer._sender._client._manager._conns, 30, "the producer lost its connections")
    is_committed = threading.Event()

    def commit() -> None:
        producer.commit_transaction()
        is_committed.set()

    threading.Thread(target=commit, name="commit", daemon=True).start()
    assert not is_committed.wait(1)
    Stack(own_broker).up(("kafka",))
    assert is_committed.wait(60 if is_patched else 5) is is_patched
    producer._sender.force_close()
