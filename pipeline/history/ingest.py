"""Takes readings from Kafka into the history table: a bounded range, each reading once, whenever it is killed.

1. The offsets to go on from are those in the table's last commit (there is no consumer group).
2. The end offsets are asked for once, so that the work ends however fast readings arrive.
3. Readings between both are decoded by the stream's own decoder; what is malformed is counted and left out, since
   only the forecaster writes dead letters.
4. Every chunk is one commit of its readings and of the offsets behind them. Killed before the commit, the next run
   reads the chunk again; killed after it, the next run goes on behind it.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
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
from pipeline.messages import ReadingDecoder, Rejected
from pipeline.settings import Settings

logger = logging.getLogger("streamgru.ingest")

# Readings in a commit: some 60 MB while they are collected, and a file of a few MB in the table.
CHUNK_READINGS: Final = 250_000
POLL_RECORDS: Final = 20_000
POLL_TIMEOUT_MS: Final = 500
# The client keeps quiet about a broker that goes away while it polls; after this long without a record, we do not.
STALLED_S: Final = 30.0


@dataclass(frozen=True)
class IngestReport:
    """What a run has done so far, or in the end. ``total_offsets`` is the length of the range it took on."""

    topic: str
    done_offsets: int
    total_offsets: int
    readings: int = 0
    rejected: Mapping[str, int] = field(default_factory=dict)  # by reason
    ignored_values: int = 0  # of features that the settings do not name
    lost_offsets: int = 0  # deleted by the topic's retention before they were read
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
            text += f"; values of features that are not in the settings: {self.ignored_values:,}"
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
    """Append what is new on the readings topic to the history table, and say what that was.

    Args:
        accept_loss: go on from the start of the topic where the offsets to go on from are deleted already.
        chunk_readings: readings in a commit.
        report: called after every poll and every commit.

    Raises:
        Busy: another ingest is writing to the same table.
        BrokerUnreachable: no broker answers.
        TopicError: the topic does not exist, or is not the one that the history was read from.
        OffsetsLost: the offsets to go on from lie below the topic's retention, and ``accept_loss`` is not given.
        HistoryError: the table is damaged, holds another topic's readings, or another process wrote to it.
    """
    lock = settings.history_path.with_name(f"{settings.history_path.name}.ingest.lock")
    with hold_lock(lock, f"another ingest is writing to the history table {settings.history_path}"):
        history = History(settings.history_path, settings.features)
        history.create()
        most = min(POLL_RECORDS, chunk_readings)
        consumer = read_fast(make_consumer(settings, auto_offset_reset="none", max_poll_records=most))
        try:
            bounds = _plan_range(settings, consumer, history, accept_loss)
            done = _Run(settings, consumer, history, bounds, chunk_readings, report).run()
        finally:
            consumer.close()
        try:
            history.compact_if_fragmented()
        except HistoryError as error:
            logger.warning(
                "the readings are in, but small files could not be merged; the next ingest tries again: %s", error
            )
        return done


@dataclass(frozen=True)
class _OffsetRange:
    """By partition, the offsets to read: from ``start`` up to, not including, ``end``."""

    topic: str
    topic_id: str
    start: dict[int, int]
    end: dict[int, int]
    stored: dict[int, int]  # what the table goes on from so far; partitions never seen are absent
    lost: int


def _plan_range(settings: Settings, consumer: KafkaConsumer, history: History, accept_loss: bool) -> _OffsetRange:
    """Where to read from and up to; checks that the topic is the one that the history goes on from."""
    topic = settings.kafka.topics.readings
    with translate_errors(f"looking up the offsets of topic {topic}"):
        partitions = [TopicPartition(topic, number) for number in range(partition_count(consumer, topic))]
        earliest = {at.partition: offset for at, offset in consumer.beginning_offsets(partitions).items()}
        end = {at.partition: offset for at, offset in consumer.end_offsets(partitions).items()}
    topic_id = find_topic_id(settings, topic)  # after the ends: made anew in between, it would pass for the old one
    stored = history.next_offsets(topic)
    if not stored and history.has_offsets():
        raise HistoryError(
            f"the history table {history.path} holds readings of another topic than {topic}, and their offsets would "
            "mix; give each topic a history table of its own: point `history` in the settings at a new folder"
        )
    for partition, offset in sorted(stored.items()):
        if offset > end.get(partition, -1):
            ends = f"ends at offset {end[partition]}" if partition in end else "does not exist any more"
            raise TopicError(
                f"the history table {history.path} goes on from offset {offset} of topic {topic}, partition "
                f"{partition}, which {ends}: the topic was deleted and made anew. Their offsets would mix; point "
                "`history` in the settings at a new folder"
            )
    if history.is_of_another_topic(topic, topic_id):
        raise TopicError(
            f"the history table {history.path} goes on from offsets of another topic {topic} than the present one, "
            f"whose id is {topic_id}: the topic was deleted and made anew. Their offsets would mix; point `history` in "
            "the settings at a new folder"
        )
    lost = {
        partition: earliest[partition] - offset for partition, offset in stored.items() if offset < earliest[partition]
    }
    if lost and not accept_loss:
        gaps = "; ".join(
            f"partition {partition}: go on from {stored[partition]}, topic begins at {earliest[partition]}"
            for partition in sorted(lost)
        )
        raise OffsetsLost(
            f"readings on topic {topic} were deleted by its retention before they were ingested ({gaps}). "
            "`streamgru ingest --accept-loss` goes on from the start of the topic, with a gap in the history"
        )
    if lost:
        logger.warning(
            "%d offsets of topic %s were deleted before they were ingested: %s", sum(lost.values()), topic, lost
        )
    start = {number: max(stored.get(number, 0), earliest[number]) for number in end}
    return _OffsetRange(topic, topic_id, start, end, stored, sum(lost.values()))


class _Run:
    """One pass over the planned range."""

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
        self._decoder = ReadingDecoder(settings.features)
        self._chunk = _Chunk(settings.features)
        self._position = dict(bounds.start)
        self._committed = dict(bounds.stored)
        self._rejected: Counter[str] = Counter()
        self._ignored = 0
        self._appended = 0
        self._commits = 0
        self._began = time.monotonic()

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
                    f"the brokers at {self._settings.kafka.bootstrap_servers} sent nothing for {STALLED_S:.0f} s, with "
                    f"partitions {sorted(open_partitions)} of topic {bounds.topic} unread. What was read is kept; see "
                    "`streamgru status`, then run it again"
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
            seconds=time.monotonic() - self._began,
        )

    def _poll(self) -> dict[Any, list[Any]]:
        with translate_errors(f"reading topic {self._bounds.topic}", self._settings):
            try:
                polled: dict[Any, list[Any]] = self._consumer.poll(POLL_TIMEOUT_MS)
            except client_errors.OffsetOutOfRangeError as error:
                raise OffsetsLost(
                    f"readings on topic {self._bounds.topic} were deleted by its retention while they were being "
                    f"ingested ({error}): it keeps them for less time than ingest takes. What was committed is kept. "
                    "Let the topic keep readings for longer; the next `streamgru ingest --accept-loss` goes on from "
                    "its start, with a gap in the history"
                ) from error
        return polled

    def _decode(self, partition: int, records: Sequence[Any]) -> None:
        """Decode a partition's records into the chunk; those behind the end offset are left for the next run."""
        end = self._bounds.end[partition]
        decode = self._decoder.decode
        sensor_ids, timestamps, values, offsets = self._chunk.columns
        before = len(offsets)
        for record in records:
            offset = record.offset
            if offset >= end:
                break
            try:
                reading = decode(record.key, record.value)
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
        """Note how far each partition was read (transaction markers count), and close those that are done."""
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
        """Data and offsets, in one commit; the offsets alone where a range held no reading.

        A partition never seen is stored even where nothing was read of it: else readings that come to it and are
        deleted by retention before the next run would not be missed.
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
    """Readings collected for one commit, as columns: row objects would cost more time than decoding them."""

    def __init__(self, features: Sequence[str]) -> None:
        self._features = tuple(features)
        self.columns: tuple[list[str], list[int], list[float], list[int]] = ([], [], [], [])
        self.partitions: list[tuple[int, int]] = []  # partition and how many readings of it follow

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
