"""The batch consumer against kafka-python's own: equal records, and no prefetch after small batches."""

import uuid
from collections.abc import Iterator

import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import NewTopic

from pipeline.kafka.batch_consumer import FEW_RECORDS, fetch_late, read_fast
from pipeline.kafka.clients import make_admin, make_consumer, make_producer
from pipeline.kafka.record_batch import FetchedRecord
from pipeline.settings import Settings
from tests.waiting import wait_until

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def filled(broker: Settings) -> str:
    """A topic with committed, aborted, compressed and plain records, nulls, headers and control batches."""
    topic = f"records-{uuid.uuid4().hex[:8]}"
    admin = make_admin(broker)
    admin.create_topics([NewTopic(topic, 1, 1)])
    admin.close()
    for round_, compression in enumerate((None, "lz4", "gzip", "snappy", "zstd")):
        producer = make_producer(broker, transactional_id=f"{topic}-{round_}", compression_type=compression)
        producer.init_transactions()
        for commits in (True, False, True):
            producer.begin_transaction()
            for number in range(50):
                value = None if number % 7 == 0 else bytes([number]) * number * 10
                headers = [("name", b"value"), ("empty", b"")] if number % 3 == 0 else []
                key = None if number % 5 == 1 and value else f"{round_}-{commits}-{number}".encode()
                producer.send(topic, value, key, headers, partition=0)
            producer.flush()
            if commits:
                producer.commit_transaction()
            else:
                producer.abort_transaction()
        producer.close()
    return topic


def read(
    settings: Settings, topic: str, *, fast: bool, isolation_level: str, in_columns: bool = False
) -> tuple[list[FetchedRecord], int]:
    consumer = make_consumer(settings, isolation_level=isolation_level)
    if fast:
        read_fast(consumer, settings.kafka, in_columns=in_columns)
    where = TopicPartition(topic, 0)
    consumer.assign([where])
    consumer.seek(where, 3)  # in the middle of a batch
    end = consumer.end_offsets([where])[where]
    found: list[FetchedRecord] = []

    def is_at_end() -> bool:
        polled = consumer.poll(timeout_ms=100, max_records=7).get(where, [])
        found.extend(FetchedRecord(one.key, one.value, one.offset, one.headers, one.timestamp) for one in polled)
        return consumer.position(where) >= end

    wait_until(is_at_end, 30, "the topic was read to its end")
    position = consumer.position(where)
    consumer.close()
    return found, position


@pytest.mark.parametrize("isolation_level", ["read_committed", "read_uncommitted"])
def test_records_and_positions_equal_those_of_kafka_python(broker: Settings, filled: str, isolation_level: str) -> None:
    theirs = read(broker, filled, fast=False, isolation_level=isolation_level)
    assert len(theirs[0]) == (500 if isolation_level == "read_committed" else 750) - 3
    assert read(broker, filled, fast=True, isolation_level=isolation_level) == theirs
    assert read(broker, filled, fast=True, isolation_level=isolation_level, in_columns=True) == theirs


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
    """Send records and wait until the broker has them."""
    for number in range(count):
        producer.send(where.topic, str(number).encode(), partition=where.partition)
    producer.flush()


def poll(consumer: KafkaConsumer, where: TopicPartition, most: int = 10_000) -> int:
    """The number of records in the next non-empty poll."""
    found: list[int] = []

    def is_not_empty() -> bool:
        found.append(len(consumer.poll(timeout_ms=1_000, max_records=most).get(where, [])))
        return found[-1] > 0

    wait_until(is_not_empty, 30, "records were polled")
    return found[-1]


def test_a_poll_after_a_small_batch_returns_all_records_that_arrived_since(
    consumer: KafkaConsumer, producer: KafkaProducer, where: TopicPartition
) -> None:
    send(producer, where, 2)
    assert [poll(consumer, where, 1), poll(consumer, where, 1)] == [1, 1]  # the client had buffered the second record
    for _ in range(4):
        send(producer, where, 2)  # the first of these records would answer a prefetch
    assert poll(consumer, where) == 8


def test_a_poll_of_a_large_batch_prefetches(
    consumer: KafkaConsumer, producer: KafkaProducer, where: TopicPartition
) -> None:
    send(producer, where, 2 * FEW_RECORDS)
    assert poll(consumer, where, FEW_RECORDS) == FEW_RECORDS
    assert not consumer._fetcher.in_flight_fetches()
    assert poll(consumer, where) == FEW_RECORDS  # the poll returns the rest of the client's buffer
    assert consumer._fetcher.in_flight_fetches()


def test_a_transaction_marker_does_not_count_as_backlog(
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


def test_an_idle_consumer_keeps_a_fetch_in_flight(
    consumer: KafkaConsumer, producer: KafkaProducer, where: TopicPartition
) -> None:
    def has_fetch_in_flight() -> bool:  # false until the client knows the partition's leader
        assert consumer.poll(timeout_ms=20) == {}
        return bool(consumer._fetcher.in_flight_fetches())

    wait_until(has_fetch_in_flight, 30, "a fetch is in flight")
    send(producer, where, 1)
    assert poll(consumer, where) == 1
