"""Reads a range of a topic with its own consumer: read_committed, and without a group, so that no offsets change."""

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from typing import Any, Final, NamedTuple

from kafka import KafkaConsumer, TopicPartition

from pipeline.errors import BrokerUnreachable, KafkaError
from pipeline.kafka.batch_consumer import read_fast
from pipeline.kafka.clients import make_consumer, partition_count, translate_errors
from pipeline.kafka.record_batch import Headers
from pipeline.settings import Settings
from pipeline.unreadable_batch import UnreadableBatch

logger = logging.getLogger("streamgru.topic_reader")

_STALLED_S: Final = 30.0  # a reachable broker delivers some records within this time
_POLL_RECORDS: Final = 10_000

Offsets = Mapping[int, int]  # partition -> offset


class LoggedRecord(NamedTuple):
    """A record with its topic and partition; the other fields are those of ``FetchedRecord``."""

    topic: str
    partition: int
    key: bytes | None
    value: bytes | None
    offset: int
    headers: Headers
    timestamp: int  # ms since the epoch


def topic_ends(settings: Settings, topic: str) -> dict[int, int]:
    """The current end of each partition for a read_committed reader.

    Raises:
        KafkaError: no broker answers, or the topic does not exist.
    """
    with _open(settings, topic, f"looking up the ends of topic {topic}") as (consumer, partitions):
        return {tp.partition: end for tp, end in consumer.end_offsets(partitions).items()}


def topic_starts(settings: Settings, topic: str) -> dict[int, int]:
    """The first retained offset of each partition.

    Raises:
        KafkaError: no broker answers, or the topic does not exist.
    """
    with _open(settings, topic, f"looking up the first offsets of topic {topic}") as (consumer, partitions):
        return {tp.partition: start for tp, start in consumer.beginning_offsets(partitions).items()}


def offsets_at(settings: Settings, topic: str, moment_us: int) -> dict[int, int]:
    """In each partition the offset of the first record sent at that time or later; the end if there is no such record.

    Raises:
        KafkaError: no broker answers, or the topic does not exist.
    """
    with _open(settings, topic, f"looking up offsets of topic {topic} by time") as (consumer, partitions):
        ends = consumer.end_offsets(partitions)
        found = consumer.offsets_for_times(dict.fromkeys(partitions, max(0, moment_us // 1_000)))
        return {tp.partition: ends[tp] if found.get(tp) is None else found[tp].offset for tp in partitions}


def read_topic(settings: Settings, topic: str, starts: Offsets, ends: Offsets | None) -> Iterator[LoggedRecord]:
    """The records of a topic from ``starts`` to ``ends``; a partition that ``starts`` lacks is read from its beginning.

    Without ``ends`` every partition is read to its current end; a partition that ``ends`` lacks is not read. Records of
    one partition come in offset order, partitions in any order. A batch of readings that cannot be read is one record
    with an ``UnreadableBatch``.

    Raises:
        KafkaError: no broker answers, the topic does not exist, the brokers stop delivering, or a batch of forecasts or
            states cannot be read.
    """
    with _open(settings, topic, f"reading topic {topic}", max_poll_records=_POLL_RECORDS) as (consumer, partitions):
        read_fast(consumer, settings.kafka)
        limits = (
            consumer.end_offsets(partitions) if ends is None else {tp: ends.get(tp.partition, 0) for tp in partitions}
        )
        consumer.assign(partitions)
        consumer.seek_to_beginning(*partitions)
        for tp in partitions:
            if tp.partition in starts:
                consumer.seek(tp, starts[tp.partition])
        for record in _poll_until(consumer, limits):
            if type(record.value) is UnreadableBatch and topic != settings.kafka.topics.readings:
                _refuse(record.value, settings, record)
            else:
                yield record


def _refuse(batch: UnreadableBatch, settings: Settings, record: LoggedRecord) -> None:
    """Log a batch of dead letters that cannot be read, so that the other letters can; raise for other topics."""
    message = (
        f"topic {record.topic}, partition {record.partition}: the records at offsets {batch.first_offset} to "
        f"{batch.last_offset} cannot be read: {batch.detail}"
    )
    if record.topic != settings.kafka.topics.dead_letters:
        raise KafkaError(message)
    logger.error("%s", message)


def _poll_until(consumer: Any, limits: dict[Any, int]) -> Iterator[LoggedRecord]:
    pending = set(limits)
    deadline = time.monotonic() + _STALLED_S
    while True:
        # Only positions show the end: transaction markers have offsets too, and are never delivered.
        done = {tp for tp in pending if consumer.position(tp) >= limits[tp]}
        if done:
            pending -= done
            consumer.pause(*done)
        if not pending:
            return
        batches = consumer.poll(timeout_ms=500)
        if batches:
            deadline = time.monotonic() + _STALLED_S
        elif time.monotonic() > deadline:
            where = ", ".join(f"{tp.topic}-{tp.partition} at {consumer.position(tp)}" for tp in sorted(pending))
            raise BrokerUnreachable(
                f"the brokers sent no record for {_STALLED_S:g} s ({where}); check that they are up"
            )
        for tp, records in batches.items():
            yield from (LoggedRecord(*tp, *record) for record in records if record.offset < limits[tp])


@contextmanager
def _open(
    settings: Settings, topic: str, doing: str, **options: Any
) -> Iterator[tuple[KafkaConsumer, list[TopicPartition]]]:
    """A consumer without a group, and the topic's partitions."""
    with translate_errors(doing, settings), closing(make_consumer(settings, **options)) as consumer:
        yield consumer, [TopicPartition(topic, number) for number in range(partition_count(consumer, topic))]
