"""The history: every decoded reading, in a Delta Lake table whose version number identifies a training set.

Columns: ``sensor_id``, ``timestamp`` (UTC, microseconds), one float per feature (null where missing), ``partition``,
``offset``, and the record's Kafka timestamp (``RECORD_TIMESTAMP``). ``pipeline.history.columns`` names the column of a
feature. Readings that were ingested by a release without record timestamps have null in that column. Duplicates, late
readings and implausible times are in the table too; ``pipeline.windows`` leaves them out. Outlooks are rows of their
own, see ``outlook_rows``.

A commit holds readings and offsets, so that after a crash the table has both or neither; ``delta_offsets`` says where
the offsets are, and ``time_rule_marks`` where the time rules are. A table holds one topic, because partition and offset
alone order its readings.
"""

import logging
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final
from urllib.parse import unquote

import polars as pl
from deltalake import CommitProperties, DeltaTable, Field, Schema, WriterProperties, write_deltalake
from deltalake.exceptions import CommitFailedError, DeltaError
from deltalake.schema import PrimitiveType

from pipeline.errors import HistoryError
from pipeline.history.columns import ADDED_LATER, AFTER_FEATURES, BEFORE_FEATURES, column_of, feature_of, is_internal
from pipeline.history.delta_offsets import is_of_another_topic, offset_marks, stored_offsets
from pipeline.history.durable import commit_path, describe_torn_files, sync_versions
from pipeline.history.outlook_rows import OUTLOOK_COLUMNS, OUTLOOK_TIMES, only_readings
from pipeline.history.time_rule_marks import changed_marks, read_marks
from pipeline.reading_times import RECORD_TIMESTAMP, TimeRules

log = logging.getLogger("streamgru.history")

# A key in the metadata of commits without readings.
NO_READINGS: Final = "streamgru:no_readings"
# Every append adds a file, and a scan opens all files. If one tier has more files than this, they are merged.
FRAGMENTED_FILES: Final = 64
# Target bytes of merged files by tier. With tiers a reading is rewritten only a few times; older versions keep the
# merged files on disk. A file of at least half the target belongs to the next tier.
MERGED_BYTES: Final = (128 * 1024, 1024**2, 8 * 1024**2, 64 * 1024**2)
# Delta Lake reads %20 in a path as a space and a backslash as a slash; it fails at the other characters.
_UNUSABLE_IN_PATH: Final = re.compile(r"%[0-9A-Fa-f]{2}|[\[\]^|\\\x00-\x1f\x7f]")


class History:
    """The history table at ``path``; a new object does not read anything.

    All methods raise ``HistoryError`` if the table is missing, damaged or not a history, or another writer changes it.
    """

    def __init__(self, path: Path, features: Sequence[str]) -> None:
        # Delta Lake ignores case in column names, and fails if two columns differ only in case.
        for name, more in Counter(name.lower() for name in features).items():
            if more > 1:
                alike = ", ".join(each for each in features if each.lower() == name)
                raise HistoryError(f"the history table cannot hold features whose names differ in case only: {alike}")
        self.path = path
        self.features = tuple(features)
        self._columns = tuple(map(column_of, features))

    def exists(self) -> bool:
        """Whether a Delta table exists at ``path``."""
        if unusable := _UNUSABLE_IN_PATH.search(str(self.path.resolve())):  # Delta Lake also follows links
            raise HistoryError(
                f"there can be no history table at {str(self.path)!r}: Delta Lake does not accept "
                f"{unusable.group()!r} in a path; point `history` in the settings at another folder, or rename it"
            )
        with self._translate_errors("opened"):
            return DeltaTable.is_deltatable(str(self.path))

    def create(self) -> None:
        """Create an empty table, unless one exists; raise if that is not a history. Appends add new features."""
        if not self.exists():
            columns = BEFORE_FEATURES | dict.fromkeys(self._columns, "double") | AFTER_FEATURES | ADDED_LATER
            with self._translate_errors("created"):
                DeltaTable.create(
                    str(self.path),
                    Schema([Field(name, PrimitiveType(kind)) for name, kind in columns.items()]),
                    mode="ignore",
                    description="streamgru: decoded readings",
                    # A version must stay readable as long as models name it as their training set.
                    configuration={"delta.appendOnly": "true", "delta.enableExpiredLogCleanup": "false"},
                )
            self._sync(0, 0)
        self._check_columns(self._open())

    def has_offsets(self) -> bool:
        """Whether there was an append for any topic; every version after the first comes from one."""
        return self.version > 0

    @property
    def version(self) -> int:
        """The newest version."""
        return self._open().version()

    def columns(self, version: int | None = None) -> tuple[str, ...]:
        """The features in the table, in the order in which they were added."""
        found = (field.name for field in self._open(version).schema().fields)
        return tuple(feature_of(name) for name in found if not is_internal(name))

    def next_offsets(self, topic: str, version: int | None = None) -> dict[int, int]:
        """The next offset to append by partition of ``topic``; partitions never read are absent."""
        return stored_offsets(self._open(version), topic)

    def time_rules(self, topic: str, version: int | None = None) -> dict[int, TimeRules]:
        """The time rules by partition of ``topic``; a partition is absent until an ingest has stored its rules."""
        table = self._open(version)
        return read_marks(table, topic, table.transaction_version(f"{topic}-partitions") or 0)

    def has_record_timestamps(self, version: int | None) -> bool:
        """Whether the table has the column of the record timestamps."""
        return RECORD_TIMESTAMP in {field.name for field in self._open(version).schema().fields}

    def is_of_another_topic(self, topic: str, topic_id: str) -> bool:
        """Whether the stored offsets of ``topic`` belong to a topic with another id; False if no id is stored."""
        return is_of_another_topic(self._open(), topic, topic_id)

    def appended_at(self, back_to_s: float) -> datetime | None:
        """The time of the last commit with readings; None if no commit has readings.

        Commits of offsets or outlooks alone do not count: they come while all sensors are silent. The search reads the
        log back to ``back_to_s`` (Unix time). Without readings after that, the result may be the time of an older
        commit without readings.
        """
        table = self._open()
        count = FRAGMENTED_FILES
        while True:
            with self._translate_errors("read"):
                commits = table.history(count)
            for commit in commits:
                added = commit.get("operationMetrics", {}).get("num_added_rows")
                if commit["operation"] == "WRITE" and added and NO_READINGS not in commit:
                    return _commit_time(commit)
            if len(commits) < count:
                return None
            earliest = _commit_time(commits[-1])
            if earliest.timestamp() < back_to_s:
                return earliest
            count *= 4

    def append(
        self,
        frame: pl.DataFrame,
        next_offsets: Mapping[int, int],
        topic: str,
        topic_id: str | None = None,
        time_rules: Mapping[int, TimeRules] = MappingProxyType({}),
    ) -> int:
        """Append readings, outlooks and the next offsets in one commit, and return the number of readings.

        Rows below the stored offsets are skipped, so that appending a range again changes nothing.

        Args:
            frame: the table's columns, with the names of ``column_of``; times as UTC datetimes or integer microseconds;
                NaN is missing. Without ``RECORD_TIMESTAMP`` the record timestamps are unknown. The columns of outlooks
                may be absent.
            next_offsets: by partition; above the offsets of all its readings.
            topic: the topic of the offsets.
            topic_id: the brokers' id of the topic, for ``is_of_another_topic``.
            time_rules: by partition, for ``time_rules``.

        Raises:
            HistoryError: nothing is written, for example because another writer appended at the same time. If the
                sync to disk failed, however, the readings are in the table, as the message says.
        """
        table = self._open()
        base = table.version()
        self._check_newest(base)
        self._check_columns(table)
        stored = stored_offsets(table, topic)
        ahead = {part: offset for part, offset in next_offsets.items() if offset > stored.get(part, -1)}
        fresh = self._with_columns(frame)
        bounds = pl.col("partition").replace_strict(dict(next_offsets), default=None, return_dtype=pl.Int64)
        beyond = fresh.filter(bounds.is_null() | (pl.col("offset") >= bounds))
        if len(beyond):
            raise ValueError(
                f"{len(beyond)} readings are not below the next offsets of their partitions, {dict(next_offsets)}"
            )
        floor = pl.col("partition").replace_strict(stored, default=0, return_dtype=pl.Int64)
        fresh = fresh.filter(pl.col("offset") >= floor)
        if not ahead:
            return 0
        marks = offset_marks(topic, stored, ahead, topic_id)
        marks += changed_marks(topic, read_marks(table, topic, len(time_rules)), time_rules)
        readings = len(only_readings(fresh))
        with self._translate_errors("appended to"):
            # No retry after a conflict: the offsets were read from the version in `table`, and Delta refuses the commit
            # if a later version has the same application transactions.
            write_deltalake(
                table,
                fresh,
                mode="append",
                schema_mode="merge",
                writer_properties=WriterProperties(compression="ZSTD", compression_level=3),
                commit_properties=CommitProperties(
                    app_transactions=marks, custom_metadata=None if readings else {NO_READINGS: "true"}
                ),
            )
        self._sync(base, table.version())
        return readings

    def scan(self, version: int | None = None) -> pl.LazyFrame:
        """All columns of all readings at a version (by default the newest), lazily, in any order of files.

        A feature that was added after a reading is null in it. Collect the frame inside ``reading``, which converts
        polars' errors about missing or damaged files.
        """
        return only_readings(self._scan_all(version))

    def scan_outlooks(self, version: int | None = None) -> pl.LazyFrame:
        """``scan`` for outlooks: the columns of ``outlook_rows``; no rows if the table never had one."""
        rows = self._scan_all(version)
        columns = ["sensor_id", "timestamp", "partition", "offset", RECORD_TIMESTAMP, *OUTLOOK_COLUMNS]
        missing = [name for name in columns if name not in rows.collect_schema().names()]
        rows = rows.with_columns(
            pl.lit(None, OUTLOOK_COLUMNS.get(name, pl.Datetime("us", "UTC"))).alias(name) for name in missing
        )
        return rows.filter(pl.col(OUTLOOK_TIMES).is_not_null()).select(columns)

    def _scan_all(self, version: int | None) -> pl.LazyFrame:
        table = self._open(version)
        with self._translate_errors("read"):
            schema = pl.Schema(table.schema())
            # Not pl.scan_delta: it takes percent-encoded URLs as file names.
            files = [Path(unquote(uri)) for uri in table.file_uris()]
            if not files:
                return pl.LazyFrame(schema=schema)
            return pl.scan_parquet(files, schema=schema, missing_columns="insert", glob=False)

    @contextmanager
    def reading(self, version: int | None = None) -> Iterator[None]:
        """Convert polars' errors about missing or damaged files in the block.

        Raises:
            HistoryError: names the table and its version.
        """
        at = "" if version is None else f" at version {version}"
        try:
            yield
        except (pl.exceptions.PolarsError, OSError) as error:
            raise HistoryError(
                f"the history table {self.path} cannot be read{at}: {_first_line(error)}; restore the file, or "
                "train on an older version without it (`streamgru retrain --history-version`)"
            ) from error

    def compact_if_fragmented(self, files: int = FRAGMENTED_FILES) -> bool:
        """Merge tiers with more than ``files`` files (see ``MERGED_BYTES``); return whether any files were merged.

        A merge creates a new version with the same readings; older versions stay readable. If it conflicts with an
        append, Delta refuses one of the two and no reading is lost.
        """
        table = self._open()
        opened = table.version()
        for below, target in pairwise((0, *MERGED_BYTES)):
            sizes = pl.DataFrame(table.get_add_actions(flatten=True))["size_bytes"]
            count = int(sizes.is_between(below // 2, target // 2, closed="left").sum())
            if count <= files:
                continue
            with self._translate_errors("compacted", "compacted or written to by another process"):
                table.optimize.compact(target_size=target)
            self._sync(opened, table.version())
            log.info("history table %s: merged %d files into version %d", self.path, count, table.version())
        return table.version() > opened

    def _open(self, version: int | None = None) -> DeltaTable:
        if not self.exists():
            raise HistoryError(f"there is no history table at {self.path}; `streamgru ingest` creates and fills it")
        if version is not None and not commit_path(self.path, version).exists():
            # Delta Lake would search for it, for minutes if the number is large.
            raise HistoryError(f"the history table {self.path} has no version {version}: its newest is {self.version}")
        with self._translate_errors("opened" if version is None else f"opened at version {version}"):
            return DeltaTable(str(self.path), version=version)

    def _check_newest(self, version: int) -> None:
        """Raise if files of the newest version are missing or truncated, as after a power cut."""
        with self._translate_errors(f"checked in version {version}"):
            if lack := describe_torn_files(self.path, version):
                commit = commit_path(self.path, version)
                raise HistoryError(
                    f"the newest version of the history table {self.path}, {version}, is torn, as after a power cut: "
                    f"{lack}. Remove {commit} (and {commit.stem}.checkpoint.parquet and _last_checkpoint in the same "
                    "folder, if they exist), then run this again to ingest the readings of that version once more"
                )

    def _sync(self, first: int, last: int) -> None:
        """Sync the versions from ``first`` to ``last`` to disk."""
        try:
            sync_versions(self.path, first, last)
        except OSError as error:
            raise HistoryError(
                f"the readings are in the history table {self.path}, but may not be on its disk yet: "
                f"{_first_line(error)}; check that disk"
            ) from error

    def _check_columns(self, table: DeltaTable) -> None:
        found = {field.name: field.type for field in table.schema().fields}
        spelled = {name.lower(): name for name in found}
        for name, kind in (BEFORE_FEATURES | AFTER_FEATURES).items():
            if found.get(name) != PrimitiveType(kind):
                raise HistoryError(
                    f"{self.path} is a Delta table but not a history: it has no column {name} of type {kind}"
                )
        for name in self._columns:
            if (known := spelled.get(name.lower(), name)) != name:
                known, other = feature_of(known), feature_of(name)
                raise HistoryError(
                    f"the history table {self.path} has a feature {known}, and cannot have {other}, which differs "
                    f"only in case; name the feature {known}, or point `history` at a new folder"
                )
            if name in found and found[name] != PrimitiveType("double"):
                raise HistoryError(
                    f"the history table {self.path} has a column {name} of a type other than double; "
                    "rename the feature, or point `history` at a new folder"
                )

    def _with_columns(self, frame: pl.DataFrame) -> pl.DataFrame:
        if RECORD_TIMESTAMP not in frame.columns:
            frame = frame.with_columns(pl.lit(None).alias(RECORD_TIMESTAMP))
        features = [pl.col(name).cast(pl.Float64).fill_nan(None) for name in self._columns]
        return frame.select(
            pl.col("sensor_id").cast(pl.String),
            pl.col("timestamp").cast(pl.Datetime("us", "UTC")),
            *features,
            pl.col("partition").cast(pl.Int32),
            pl.col("offset").cast(pl.Int64),
            pl.col(RECORD_TIMESTAMP).cast(pl.Datetime("us", "UTC")),
            *(pl.col(name).cast(kind) for name, kind in OUTLOOK_COLUMNS.items() if name in frame.columns),
        )

    @contextmanager
    def _translate_errors(self, done: str, meanwhile: str = "written to by another ingest") -> Iterator[None]:
        try:
            yield
        except CommitFailedError as error:
            raise HistoryError(
                f"the history table {self.path} was {meanwhile} at the same time, so this change was refused; "
                "try again after the other process has ended"
            ) from error
        except (DeltaError, OSError) as error:
            raise HistoryError(f"the history table {self.path} could not be {done}: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _commit_time(commit: Mapping[str, Any]) -> datetime:
    return datetime.fromtimestamp(commit["timestamp"] / 1_000, UTC)
