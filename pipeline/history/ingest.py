"""Appends a bounded range of Kafka readings to the history table, each reading once, even if the run is killed.

1. The start offsets are those in the table's last commit (there is no consumer group).
2. The end offsets are fetched once, so that a run ends even if readings keep arriving.
3. The decoder of the stream decodes the readings in between. Malformed records are counted and left out, because only
   the forecaster writes dead letters.
4. Every chunk is one commit of its readings and its end offsets. After a kill before the commit, the next run reads the
   chunk again; after a kill that follows the commit, it starts after the chunk.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, Final

import kafka.errors as client_errors
import numpy as np
import polars as pl
from kafka import KafkaConsumer, TopicPartition

from pipeline.errors import BrokerUnreachable, HistoryError, OffsetsLost, TopicError
from pipeline.file_lock import hold_lock
from pipeline.history.table import History
from pipeline.kafka.batch_consumer import read_fast
from pipeline.kafka.clients import make_consumer, partition_count, translate_errors
from pipeline.kafka.topics import find_topic_id
from pipeline.messages import Rejected
from pipeline.readings_format.decoder import make_decoder
from pipeline.settings import Settings

logger = logging.getLogger("streamgru.ingest")

# Readings per commit: some 60 MB in memory, and a file of a few MB in the table.
CHUNK_READINGS: Final = 250_000
POLL_RECORDS: Final = 20_000
POLL_TIMEOUT_MS: Final = 500
# Longest time without a new record; ``poll`` does not report that a broker is unreachable.
STALLED_S: Final = 30.0
_NEW_FOLDER: Final = "Old and new offsets would mix; point `history` in the settings at a new folder"


@dataclass(frozen=True)
class IngestReport:
    """The counts of a run, during or after it. ``total_offsets`` is the length of its range."""

    topic: str
    done_offsets: int
    total_offsets: int
    readings: int = 0
    rejected: Mapping[str, int] = field(default_factory=dict)  # reason -> records
    ignored_values: int = 0  # values of features that the settings do not name
    lost_offsets: int = 0  # offsets that retention deleted before they were read
    commits: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        if self.total_offsets:
            text = f"{self.readings:,} readings from topic {self.topic} in {self.seconds:.1f} s, {self.commits} commits"
        else:
            text = f"nothing new on topic {self.topic}"
        if self.rejected:
            reasons = ", ".join(f"{reason} {count:,}" for reason, count in sorted(self.rejected.items()))
            text += f"; malformed and left out: {reasons}"
        if self.ignored_values:
            text += f"; ignored values of features that are not in the settings: {self.ignored_values:,}"
        if self.lost_offsets:
            text += f"; deleted by the topic's retention before they were read: {self.lost_offsets:,} offsets"
        return text


def ingest(
    settings: Settings,
    *,
    accept_loss: bool = False,
    chunk_readings: int = CHUNK_READINGS,
    report: Callable[[IngestReport], None] | None = None,
) -> IngestReport:
    """Append the new readings on the readings topic to the history table.

    Args:
        accept_loss: start at the topic's first offset if retention deleted the next offset of the history.
        chunk_readings: readings per commit.
        report: called after every poll and every commit.

    Raises:
        Busy: another ingest writes to the same table.
        BrokerUnreachable: no broker answers.
        TopicError: the topic does not exist, or was recreated since the last ingest.
        OffsetsLost: retention deleted readings before they were ingested, and ``accept_loss`` is not given.
        HistoryError: the table is damaged, holds readings of another topic, or another process wrote to it.
    """
    lock = settings.history_path.with_name(f"{settings.history_path.name}.ingest.lock")
    with hold_lock(lock, f"another ingest is writing to the history table {settings.history_path}"):
        history = History(settings.history_path, settings.features)
        history.create()
        most = min(POLL_RECORDS, chunk_readings)
        with closing(read_fast(make_consumer(settings, auto_offset_reset="none", max_poll_records=most))) as consumer:
            bounds = _plan_range(settings, consumer, history, accept_loss)
            done = _Run(settings, consumer, history, bounds, chunk_readings, report).run()
        try:
            history.compact_if_fragmented()
        except HistoryError as error:
            logger.warning(
                "the readings are committed, but small files could not be merged; the next ingest tries again: %s",
                error,
            )
        return done


@dataclass(frozen=True)
class _OffsetRange:
    """The offsets to read by partition: from ``start`` up to, not including, ``end``."""

    topic: str
    topic_id: str
    start: dict[int, int]
    end: dict[int, int]
    stored: dict[int, int]  # next offset in the table by partition; absent if never read
    lost: int


def _plan_range(settings: Settings, consumer: KafkaConsumer, history: History, accept_loss: bool) -> _OffsetRange:
    """The range to read; raises if the topic is not the one that the history was read from."""
    topic = settings.kafka.topics.readings
    with translate_errors(f"looking up the offsets of topic {topic}"):
        partitions = [TopicPartition(topic, number) for number in range(partition_count(consumer, topic))]
        earliest = {at.partition: offset for at, offset in consumer.beginning_offsets(partitions).items()}
        end = {at.partition: offset for at, offset in consumer.end_offsets(partitions).items()}
    topic_id = find_topic_id(settings, topic)  # look up the id last, to notice a topic that was recreated meanwhile
    stored = history.next_offsets(topic)
    if not stored and history.has_offsets():
        raise HistoryError(
            f"the history table {history.path} holds readings of a topic other than {topic}, and a table can "
            "only hold one topic; point `history` in the settings at a new folder"
        )
    for partition, offset in sorted(stored.items()):
        if offset > end.get(partition, -1):
            ends = f"ends at offset {end[partition]}" if partition in end else "no longer exists"
            raise TopicError(
                f"the next offset in the history table {history.path} is {offset} for topic {topic}, partition "
                f"{partition}, which {ends}: the topic was deleted and recreated. {_NEW_FOLDER}"
            )
    if history.is_of_another_topic(topic, topic_id):
        raise TopicError(
            f"the history table {history.path} has offsets of an earlier topic {topic}, and the topic now has the id "
            f"{topic_id}: the topic was deleted and recreated. {_NEW_FOLDER}"
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
            f"readings on topic {topic} were deleted by its retention before they were ingested ({gaps}). "
            "`streamgru ingest --accept-loss` continues at the topic's first offset, with a gap in the history"
        )
    if lost:
        logger.warning(
            "%d offsets of topic %s were deleted before they were ingested: %s", sum(lost.values()), topic, lost
        )
    start = {number: max(stored.get(number, 0), earliest[number]) for number in end}
    return _OffsetRange(topic, topic_id, start, end, stored, sum(lost.values()))


class _Run:
    """One ingest of a planned range."""

    def __init__(
        self,
        settings: Settings,
        consumer: KafkaConsumer,
        history: History,
        bounds: _OffsetRange,
        chunk_readings: int,
        report: Callable[[IngestReport], None] | None,
    ) -> None:
        self._settings = settings
        self._consumer = consumer
        self._history = history
        self._bounds = bounds
        self._chunk_readings = chunk_readings
        self._report = report
        self._decoder = make_decoder(settings)
        self._chunk = _Chunk(settings.features)
        self._position = dict(bounds.start)
        self._committed = dict(bounds.stored)
        self._rejected: Counter[str] = Counter()
        self._ignored = 0
        self._appended = 0
        self._commits = 0
        self._started = time.monotonic()

    def run(self) -> IngestReport:
        bounds = self._bounds
        open_partitions = {part for part, offset in bounds.start.items() if offset < bounds.end[part]}
        with translate_errors(f"reading topic {bounds.topic}", self._settings):
            self._consumer.assign([TopicPartition(bounds.topic, part) for part in sorted(open_partitions)])
            for part in open_partitions:
                self._consumer.seek(TopicPartition(bounds.topic, part), bounds.start[part])
        moved_at = time.monotonic()
        while open_partitions:
            polled = self._poll()
            for at, records in polled.items():
                self._decode(at.partition, records)
            moved = self._update_positions(open_partitions)
            if moved:
                moved_at = time.monotonic()
            elif time.monotonic() - moved_at > STALLED_S:
                self._commit()
                raise BrokerUnreachable(
                    f"the brokers at {self._settings.kafka.bootstrap_servers} sent no record for {STALLED_S:.0f} s; "
                    f"partitions {sorted(open_partitions)} of topic {bounds.topic} are not read to their end. Earlier "
                    "readings are committed; check `streamgru status`, then run it again"
                )
            self._send_report()
            if len(self._chunk) >= self._chunk_readings:
                self._commit()
        self._commit()
        return self.report

    @property
    def report(self) -> IngestReport:
        bounds = self._bounds
        return IngestReport(
            topic=bounds.topic,
            done_offsets=sum(self._position.values()) - sum(bounds.start.values()),
            total_offsets=sum(bounds.end.values()) - sum(bounds.start.values()),
            readings=self._appended,
            rejected=dict(self._rejected),
            ignored_values=self._ignored,
            lost_offsets=bounds.lost,
            commits=self._commits,
            seconds=time.monotonic() - self._started,
        )

    def _poll(self) -> dict[Any, list[Any]]:
        with translate_errors(f"reading topic {self._bounds.topic}", self._settings):
            try:
                polled: dict[Any, list[Any]] = self._consumer.poll(POLL_TIMEOUT_MS)
            except client_errors.OffsetOutOfRangeError as error:
                raise OffsetsLost(
                    f"readings on topic {self._bounds.topic} were deleted by its retention during the ingest "
                    f"({error}). Earlier readings are committed. Set a longer retention; the next "
                    "`streamgru ingest --accept-loss` continues at the topic's first offset, with a gap in the history"
                ) from error
        return polled

    def _decode(self, partition: int, records: Sequence[Any]) -> None:
        """Decode a partition's records into the chunk; the next run reads the records from the end offset on."""
        end = self._bounds.end[partition]
        decode = self._decoder.decode
        sensor_ids, timestamps, values, offsets = self._chunk.columns
        before = len(offsets)
        for record in records:
            offset = record.offset
            if offset >= end:
                break
            try:
                reading = decode(record.key, record.value, record.headers, record.timestamp)
            except Rejected as rejected:
                self._rejected[rejected.reason] += 1
                continue
            sensor_ids.append(reading.sensor_id)
            timestamps.append(reading.timestamp_us)
            values.extend(reading.values)
            offsets.append(offset)
            self._ignored += reading.ignored
        self._chunk.partitions.append((partition, len(offsets) - before))

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
        """Append readings and offsets in one commit; only the offsets if there are no readings.

        The offset of an empty new partition is stored too. Otherwise the next run would not notice that retention
        deleted readings of it in between.
        """
        fresh = {part: offset for part, offset in self._position.items() if offset > self._committed.get(part, -1)}
        if not fresh:
            return
        bounds = self._bounds
        self._appended += self._history.append(self._chunk.frame(), fresh, bounds.topic, bounds.topic_id)
        self._committed = dict(self._position)
        self._chunk = _Chunk(self._settings.features)
        self._commits += 1
        self._send_report()

    def _send_report(self) -> None:
        if self._report is not None:
            self._report(self.report)


class _Chunk:
    """The readings of one commit, as columns: building row objects would take longer than decoding."""

    def __init__(self, features: Sequence[str]) -> None:
        self._features = tuple(features)
        self.columns: tuple[list[str], list[int], list[float], list[int]] = ([], [], [], [])
        self.partitions: list[tuple[int, int]] = []  # (partition, number of consecutive readings)

    def __len__(self) -> int:
        return len(self.columns[-1])

    def frame(self) -> pl.DataFrame:
        """The table's columns."""
        sensor_ids, timestamps, flat_values, offsets = self.columns
        values = np.asarray(flat_values, dtype=np.float64).reshape(len(offsets), len(self._features))
        numbers, counts = zip(*self.partitions, strict=True) if self.partitions else ((), ())
        partitions = np.repeat(np.asarray(numbers, dtype=np.int32), np.asarray(counts, dtype=np.int64))
        columns: dict[str, Any] = {
            "sensor_id": pl.Series(sensor_ids, dtype=pl.String),
            "timestamp": pl.Series(timestamps, dtype=pl.Int64),
            **{name: np.ascontiguousarray(values[:, index]) for index, name in enumerate(self._features)},
            "partition": partitions,
            "offset": pl.Series(offsets, dtype=pl.Int64),
        }
        return pl.DataFrame(columns)
