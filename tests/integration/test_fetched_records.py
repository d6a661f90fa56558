"""The fast consumer against the client's own, on a topic with everything in it."""

import uuid

import pytest
from kafka import TopicPartition
from kafka.admin import NewTopic

from pipeline.kafka.clients import make_admin, make_consumer, make_producer
from pipeline.kafka.fetched_records import FetchedRecord, read_fast
from pipeline.settings import Settings
from tests.waiting import wait_until

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def filled(broker: Settings) -> str:
    """Committed, aborted, compressed and plain records, nulls, headers, and control batches in between."""
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


def read(settings: Settings, topic: str, *, fast: bool, isolation_level: str) -> tuple[list[FetchedRecord], int]:
    consumer = make_consumer(settings, isolation_level=isolation_level)
    if fast:
        read_fast(consumer)
    where = TopicPartition(topic, 0)
    consumer.assign([where])
    consumer.seek(where, 3)  # in the middle of a batch
    end = consumer.end_offsets([where])[where]
    found: list[FetchedRecord] = []

    def is_at_end() -> bool:
        polled = consumer.poll(timeout_ms=100, max_records=7).get(where, [])
        found.extend(FetchedRecord(one.key, one.value, one.offset, one.headers, one.timestamp) for one in polled)
        return consumer.position(where) >= end

    wait_until(is_at_end, 30, "the topic was read")
    position = consumer.position(where)
    consumer.close()
    return found, position


@pytest.mark.parametrize("isolation_level", ["read_committed", "read_uncommitted"])
def test_records_and_positions_are_those_of_the_client(broker: Settings, filled: str, isolation_level: str) -> None:
    theirs = read(broker, filled, fast=False, isolation_level=isolation_level)
    assert len(theirs[0]) == (500 if isolation_level == "read_committed" else 750) - 3
    assert read(broker, filled, fast=True, isolation_level=isolation_level) == theirs
