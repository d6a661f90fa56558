"""The client's faults that ``patches`` works around: each is gone with its patch, and there without."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import kafka.errors as client_errors
import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor
from kafka.coordinator.base import MemberState
from kafka.errors import LogTruncationError

from deploy.stack import Stack
from pipeline.errors import BrokerUnreachable
from pipeline.kafka.clients import close_producer, make_admin, make_consumer, make_producer
from pipeline.kafka.patches import leaderless, next_offset
from pipeline.kafka.topics import ensure_topics
from pipeline.settings import Settings
from tests.conftest import SettingsFactory
from tests.integration.stream_rig import broker_pid, publish, read_all, rounds, stopped
from tests.ports import free_ports, is_free
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
    """The only member of its group, which has assigned itself all there is."""
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

    wait_until(has_settled, 30, "it has assigned itself the partitions")
    yield consumer
    consumer.close()


def is_stable(consumer: KafkaConsumer) -> bool:
    return consumer.group_metadata().state is MemberState.STABLE


def begin_a_join(consumer: KafkaConsumer) -> None:
    """In a poll that does not wait for the brokers' answers; then let them answer."""
    consumer.poll(timeout_ms=0)
    joining = consumer._coordinator._join_task
    assert joining is not None
    wait_until(lambda: joining.is_done, 10, "the brokers answered")


@both_ways
def test_a_rejoin_for_another_partition_is_finished_though_its_poll_timed_out(
    leader: KafkaConsumer, is_patched: bool
) -> None:
    coordinator = leader._coordinator
    if not is_patched:
        del coordinator.need_rejoin  # what is left is the client's own
    coordinator._assignment_snapshot = {topic: set() for topic in coordinator._assignment_snapshot}
    begin_a_join(leader)
    for _ in range(10):
        leader.poll(timeout_ms=100)
    assert is_stable(leader) is is_patched
    assert coordinator._heartbeat_enabled is is_patched


@both_ways
def test_a_join_that_was_finished_between_two_polls_is_taken(leader: KafkaConsumer, is_patched: bool) -> None:
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
        wait_until(lambda: second.is_done, 10, "the brokers answered")
        assert not is_stable(leader)
        assert leader.group_metadata().generation_id == before + 2, "and so on, for ever"


def claimed(consumer: KafkaConsumer) -> list[Any]:
    """The partitions that its next JoinGroup says are its own."""
    [(_, metadata)] = consumer._coordinator.group_protocols()
    return [number for topic in metadata.owned_partitions for number in topic.partitions]


@both_ways
def test_who_was_out_of_the_group_claims_nothing(leader: KafkaConsumer, is_patched: bool) -> None:
    for assignor in leader._coordinator._assignors.values():
        if not is_patched:
            del assignor.metadata
    assert claimed(leader) == [0, 1]
    leader._coordinator.maybe_leave_group()
    assert claimed(leader) == ([] if is_patched else [0, 1])


@both_ways
def test_a_partition_without_a_leader_is_named(
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
        monkeypatch.setattr(cluster, "request_update", lambda: asked.append("whether it has one by now"))
        assert leaderless(consumer, partitions) == partitions[1:]
        assert asked


def test_looking_where_a_consumer_reads_on_leaves_what_poll_has_to_tell(
    settings: Settings, partitions: list[TopicPartition]
) -> None:
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
        assert consumer._fetcher._cached_log_truncation is None, "which is why it is not asked"


# --- both -------------------------------------------------------------------------------------------------------------


def test_looking_for_a_topic_does_not_create_it(settings: Settings) -> None:
    with closing(make_consumer(settings)) as consumer, closing(make_producer(settings)) as producer:
        assert not consumer._cluster.metadata_request().allow_auto_topic_creation
        assert not producer._metadata.metadata_request().allow_auto_topic_creation
    options = {"bootstrap_servers": settings.kafka.bootstrap_servers, "allow_auto_create_topics": False}
    with closing(KafkaConsumer(**options)) as as_it_is:
        assert as_it_is._cluster.metadata_request().allow_auto_topic_creation


@pytest.mark.parametrize("make", [make_admin, make_consumer])
def test_a_client_that_reaches_no_broker_leaves_nothing_behind(
    make: Callable[[Settings], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever waits for brokers makes one after the other, for as long as these are away."""
    monkeypatch.setattr("pipeline.kafka.clients.BOOTSTRAP_TIMEOUT_MS", 200)
    (nobody,) = free_ports(1)
    settings = Settings(kafka={"bootstrap_servers": f"127.0.0.1:{nobody}"})

    before = threading.active_count()
    for _ in range(3):
        with pytest.raises(BrokerUnreachable):
            make(settings)
    # Its files go with what keeps it; here that is the record of what was logged.
    wait_until(lambda: threading.active_count() == before, 5, "no thread of theirs is left")


# --- producers --------------------------------------------------------------------------------------------------------


@pytest.fixture
def transactional(settings: Settings) -> Iterator[Callable[[], KafkaProducer]]:
    """Makes producers of one transactional id, with a transaction open and one record in it."""
    made: list[KafkaProducer] = []

    def make() -> KafkaProducer:
        producer = make_producer(settings, transactional_id=settings.forecaster.group_id)
        made.append(producer)
        producer.init_transactions()
        producer.begin_transaction()
        producer.send(settings.kafka.topics.forecasts, b"forecast", partition=0).get(10)
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
        late.get(10)
    if not is_patched:
        wait_until(lambda: predecessor._transaction_manager.has_fatal_error(), 10, "it has asked for another epoch")
        with pytest.raises(client_errors.KafkaError):
            successor.commit_transaction()
        return
    successor.commit_transaction()
    assert [record.value for record in read_all(settings, settings.kafka.topics.forecasts)] == [b"forecast"]


@both_ways
def test_a_login_that_was_refused_is_tried_again(
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
def test_nobody_asks_who_leads_a_partition_to_which_nothing_is_to_be_sent(
    transactional: Callable[[], KafkaProducer], is_patched: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    producer = transactional()
    accumulator, cluster = producer._accumulator, producer._metadata
    if not is_patched:
        del accumulator.ready
    monkeypatch.setattr(cluster, "leader_for_partition", lambda where: -1)
    assert accumulator.ready(cluster)[2] is not is_patched


@pytest.fixture
def own_broker(frail_settings: SettingsFactory) -> Settings:
    """A broker that may be killed."""
    settings = frail_settings(kafka={"partitions": 1})
    ensure_topics(settings)
    return settings


def test_a_producer_is_let_go_of_though_the_broker_does_not_answer(own_broker: Settings) -> None:
    producers = [make_producer(own_broker) for _ in range(2)]
    for producer in producers:
        producer.partitions_for(own_broker.kafka.topics.readings)
    with stopped(own_broker):
        for producer in producers:
            producer.send(own_broker.kafka.topics.readings, b"never arrives")
        with pytest.raises(client_errors.KafkaTimeoutError):
            producers[0].close(timeout=0.2)
        assert producers[0]._sender.is_alive(), "and it goes on trying"
        for producer in producers:
            close_producer(producer, timeout_s=0.2)
            producer._sender.join(5)
            assert not producer._sender.is_alive()


@both_ways
def test_a_commit_that_the_broker_missed_is_sent_when_it_is_back(own_broker: Settings, is_patched: bool) -> None:
    topic = own_broker.kafka.topics.forecasts
    producer = make_producer(own_broker, transactional_id=f"caught-{is_patched}", transaction_timeout_ms=60_000)
    if not is_patched:
        del producer._sender._client.await_ready
    producer.init_transactions()
    producer.begin_transaction()
    producer.send(topic, str(is_patched).encode(), partition=0).get(10)
    os.kill(broker_pid(own_broker), signal.SIGKILL)
    wait_until(lambda: is_free(own_broker.stack.kafka_port), 10, "the broker is dead")
    wait_until(lambda: not producer._sender._client._manager._conns, 10, "the producer has seen it")
    is_committed = threading.Event()

    def commit() -> None:
        producer.commit_transaction()
        is_committed.set()

    threading.Thread(target=commit, name="commit", daemon=True).start()
    assert not is_committed.wait(1)
    Stack(own_broker).up(("kafka",))
    assert is_committed.wait(20 if is_patched else 5) is is_patched
    producer._sender.force_close()
