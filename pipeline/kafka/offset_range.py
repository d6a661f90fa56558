"""Reads a bounded range of a topic into a store that keeps records and their next offsets in one commit.

``ingest`` and ``export`` share it. The start offsets are those of the store's last commit, so a run that is killed is
repeated from there: no consumer group is involved. The end offsets are fetched once, so that a run ends even if records
keep arriving.
"""

import logging
import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Final, Protocol

import kafka.errors as client_errors
from kafka import KafkaConsumer, TopicPartition

from pipeline.errors import BrokerUnreachable, OffsetsLost, StreamgruError, TopicError
from pipeline.kafka.clients import partition_count, translate_errors
from pipeline.kafka.topics import find_topic_id
from pipeline.settings import Settings

logger = logging.getLogger("streamgru.offset_range")

POLL_RECORDS: Final = 20_000
POLL_TIMEOUT_MS: Final = 500
# Longest time without a new record; ``poll`` does not report that a broker is unreachable.
STALLED_S: Final = 30.0


class OffsetStore(Protocol):
    """A table that keeps the next offsets of its topic."""

    def next_offsets(self, topic: str) -> dict[int, int]:
        """The next offset to append by partition of ``topic``; partitions never read are absent."""

    def has_offsets(self) -> bool:
        """Whether there was an append for any topic."""

    def is_of_another_topic(self, topic: str, topic_id: str) -> bool:
        """Whether the stored offsets of ``topic`` belong to a topic with another id."""


@dataclass(frozen=True)
class Wording:
    """Phrases of error messages.

    ``store`` names the store, ``command`` is the command to repeat, and ``remedy`` says how to begin a new store.
    ``records`` and ``done`` are words such as "readings" and "ingested".
    """

    store: str
    command: str
    remedy: str
    records: str
    done: str
    error: type[StreamgruError]


@dataclass(frozen=True)
class OffsetRange:
    """The offsets to read by partition: from ``start`` up to, not including, ``end``."""

    topic: str
    topic_id: str
    start: dict[int, int]
    end: dict[int, int]
    stored: dict[int, int]  # next offset in the store by partition; absent if never read
    lost: int  # offsets that retention deleted before they were read

    @property
    def total(self) -> int:
        """The number of offsets in the range."""
        return sum(self.end.values()) - sum(self.start.values())


def plan_range(
    settings: Settings, consumer: KafkaConsumer, topic: str, store: OffsetStore, wording: Wording, accept_loss: bool
) -> OffsetRange:
    """The range to read: from the store's next offsets to the current ends.

    Raises:
        BrokerUnreachable: no broker answers.
        TopicError: the topic does not exist, or was recreated since the last run.
        OffsetsLost: retention deleted records before they were read, and ``accept_loss`` is False.
        StreamgruError: the store holds another topic; of the type that ``wording`` names.
    """
    with translate_errors(f"looking up the offsets of topic {topic}"):
        partitions = [TopicPartition(topic, number) for number in range(partition_count(consumer, topic))]
        earliest = {at.partition: offset for at, offset in consumer.beginning_offsets(partitions).items()}
        end = {at.partition: offset for at, offset in consumer.end_offsets(partitions).items()}
    topic_id = find_topic_id(settings, topic)  # look up the id last, to notice a topic that was recreated meanwhile
    stored = store.next_offsets(topic)
    if not stored and store.has_offsets():
        raise wording.error(
            f"{wording.store} holds {wording.records} of a topic other than {topic}, and a table can only hold one "
            f"topic; {wording.remedy}"
        )
    for partition, offset in sorted(stored.items()):
        if offset > end.get(partition, -1):
            ends = f"ends at offset {end[partition]}" if partition in end else "no longer exists"
            raise TopicError(
                f"the next offset in {wording.store} is {offset} for topic {topic}, partition {partition}, which "
                f"{ends}: the topic was deleted and recreated. Old and new offsets would mix; {wording.remedy}"
            )
    if store.is_of_another_topic(topic, topic_id):
        raise TopicError(
            f"{wording.store} has offsets of an earlier topic {topic}, and the topic now has the id {topic_id}: the "
            f"topic was deleted and recreated. Old and new offsets would mix; {wording.remedy}"
        )
    lost = {
        partition: earliest[partition] - offset for partition, offset in stored.items() if offset < earliest[partition]
    }
    if lost and not accept_loss:
        gaps = "; ".join(
            f"partition {partition}: next offset {stored[partition]}, first offset on the topic {earliest[partition]}"
            for partition in sorted(lost)
        )
        raise OffsetsLost(
            f"{wording.records} on topic {topic} were deleted by its retention before they were {wording.done} "
            f"({gaps}). `{wording.command} --accept-loss` continues at the topic's first offset, with a gap"
        )
    if lost:
        logger.warning(
            "%d offsets of topic %s were deleted before they were %s: %s",
            sum(lost.values()),
            topic,
            wording.done,
            lost,
        )
    start = {number: max(stored.get(number, 0), earliest[number]) for number in end}
    return OffsetRange(topic, topic_id, start, end, stored, sum(lost.values()))


class RangeReader:
    """Reads one planned range and commits it in chunks.

    Args:
        consumer: a consumer without a group, with ``auto_offset_reset="none"``.
        add: takes a partition's next records; returns the number of rows that are not committed yet.
        commit: stores these rows and the next offsets of partitions that advanced, in one commit.
        chunk_rows: rows per commit.
        progressed: called after every poll and every commit.
    """

    def __init__(
        self,
        settings: Settings,
        consumer: KafkaConsumer,
        bounds: OffsetRange,
        wording: Wording,
        *,
        add: Callable[[int, Sequence[Any]], int],
        commit: Callable[[dict[int, int]], None],
        chunk_rows: int,
        progressed: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._consumer = consumer
        self._bounds = bounds
        self._wording = wording
        self._add = add
        self._store = commit
        self._chunk_rows = chunk_rows
        self._progressed = progressed
        self._position = dict(bounds.start)
        self._committed = dict(bounds.stored)
        self.commits = 0

    @property
    def done_offsets(self) -> int:
        """The number of offsets read so far."""
        return sum(self._position.values()) - sum(self._bounds.start.values())

    def run(self) -> None:
        """Read and commit the whole range.

        Raises:
            BrokerUnreachable: the brokers sent no record for ``STALLED_S``; earlier records are committed.
            OffsetsLost: retention deleted records of the range during the run.
        """
        bounds = self._bounds
        open_partitions = {part for part, offset in bounds.start.items() if offset < bounds.end[part]}
        with translate_errors(f"reading topic {bounds.topic}", self._settings):
            self._consumer.assign([TopicPartition(bounds.topic, part) for part in sorted(open_partitions)])
            for part in open_partitions:
                self._consumer.seek(TopicPartition(bounds.topic, part), bounds.start[part])
        moved_at = time.monotonic()
        while open_partitions:
            rows = 0
            for at, records in self._poll().items():
                end = bounds.end[at.partition]
                # The next run reads the other records.
                records = records[: bisect_left(records, end, key=attrgetter("offset"))]
                rows = self._add(at.partition, records)
            moved = self._update_positions(open_partitions)
            if moved:
                moved_at = time.monotonic()
            elif time.monotonic() - moved_at > STALLED_S:
                self._commit()
                raise BrokerUnreachable(
                    f"the brokers at {self._settings.kafka.bootstrap_servers} sent no record for {STALLED_S:.0f} s; "
                    f"partitions {sorted(open_partitions)} of topic {bounds.topic} are not read to their end. Earlier "
                    f"{self._wording.records} are committed; check `streamgru status`, then run it again"
                )
            self._progressed()
            if rows >= self._chunk_rows:
                self._commit()
        self._commit()

    def _poll(self) -> dict[Any, Sequence[Any]]:
        topic = self._bounds.topic
        with translate_errors(f"reading topic {topic}", self._settings):
            try:
                polled: dict[Any, Sequence[Any]] = self._consumer.poll(POLL_TIMEOUT_MS)
            except client_errors.OffsetOutOfRangeError as error:
                raise OffsetsLost(
                    f"{self._wording.records} on topic {topic} were deleted by its retention while they were read "
                    f"({error}). Earlier {self._wording.records} are committed. Set a longer retention; the next "
                    f"`{self._wording.command} --accept-loss` continues at the topic's first offset, with a gap"
                ) from error
        return polled

    def _update_positions(self, open_partitions: set[int]) -> bool:
        """Update the position of each partition, and remove finished ones; return whether any position advanced."""
        moved = False
        for part in sorted(open_partitions):
            at = TopicPartition(self._bounds.topic, part)
            position = min(self._consumer.position(at), self._bounds.end[part])
            moved |= position > self._position[part]
            self._position[part] = position
            if position >= self._bounds.end[part]:
                open_partitions.remove(part)
                self._consumer.pause(at)
        return moved

    def _commit(self) -> None:
        """Commit rows and offsets; only the offsets if there are no rows.

        The offset of an empty new partition is stored too. Otherwise the next run would not notice that retention
        deleted records of it in between.
        """
        fresh = {part: offset for part, offset in self._position.items() if offset > self._committed.get(part, -1)}
        if not fresh:
            return
        self._store(fresh)
        self._committed = dict(self._position)
        self.commits += 1
        self._progressed()
