"""Exports the committed records of a topic to a table, each record once, even if a run is killed.

The method is that of ``pipeline.history.ingest``: the run starts at the offsets in the table, ends at the topic's
current ends, and each commit has rows and their next offsets.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, Protocol

import polars as pl
from kafka import KafkaConsumer

from pipeline.best_effort import until_it_fails
from pipeline.errors import ExportError
from pipeline.export.forecast_rows import ForecastChunk
from pipeline.export.stores import DeltaStore, ExportStore, ParquetStore
from pipeline.file_lock import hold_lock
from pipeline.history.outlook_rows import only_readings
from pipeline.history.reading_chunk import ReadingChunk
from pipeline.kafka.batch_consumer import read_fast
from pipeline.kafka.clients import make_consumer
from pipeline.kafka.offset_range import POLL_RECORDS, OffsetRange, RangeReader, Wording, plan_range
from pipeline.settings import Settings
from pipeline.text.plural import counted

log = logging.getLogger("streamgru.export")

Content = Literal["forecasts", "readings"]
TableFormat = Literal["delta", "parquet"]
STORES: Final[dict[TableFormat, Callable[[Path], ExportStore]]] = {"delta": DeltaStore, "parquet": ParquetStore}
# Rows per commit: some 100 MB in memory.
CHUNK_ROWS: Final = 500_000


@dataclass(frozen=True)
class ExportReport:
    """The counts of an export, during or after it. ``total_offsets`` is the length of its range."""

    content: Content
    path: Path
    done_offsets: int
    total_offsets: int
    rows: int = 0
    left_out: Mapping[str, int] = field(default_factory=dict)  # reason -> records
    lost_offsets: int = 0  # offsets that retention deleted before they were read
    commits: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        if not self.total_offsets:
            return f"nothing new for {self.path}"
        text = f"{counted(self.rows, 'row')} of {self.content} to {self.path} in {self.seconds:.1f} s, "
        text += counted(self.commits, "commit")
        if self.left_out:
            reasons = ", ".join(f"{reason} {count:,}" for reason, count in sorted(self.left_out.items()))
            text += f"; left out: {reasons}"
        if self.lost_offsets:
            text += f"; deleted by the topic's retention before they were read: {self.lost_offsets:,} offsets"
        return text


class _Chunk(Protocol):
    """Collects the rows of one commit, and counts by reason the records that it leaves out."""

    @property
    def left_out(self) -> Mapping[str, int]: ...

    def add(self, partition: int, records: Sequence[Any]) -> int: ...

    def take(self) -> pl.DataFrame: ...


def export(
    settings: Settings,
    content: Content,
    folder: Path,
    table_format: TableFormat = "delta",
    *,
    accept_loss: bool = False,
    chunk_rows: int = CHUNK_ROWS,
    report: Callable[[ExportReport], None] | None = None,
) -> ExportReport:
    """Append the new records of a topic to the table ``folder / content``.

    Readings are exported as in the history: duplicates and late ones too, without malformed records, which are counted.

    Args:
        accept_loss: start at the topic's first offset if retention deleted the next offset of the table.
        chunk_rows: rows per commit.
        report: called after every poll and every commit.

    Raises:
        Busy: another export writes to the same table.
        BrokerUnreachable: no broker answers.
        TopicError: the topic does not exist, or was recreated since the last export.
        OffsetsLost: retention deleted records before they were exported, and ``accept_loss`` is False.
        ExportError: the table is damaged, of the other format, or cannot be written.
    """
    path = folder / content
    wording = Wording(
        store=f"the exported table {path}",
        command=f"streamgru export {content}",
        remedy="export to a new folder (--to)",
        records=content,
        done="exported",
        error=ExportError,
    )
    _create(folder)
    with hold_lock(folder / f".{content}.lock", f"another export is writing to {path}"):
        _check_format(path, table_format)
        store = STORES[table_format](path)
        topics = settings.kafka.topics
        topic = topics.readings if content == "readings" else topics.forecasts
        made = make_consumer(settings, auto_offset_reset="none", max_poll_records=POLL_RECORDS)
        consumer = read_fast(made, settings.kafka, in_columns=content == "readings")
        with closing(consumer):
            bounds = plan_range(settings, consumer, topic, store, wording, accept_loss)
            return _Run(settings, content, path, store, consumer, bounds, wording, chunk_rows, report).run()


class _Run:
    """One export of a planned range."""

    def __init__(
        self,
        settings: Settings,
        content: Content,
        path: Path,
        store: ExportStore,
        consumer: KafkaConsumer,
        bounds: OffsetRange,
        wording: Wording,
        chunk_rows: int,
        report: Callable[[ExportReport], None] | None,
    ) -> None:
        self._content = content
        self._path = path
        self._store = store
        self._bounds = bounds
        self._report = report and until_it_fails("the progress of the export", log, report)
        self._chunk: _Chunk = ReadingChunk(settings) if content == "readings" else ForecastChunk()
        self._rows = 0
        self._started = time.monotonic()
        self._reader = RangeReader(
            settings,
            consumer,
            bounds,
            wording,
            add=self._chunk.add,
            commit=self._append,
            chunk_rows=chunk_rows,
            progressed=self._send_report,
        )

    def run(self) -> ExportReport:
        self._reader.run()
        return self.report

    @property
    def report(self) -> ExportReport:
        return ExportReport(
            self._content,
            self._path,
            done_offsets=self._reader.done_offsets,
            total_offsets=self._bounds.total,
            rows=self._rows,
            left_out=dict(self._chunk.left_out),
            lost_offsets=self._bounds.lost,
            commits=self._reader.commits,
            seconds=time.monotonic() - self._started,
        )

    def _append(self, next_offsets: dict[int, int]) -> None:
        frame = only_readings(self._chunk.take())
        self._store.append(frame, next_offsets, self._bounds.topic, self._bounds.topic_id)
        self._rows += len(frame)

    def _send_report(self) -> None:
        if self._report is not None:
            self._report(self.report)


def _create(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ExportError(
            f"the folder {folder} cannot be created: {error.strerror}; choose another folder (--to)"
        ) from error


def _check_format(path: Path, table_format: TableFormat) -> None:
    """Refuse a folder with a table of the other format."""
    found: TableFormat | None = None
    if (path / "_delta_log").is_dir():
        found = "delta"
    elif (path / ParquetStore.TOPIC_FILE).exists():
        found = "parquet"
    if found is not None and found != table_format:
        raise ExportError(f"{path} holds a table of the format {found}; use --format {found}, or another folder (--to)")
