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
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import Final

from kafka import KafkaConsumer

from pipeline.best_effort import until_it_fails
from pipeline.errors import HistoryError
from pipeline.file_lock import hold_lock
from pipeline.history.outlook_rows import only_readings
from pipeline.history.reading_chunk import ReadingChunk
from pipeline.history.table import History
from pipeline.history.unused import LATE_REMEDY, UnusedReadings, describe_sensors
from pipeline.kafka.batch_consumer import read_fast
from pipeline.kafka.clients import make_consumer
from pipeline.kafka.offset_range import POLL_RECORDS, OffsetRange, RangeReader, Wording, plan_range
from pipeline.kafka.time_rule_log import read_time_rules
from pipeline.settings import Settings
from pipeline.text.plural import counted

logger = logging.getLogger("streamgru.ingest")

# Readings per commit: some 60 MB in memory, and a file of a few MB in the table.
CHUNK_READINGS: Final = 250_000


@dataclass(frozen=True)
class IngestReport:
    """The counts of a run, during or after it. ``total_offsets`` is the length of its range."""

    topic: str
    done_offsets: int
    total_offsets: int
    readings: int = 0
    outlooks: int = 0
    rejected: Mapping[str, int] = field(default_factory=dict)  # reason -> records
    late: Mapping[str, int] = field(default_factory=dict)  # sensor -> late readings, which are not trained on
    implausible: Mapping[str, int] = field(default_factory=dict)  # sensor -> readings with an implausible time
    ignored_values: int = 0  # values of features and covariates that the settings do not name
    lost_offsets: int = 0  # offsets that retention deleted before they were read
    commits: int = 0
    seconds: float = 0.0
    ranges: Mapping[int, tuple[int, int]] = field(default_factory=dict)  # partition -> first and end offset to read

    def __str__(self) -> str:
        if self.total_offsets:
            text = counted(self.readings, "reading")
            text += f" and {counted(self.outlooks, 'outlook')}" if self.outlooks else ""
            text += f" from topic {self.topic} in {self.seconds:.1f} s, "
            text += counted(self.commits, "commit")
        else:
            text = f"nothing new on topic {self.topic}"
        if self.rejected:
            reasons = ", ".join(f"{reason} {count:,}" for reason, count in sorted(self.rejected.items()))
            text += f"; malformed and left out: {reasons}"
        if self.late:
            text += f"; late, not used in training: {describe_sensors(self.late)} ({LATE_REMEDY})"
        if self.implausible:
            text += f"; implausible times, not used in training: {describe_sensors(self.implausible)}"
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
        made = make_consumer(settings, auto_offset_reset="none", max_poll_records=most)
        with closing(read_fast(made, settings.kafka, in_columns=True)) as consumer:
            topic = settings.kafka.topics.readings
            bounds = plan_range(settings, consumer, topic, history, _wording(settings), accept_loss)
            done = _Run(settings, consumer, history, bounds, chunk_readings, report).run()
        try:
            history.compact_if_fragmented()
        except HistoryError as error:
            logger.warning(
                "the readings are committed, but small files could not be merged; the next ingest tries again: %s",
                error,
            )
        return done


class _Run:
    """One ingest of a planned range."""

    def __init__(
        self,
        settings: Settings,
        consumer: KafkaConsumer,
        history: History,
        bounds: OffsetRange,
        chunk_readings: int,
        report: Callable[[IngestReport], None] | None,
    ) -> None:
        self._history = history
        self._bounds = bounds
        self._report = report and until_it_fails("the progress of the ingest", logger, report)
        self._chunk = ReadingChunk(settings)
        self._time_rules = read_time_rules(settings)
        self._unused = UnusedReadings(history, settings, self._time_rules)
        self._appended = 0
        self._started = time.monotonic()
        self._reader = RangeReader(
            settings,
            consumer,
            bounds,
            _wording(settings),
            add=self._chunk.add,
            commit=self._append,
            chunk_rows=chunk_readings,
            progressed=self._send_report,
        )

    def run(self) -> IngestReport:
        self._reader.run()
        return self.report

    @property
    def report(self) -> IngestReport:
        bounds = self._bounds
        return IngestReport(
            topic=bounds.topic,
            done_offsets=self._reader.done_offsets,
            total_offsets=bounds.total,
            readings=self._appended,
            outlooks=self._chunk.outlooks,
            rejected=dict(self._chunk.left_out),
            late=dict(self._unused.late),
            implausible=dict(self._unused.implausible),
            ignored_values=self._chunk.ignored_values,
            lost_offsets=bounds.lost,
            commits=self._reader.commits,
            seconds=time.monotonic() - self._started,
            ranges={partition: (start, bounds.end[partition]) for partition, start in bounds.start.items()},
        )

    def _append(self, next_offsets: dict[int, int]) -> None:
        bounds = self._bounds
        frame = self._chunk.take()
        self._unused.add(only_readings(frame))
        self._appended += self._history.append(frame, next_offsets, bounds.topic, bounds.topic_id, self._time_rules)

    def _send_report(self) -> None:
        if self._report is not None:
            self._report(self.report)


def _wording(settings: Settings) -> Wording:
    return Wording(
        store=f"the history table {settings.history_path}",
        command="streamgru ingest",
        remedy="point `history` in the settings at a new folder",
        records="readings",
        done="ingested",
        error=HistoryError,
    )
