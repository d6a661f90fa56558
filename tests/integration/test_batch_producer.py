"""The batch producer: the same bytes as kafka-python's ``send``, with the same guarantees."""

import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from kafka import KafkaProducer, TopicPartition
from kafka.consumer.fetcher import ConsumerRecord
from kafka.errors import IllegalStateError, MessageSizeTooLargeError
from kafka.record.default_records import DefaultRecordBatchBuilder

from pipeline.errors import KafkaError
from pipeline.kafka.batch_producer import NO_HEADERS, BatchAppender, check_delivered, encode_headers, encode_varint
from pipeline.kafka.byte_strings import ByteStrings
from pipeline.kafka.clients import make_admin, make_consumer, make_producer
from pipeline.settings import Settings
from tests.waiting import wait_until

pytestmark = pytest.mark.integration

HEADERS: list[tuple[str, bytes | None]] = [("ce_type", b"streamgru.forecast.v1"), ("größe", b""), ("nothing", None)]
TIMESTAMP_MS = 1_700_000_000_000
# Delivery must not expire on a machine that is busy with other tests.
PATIENT = {"request_timeout_ms": 20_000, "delivery_timeout_ms": 30_000}


@pytest.fixture
def topic(broker: Settings) -> Iterator[str]:
    name = f"batches-{uuid.uuid4().hex[:8]}"
    with make_admin(broker) as admin:
        admin.create_topics({name: {"num_partitions": 2, "replication_factor": 1}}, wait_for_metadata=True)
        yield name
        admin.delete_topics([name])


@pytest.fixture
def producer(broker: Settings) -> Iterator[Callable[..., KafkaProducer]]:
    """A function that makes producers, which are closed after the test."""
    made: list[KafkaProducer] = []

    def make(**options: Any) -> KafkaProducer:
        made.append(make_producer(broker, **(PATIENT | options)))
        return made[-1]

    yield make
    for each in made:
        each.close(timeout=5)


def read_all(settings: Settings, topic: str, partition: int, count: int, **options: Any) -> list[ConsumerRecord]:
    """At least ``count`` records from the beginning of a partition, and those of one more poll."""
    where = TopicPartition(topic, partition)
    consumer = make_consumer(settings, **options)
    try:
        consumer.assign([where])
        consumer.seek_to_beginning(where)
        records: list[ConsumerRecord] = []

        def arrived() -> bool:
            records.extend(consumer.poll(timeout_ms=200).get(where, []))
            return len(records) >= count

        wait_until(arrived, 30, f"{count} records of {topic}-{partition} were read")
        records.extend(consumer.poll(timeout_ms=200).get(where, []))
        return records
    finally:
        consumer.close()


def varied_records(count: int) -> tuple[list[bytes | None], list[bytes | None]]:
    """Keys and values, some of them null, with lengths that need varints of one, two and three bytes."""
    keys: list[bytes | None] = [f"sensor-{i % 7}".encode() * (i % 13) for i in range(count)]
    values: list[bytes | None] = [bytes([i % 256]) * (i * 37 % 9_000) for i in range(count)]
    for i in range(5, count, 11):
        keys[i], values[i - 1] = None, None
    return keys, values


@pytest.mark.parametrize(("compression", "in_columns"), [(None, False), ("lz4", False), ("lz4", True)])
def test_appended_batches_have_the_same_bytes_as_sent_ones(
    broker: Settings,
    topic: str,
    producer: Callable[..., KafkaProducer],
    monkeypatch: Any,
    compression: str | None,
    in_columns: bool,
) -> None:
    built: dict[str, list[bytes]] = {"send": [], "append": []}
    build = DefaultRecordBatchBuilder.build
    mode = "send"

    def recording_build(self: DefaultRecordBatchBuilder) -> bytearray:
        buffer = build(self)
        built[mode].append(bytes(buffer))
        return buffer

    monkeypatch.setattr(DefaultRecordBatchBuilder, "build", recording_build)
    # With an hour of linger only a full buffer or the flush sends a batch, so thread timing does not matter.
    # Without idempotence the producers have no ids, which would differ in the headers of their batches.
    options: dict[str, Any] = {"linger_ms": 3_600_000, "delivery_timeout_ms": 4_000_000, "enable_idempotence": False}
    sender = producer(compression_type=compression, batch_size=50_000, **options)
    appender_producer = producer(compression_type=compression, batch_size=50_000, **options)
    keys, values = varied_records(400)
    if in_columns:
        keys, values = [key or b"" for key in keys], [value or b"" for value in values]

    for key, value in zip(keys, values, strict=True):
        sender.send(topic, value, key or (b"" if value is None else key), HEADERS_FOR_SEND, 0, TIMESTAMP_MS)
    sender.flush()
    mode = "append"
    keys = [key or (b"" if value is None else key) for key, value in zip(keys, values, strict=True)]
    appender = BatchAppender(appender_producer)
    block = encode_headers(HEADERS_FOR_SEND)
    many: Any = ByteStrings.of if in_columns else list
    keys, values, blocks = many(keys), many(values), many([block] * 250)
    check_later = appender.append(topic, 0, keys[:150], values[:150], block, TIMESTAMP_MS)
    check_later += appender.append(topic, 0, keys[150:], values[150:], blocks, TIMESTAMP_MS)
    appender_producer.flush()
    check_delivered(check_later)

    assert len(built["send"]) > 5
    assert built["append"] == built["send"]


HEADERS_FOR_SEND = [(name, value) for name, value in HEADERS if value is not None]  # send refuses null headers


def test_committed_records_are_read_back_intact_and_aborted_records_are_not(
    broker: Settings, topic: str, producer: Callable[..., KafkaProducer]
) -> None:
    transactional = producer(transactional_id=topic, transaction_timeout_ms=40_000)
    transactional.init_transactions()
    appender = BatchAppender(transactional)
    expected: list[tuple[bytes | None, bytes | None, list[tuple[str, bytes | None]]]] = []
    for turn in range(4):
        committed = turn != 1
        transactional.begin_transaction()
        keys, values = varied_records(3_000) if committed else ([b"aborted"] * 500, [b"never seen"] * 500)
        own = [[("index", str(i).encode())] for i in range(len(keys))]
        futures = appender.append(topic, 1, keys, values, [encode_headers(each) for each in own])
        futures += appender.append(topic, 1, [b"constant"] * 10, [b"x"] * 10, encode_headers(HEADERS))
        futures.append(transactional.send(topic, b"by send", b"between", partition=1))
        futures += appender.append(topic, 1, [b"bare"], [b"y"])
        transactional.flush()
        if committed:
            check_delivered(futures)
            transactional.commit_transaction()
            expected += list(zip(keys, values, own, strict=True))
            expected += [(b"constant", b"x", HEADERS)] * 10 + [(b"between", b"by send", []), (b"bare", b"y", [])]
        else:
            transactional.abort_transaction()

    records = read_all(broker, topic, 1, len(expected))

    assert [(record.key, record.value, list(record.headers)) for record in records] == expected


def test_appended_records_wait_for_the_flush_if_the_appends_of_a_transaction_share_requests(
    topic: str, producer: Callable[..., KafkaProducer], monkeypatch: pytest.MonkeyPatch
) -> None:
    transactional = producer(transactional_id=topic, transaction_timeout_ms=40_000)
    transactional.init_transactions()
    transactional.begin_transaction()
    appender = BatchAppender(transactional)
    transactional.partitions_for(topic)  # the lookup of a topic wakes the thread too
    wake, wakes = transactional._sender.wakeup, []
    monkeypatch.setattr(transactional._sender, "wakeup", lambda: wakes.append(wake()))
    futures = [each for number in (0, 1) for each in appender.append(topic, number, [b"k"], [b"v"], wake=False)]
    assert not wakes
    transactional.flush()
    assert len(wakes) == 1
    check_delivered(futures)
    futures = appender.append(topic, 0, [b"k"], [b"v"])
    assert len(wakes) == 2
    transactional.commit_transaction()


def test_futures_give_the_offsets_of_the_appended_batches(
    broker: Settings, topic: str, producer: Callable[..., KafkaProducer]
) -> None:
    plain = producer(batch_size=10_000)
    futures = BatchAppender(plain).append(topic, 0, [b"k"] * 1_000, [b"v" * 100] * 1_000)
    plain.flush()
    check_delivered(futures)

    offsets = [future.value.offset for future in futures]
    assert len(offsets) > 10
    assert offsets[0] == 0
    assert offsets == sorted(offsets)
    assert offsets[-1] < 1_000


def test_a_record_of_the_largest_size_is_sent_and_a_larger_one_is_refused_before_any_append(
    broker: Settings, topic: str, producer: Callable[..., KafkaProducer]
) -> None:
    plain = producer(max_request_size=40_000, batch_size=1_000, compression_type=None)
    appender = BatchAppender(plain)
    with pytest.raises(KafkaError, match=r"40,002 bytes for topic .*, partition 0, exceeds .*b'large'"):
        appender.append(topic, 0, [b"small", b"large"], [b"v", b"v" * 39_996])

    largest = 40_000 - 82 - len(b"large") - len(NO_HEADERS)
    futures = appender.append(topic, 0, [b"small", b"large", b"small"], [b"v", b"v" * largest, b"v"])
    plain.flush()
    check_delivered(futures)

    assert [len(record.value) for record in read_all(broker, topic, 0, 3)] == [1, largest, 1]


def test_no_record_of_a_batch_is_delivered_if_the_topic_refuses_the_batch(
    broker: Settings, producer: Callable[..., KafkaProducer]
) -> None:
    name = f"batches-{uuid.uuid4().hex[:8]}"
    with make_admin(broker) as admin:
        admin.create_topics(
            {name: {"num_partitions": 1, "replication_factor": 1, "configs": {"max.message.bytes": "5000"}}},
            wait_for_metadata=True,
        )
        plain = producer(batch_size=100_000, compression_type=None)
        futures = BatchAppender(plain).append(name, 0, [b"k"] * 100, [b"v" * 100] * 100)
        plain.flush()
        with pytest.raises(MessageSizeTooLargeError):
            check_delivered(futures)
        admin.delete_topics([name])


def test_append_refuses_unknown_partitions_unequal_lengths_and_a_closed_producer(
    topic: str, producer: Callable[..., KafkaProducer]
) -> None:
    plain = producer()
    appender = BatchAppender(plain)
    assert appender.append(topic, 0, [], []) == []
    with pytest.raises(ValueError, match="has no partition 7"):
        appender.append(topic, 7, [b"k"], [b"v"])
    with pytest.raises(ValueError, match="differ in number"):
        appender.append(topic, 0, [b"k"], [])
    plain.close()
    with pytest.raises(IllegalStateError, match="closed"):
        appender.append(topic, 0, [b"k"], [b"v"])


@pytest.mark.parametrize(
    ("value", "encoded"),
    [
        (0, b"\x00"),
        (-1, b"\x01"),
        (63, b"\x7e"),
        (64, b"\x80\x01"),
        (-5_000, b"\x8f\x4e"),
        (1 << 20, b"\x80\x80\x80\x01"),
    ],
)
def test_varints_are_zigzag_encoded(value: int, encoded: bytes) -> None:
    assert encode_varint(value) == encoded
