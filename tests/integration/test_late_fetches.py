"""A consumer that fetches when it is asked, and the client's own beside it."""

import uuid
from collections.abc import Iterator

import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import NewTopic

from pipeline.kafka.clients import make_admin, make_consumer, make_producer
from pipeline.kafka.late_fetches import FEW_RECORDS, fetch_late
from pipeline.settings import Settings
from tests.waiting import wait_until

pytestmark = pytest.mark.integration


@pytest.fixture
def where(broker: Settings) -> TopicPartition:
    topic = f"fetched-{uuid.uuid4().hex[:8]}"
    admin = make_admin(broker)
    admin.create_topics([NewTopic(topic, 1, 1)])
    admin.close()
    return TopicPartition(topic, 0)


@pytest.fixture
def producer(broker: Settings) -> Iterator[KafkaProducer]:
    made = make_producer(broker)
    yield made
    made.close()


@pytest.fixture
def consumer(broker: Settings, where: TopicPartition) -> Iterator[KafkaConsumer]:
    made = fetch_late(make_consumer(broker))
    made.assign([where])
    made.seek(where, 0)
    yield made
    made.close()


def send(producer: KafkaProducer, where: TopicPartition, count: int) -> None:
    """All of them, when this returns."""
    for number in range(count):
        producer.send(where.topic, str(number).encode(), partition=where.partition)
    producer.flush()


def poll(consumer: KafkaConsumer, where: TopicPartition, most: int = 10_000) -> int:
    """How many records the next poll that brings any brought."""
    found: list[int] = []

    def has_come() -> bool:
        found.append(len(consumer.poll(timeout_ms=1_000, max_records=most).get(where, [])))
        return found[-1] > 0

    wait_until(has_come, 30, "records were polled")
    return found[-1]


def test_behind_a_small_batch_a_poll_brings_all_that_arrived_meanwhile(
    consumer: KafkaConsumer, producer: KafkaProducer, where: TopicPartition
) -> None:
    send(producer, where, 2)
    assert [poll(consumer, where, 1), poll(consumer, where, 1)] == [1, 1]  # the second was at hand already
    for _ in range(4):
        send(producer, where, 2)  # the first of these would have answered a fetch that was sent ahead
    assert poll(consumer, where) == 8


def test_behind_a_large_batch_the_client_fetches_ahead(
    consumer: KafkaConsumer, producer: KafkaProducer, where: TopicPartition
) -> None:
    send(producer, where, 2 * FEW_RECORDS)
    assert poll(consumer, where, FEW_RECORDS) == FEW_RECORDS
    assert not consumer._fetcher.in_flight_fetches()
    assert poll(consumer, where) == FEW_RECORDS  # to the end of what was at hand
    assert consumer._fetcher.in_flight_fetches()


def test_the_marker_behind_a_transaction_is_no_backlog(
    broker: Settings, consumer: KafkaConsumer, where: TopicPartition
) -> None:
    producer = make_producer(broker, transactional_id=f"late-{where.topic}")
    producer.init_transactions()
    producer.begin_transaction()
    send(producer, where, 2)
    producer.commit_transaction()
    producer.close()
    assert poll(consumer, where) == 2
    assert not consumer._fetcher.in_flight_fetches()


def test_an_idle_consumer_has_asked_already(
    consumer: KafkaConsumer, producer: KafkaProducer, where: TopicPartition
) -> None:
    def has_asked() -> bool:  # not before it knows the partition's leader
        assert consumer.poll(timeout_ms=20) == {}
        return bool(consumer._fetcher.in_flight_fetches())

    wait_until(has_asked, 30, "a fetch is on its way")
    send(producer, where, 1)
    assert poll(consumer, where) == 1
