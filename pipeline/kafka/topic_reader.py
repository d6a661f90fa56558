"""Reads a range of a topic with a consumer of its own: read_committed and no group, so no group's offsets move."""

import time
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

from kafka import TopicPartition

from pipeline.errors import BrokerUnreachable
from pipeline.kafka.batch_consumer import Headers, read_fast
from pipeline.kafka.clients import make_consumer, partition_count, translate_errors
from pipeline.settings import Settings

_STALLED_S: Final = 30.0  # a broker that has the records delivers some within this time
_POLL_RECORDS: Final = 10_000

Offsets = Mapping[int, int]  # partition -> offset


class LoggedRecord(NamedTuple):
    """A record with its place, behind which stands what ``FetchedRecord`` has."""

    topic: str
    partition: int
    key: bytes | None
    value: bytes | None
    offset: int
    headers: Headers
    timestamp: int  # ms since the epoch


def topic_ends(settings: Settings, topic: str) -> dict[int, int]:
    """The end of each partition now, as a read_committed reader sees it.

    Raises:
        KafkaError: no broker answers, or there is no such topic.
    """
    with translate_errors(f"looking up the ends of topic {topic}", settings):
        consumer = make_consumer(settings)
        try:
            return {tp.partition: end for tp, end in consumer.end_offsets(_partitions(consumer, topic)).items()}
        finally:
            consumer.close()


def topic_starts(settings: Settings, topic: str) -> dict[int, int]:
    """The first offset that each partition still has.

    Raises:
        KafkaError: no broker answers, or there is no such topic.
    """
    with translate_errors(f"looking up the beginnings of topic {topic}", settings):
        consumer = make_consumer(settings)
        try:
            found = consumer.beginning_offsets(_partitions(consumer, topic))
            return {tp.partition: start for tp, start in found.items()}
        finally:
            consumer.close()


def offsets_at(settings: Settings, topic: str, moment_us: int) -> dict[int, int]:
    """In each partition the offset of the first record sent at that time or later; the end where there is none.

    Raises:
        KafkaError: no broker answers, or there is no such topic.
    """
    with translate_errors(f"looking up offsets of topic {topic} by time", settings):
        consumer = make_consumer(settings)
        try:
            partitions = _partitions(consumer, topic)
            ends = consumer.end_offsets(partitions)
            found = consumer.offsets_for_times(dict.fromkeys(partitions, max(0, moment_us // 1_000)))
            return {tp.partition: ends[tp] if found.get(tp) is None else found[tp].offset for tp in partitions}
        finally:
            consumer.close()


def read_topic(settings: Settings, topic: str, starts: Offsets, ends: Offsets | None) -> Iterator[LoggedRecord]:
    """The records of a topic from ``starts`` (a partition's beginning where not named) to ``ends`` (now, likewise).

    Records of one partition come in offset order, partitions in any order.

    Raises:
        KafkaError: no broker answers, the topic is missing, or the records stop coming.
    """
    with translate_errors(f"reading topic {topic}", settings):
        consumer = read_fast(make_consumer(settings, max_poll_records=_POLL_RECORDS))
        try:
            partitions = _partitions(consumer, topic)
            now = consumer.end_offsets(partitions)
            limits = now if ends is None else {tp: ends.get(tp.partition, 0) for tp in partitions}
            consumer.assign(partitions)
            consumer.seek_to_beginning(*partitions)
            for tp in partitions:
                if tp.partition in starts:
                    consumer.seek(tp, starts[tp.partition])
            yield from _poll_until(consumer, limits)
        finally:
            consumer.close()


def _poll_until(consumer: Any, limits: dict[Any, int]) -> Iterator[LoggedRecord]:
    pending = set(limits)
    deadline = time.monotonic() + _STALLED_S
    while True:
        # Only positions tell the end: markers of transactions take offsets too, and are never delivered.
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
            raise BrokerUnreachable(f"the broker delivered nothing for {_STALLED_S:g} s: {where}. Is it up?")
        for tp, records in batches.items():
            yield from (LoggedRecord(*tp, *record) for record in records if record.offset < limits[tp])


def _partitions(consumer: Any, topic: str) -> list[Any]:
    return [TopicPartition(topic, number) for number in range(partition_count(consumer, topic))]
