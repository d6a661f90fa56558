"""The history: every decoded reading, in a Delta Lake table whose version number identifies a training set.

Columns: ``sensor_id``, ``timestamp`` (UTC, microseconds), one float per feature (null where missing), ``partition`` and
``offset``. Duplicates and late readings are kept; they are told apart when the table is read (``pipeline.windows``).

Offsets travel in the same commit as the data, as Delta's application transactions: ``TOPIC-PARTITION`` holds the next
offset to read, ``TOPIC-partitions`` how many partitions have been seen, and ``TOPIC-ids`` that the topic's id is known:
it stands in the name of ``TOPIC-id-ID``, since Delta stores nothing but numbers. So after a crash at any point the
table holds either both or neither. A table is for one topic: its readings are put in order by partition and offset
alone. A topic that is made anew has another id.
"""

import logging
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote

import polars as pl
from deltalake import CommitProperties, DeltaTable, Field, Schema, Transaction, WriterProperties, write_deltalake
from deltalake.exceptions import CommitFailedError, DeltaError
from deltalake.schema import PrimitiveType

from pipeline.errors import HistoryError
from pipeline.history.durable import commit_path, describe_torn_files, sync_versions

log = logging.getLogger("streamgru.history")

_BEFORE_FEATURES: Final = {"sensor_id": "string", "timestamp": "timestamp"}
_AFTER_FEATURES: Final = {"partition": "integer", "offset": "long"}
RESERVED_COLUMNS: Final = frozenset(_BEFORE_FEATURES | _AFTER_FEATURES)
# Every append leaves a file; a scan opens each of them. More than this many of one tier are merged.
FRAGMENTED_FILES: Final = 64
# Bytes that files are merged into, tier by tier, so that a reading is rewritten a few times in all and not with every
# merge: what was merged stays on disk, as older versions are made of it. Half full is no longer small.
MERGED_BYTES: Final = (128 * 1024, 1024**2, 8 * 1024**2, 64 * 1024**2)
# Delta Lake takes %20 in a path for a space, a backslash for a slash, and fails at the others.
_UNUSABLE_IN_PATH: Final = re.compile(r"%[0-9A-Fa-f]{2}|[\[\]^|\\\x00-\x1f\x7f]")


class History:
    """The history table at ``path``; opening it costs nothing until it is used.

    All methods raise ``HistoryError`` where the table is missing, damaged, not a history, or held by another writer.
    """

    def __init__(self, path: Path, features: Sequence[str]) -> None:
        # Delta Lake takes names that differ in case only for one, and fails where two columns do.
        reserved = [name for name in features if name.lower() in RESERVED_COLUMNS]
        if reserved:
            raise HistoryError(f"a feature cannot be called {reserved[0]}: the history table has a column of that name")
        for name, more in Counter(name.lower() for name in features).items():
            if more > 1:
                alike = ", ".join(each for each in features if each.lower() == name)
                raise HistoryError(f"the history table cannot hold features whose names differ in case only: {alike}")
        self.path = path
        self.features = tuple(features)

    def exists(self) -> bool:
        """Whether there is a Delta table."""
        if unusable := _UNUSABLE_IN_PATH.search(str(self.path.resolve())):  # Delta Lake follows links too
            raise HistoryError(
                f"there can be no history table at {str(self.path)!r}: Delta Lake does not take the "
                f"{unusable.group()!r} in its path; point `history` in the settings at a folder whose path has none, "
                "or rename the folder"
            )
        with self._translate_errors("looked for"):
            return DeltaTable.is_deltatable(str(self.path))

    def create(self) -> None:
        """An empty table, unless there is one: that one must be a history; new features are added on append."""
        if not self.exists():
            columns = _BEFORE_FEATURES | dict.fromkeys(self.features, "double") | _AFTER_FEATURES
            with self._translate_errors("created"):
                DeltaTable.create(
                    str(self.path),
                    Schema([Field(name, PrimitiveType(kind)) for name, kind in columns.items()]),
                    mode="ignore",
                    description="streamgru: decoded readings",
                    # A version must stay readable for as long as a model is said to be trained on it.
                    configuration={"delta.appendOnly": "true", "delta.enableExpiredLogCleanup": "false"},
                )
            self._sync(0, 0)
        self._check_columns(self._open())

    def has_offsets(self) -> bool:
        """Whether anything was ever appended, of whatever topic: every version but the first comes of that."""
        return self.version > 0

    @property
    def version(self) -> int:
        """The newest version."""
        return self._open().version()

    def columns(self, version: int | None = None) -> tuple[str, ...]:
        """The features that the table has had so far, in the order in which they came."""
        found = (field.name for field in self._open(version).schema().fields)
        return tuple(name for name in found if name not in RESERVED_COLUMNS)

    def next_offsets(self, topic: str, version: int | None = None) -> dict[int, int]:
        """By partition of ``topic``, the offset of the next reading to append; partitions never seen are absent."""
        return _next_offsets(self._open(version), topic)

    def is_of_another_topic(self, topic: str, topic_id: str) -> bool:
        """Whether the offsets stored for ``topic`` are those of a topic with another id. Not where no id is stored."""
        table = self._open()
        known = table.transaction_version(f"{topic}-ids") is not None
        return known and table.transaction_version(f"{topic}-id-{topic_id}") is None

    def appended_at(self, back_to_s: float) -> datetime | None:
        """When readings were last appended; none where they never were.

        Commits of offsets alone do not count: where every record is malformed, no reading has come. The log is not
        searched much further back than ``back_to_s``, in Unix time: where readings last came before that, or never, the
        answer may be a later time, itself before ``back_to_s``, since which none came.
        """
        table = self._open()
        count = FRAGMENTED_FILES
        while True:
            with self._translate_errors("looked into"):
                commits = table.history(count)
            for commit in commits:
                if commit["operation"] == "WRITE" and commit.get("operationMetrics", {}).get("num_added_rows"):
                    return _commit_time(commit)
            if len(commits) < count:
                return None
            earliest = _commit_time(commits[-1])
            if earliest.timestamp() < back_to_s:
                return earliest
            count *= 4

    def append(
        self, frame: pl.DataFrame, next_offsets: Mapping[int, int], topic: str, topic_id: str | None = None
    ) -> int:
        """How many readings were appended, in one commit with the offsets to go on from.

        Readings below the offsets already stored are skipped, so that a range appended once more changes nothing.

        Args:
            frame: the table's columns; ``timestamp`` as UTC datetimes or integer microseconds, NaN counts as missing.
            next_offsets: by partition; every reading of a partition lies below.
            topic: whose offsets these are.
            topic_id: the id that the brokers have given it, for ``is_of_another_topic``.

        Raises:
            HistoryError: also where another writer appended meanwhile: nothing was written, and reading
                ``next_offsets`` afresh shows where to go on. Where the disk does not take it, it is written all the
                same, as the message says.
        """
        table = self._open()
        base = table.version()
        self._check_newest(base)
        self._check_columns(table)
        stored = _next_offsets(table, topic)
        ahead = {part: offset for part, offset in next_offsets.items() if offset > stored.get(part, -1)}
        fresh = self._with_columns(frame)
        bounds = pl.col("partition").replace_strict(dict(next_offsets), default=None, return_dtype=pl.Int64)
        beyond = fresh.filter(bounds.is_null() | (pl.col("offset") >= bounds))
        if len(beyond):
            raise ValueError(f"{len(beyond)} readings lie at or beyond the next offsets {dict(next_offsets)}")
        floor = pl.col("partition").replace_strict(stored, default=0, return_dtype=pl.Int64)
        fresh = fresh.filter(pl.col("offset") >= floor)
        if not ahead:
            return 0
        marks = [Transaction(f"{topic}-{partition}", offset) for partition, offset in sorted(ahead.items())]
        marks.append(Transaction(f"{topic}-partitions", max([*stored, *ahead]) + 1))
        if topic_id is not None:
            marks += [Transaction(f"{topic}-ids", 1), Transaction(f"{topic}-id-{topic_id}", 1)]
        with self._translate_errors("appended to"):
            # Not retried on a conflict: `table` is the version that the offsets were read from, and Delta refuses the
            # commit when a later one holds the same application transactions.
            write_deltalake(
                table,
                fresh,
                mode="append",
                schema_mode="merge",
                writer_properties=WriterProperties(compression="ZSTD", compression_level=3),
                commit_properties=CommitProperties(app_transactions=marks),
            )
        self._sync(base, table.version())
        return len(fresh)

    def scan(self, version: int | None = None) -> pl.LazyFrame:
        """All columns of all readings at a version (the newest by default), lazily, files in no promised order.

        A feature that came later than a reading is null in it. Collected outside ``reading``, polars' own errors tell
        of files that are missing or damaged.
        """
        table = self._open(version)
        with self._translate_errors("read"):
            schema = pl.Schema(table.schema())
            # Not pl.scan_delta: it takes the percent-encoded names in URLs for those of the files.
            files = [Path(unquote(uri)) for uri in table.file_uris()]
            if not files:
                return pl.LazyFrame(schema=schema)
            return pl.scan_parquet(files, schema=schema, missing_columns="insert", glob=False)

    @contextmanager
    def reading(self, version: int | None = None) -> Iterator[None]:
        """Names the table in what polars raises over a file that is missing or damaged.

        Raises:
            HistoryError: that.
        """
        at = "" if version is None else f" at version {version}"
        try:
            yield
        except (pl.exceptions.PolarsError, OSError) as error:
            raise HistoryError(
                f"the history table {self.path} cannot be read{at}: {_first_line(error)}; bring the file back, or "
                "train on an older version that does without it (`streamgru retrain --history-version`)"
            ) from error

    def compact_if_fragmented(self, files: int = FRAGMENTED_FILES) -> bool:
        """Whether more than ``files`` files of one tier were merged into fewer of the next; see ``MERGED_BYTES``.

        That makes new versions with the same readings; older versions stay readable. When an append comes in between,
        one of both is refused and nothing is lost.
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
            log.info("history %s: merged %d files, now version %d", self.path, count, table.version())
        return table.version() > opened

    def _open(self, version: int | None = None) -> DeltaTable:
        if not self.exists():
            raise HistoryError(f"there is no history table at {self.path}; `streamgru ingest` makes and fills it")
        if version is not None and not commit_path(self.path, version).exists():
            # Delta Lake would look for it, for minutes where the number is large.
            raise HistoryError(f"the history table {self.path} has no version {version}: its newest is {self.version}")
        with self._translate_errors("opened" if version is None else f"opened at version {version}"):
            return DeltaTable(str(self.path), version=version)

    def _check_newest(self, version: int) -> None:
        """Nothing is built on a version whose readings a power cut has taken."""
        with self._translate_errors(f"looked at in version {version}"):
            if lack := describe_torn_files(self.path, version):
                commit = commit_path(self.path, version)
                raise HistoryError(
                    f"the newest version of the history table {self.path}, {version}, is torn, as after a power cut: "
                    f"{lack}. Remove {commit} (and {commit.stem}.checkpoint.parquet with _last_checkpoint beside it, "
                    "if they are there), and run it again: it reads the readings of that version once more"
                )

    def _sync(self, first: int, last: int) -> None:
        """Let the disk have the versions from ``first`` to ``last``."""
        try:
            sync_versions(self.path, first, last)
        except OSError as error:
            raise HistoryError(
                f"what was written to the history table {self.path} is in it, and the disk may not hold it yet: "
                f"{_first_line(error)}; look at that disk"
            ) from error

    def _check_columns(self, table: DeltaTable) -> None:
        found = {field.name: field.type for field in table.schema().fields}
        spelled = {name.lower(): name for name in found}
        for name, kind in (_BEFORE_FEATURES | _AFTER_FEATURES).items():
            if found.get(name) != PrimitiveType(kind):
                raise HistoryError(
                    f"{self.path} is a Delta table but no history: it has no column {name} of type {kind}"
                )
        for name in self.features:
            if (known := spelled.get(name.lower(), name)) != name:
                raise HistoryError(
                    f"the history table {self.path} has a feature {known}, and cannot have another that differs in "
                    f"case only: {name}; name it as it is there, or point `history` at a new folder"
                )
            if name in found and found[name] != PrimitiveType("double"):
                raise HistoryError(
                    f"the history table {self.path} has a column {name} of another type than double; "
                    "name the feature otherwise, or point `history` at a new folder"
                )

    def _with_columns(self, frame: pl.DataFrame) -> pl.DataFrame:
        features = [pl.col(name).cast(pl.Float64).fill_nan(None) for name in self.features]
        return frame.select(
            pl.col("sensor_id").cast(pl.String),
            pl.col("timestamp").cast(pl.Datetime("us", "UTC")),
            *features,
            pl.col("partition").cast(pl.Int32),
            pl.col("offset").cast(pl.Int64),
        )

    @contextmanager
    def _translate_errors(self, done: str, meanwhile: str = "written to by another ingest") -> Iterator[None]:
        try:
            yield
        except CommitFailedError as error:
            raise HistoryError(
                f"the history table {self.path} was {meanwhile} at the same time, so this was refused and nothing was "
                "written; run it again when the other has ended"
            ) from error
        except (DeltaError, OSError) as error:
            raise HistoryError(f"the history table {self.path} could not be {done}: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    said = str(error).strip()
    return said.splitlines()[0] if said else type(error).__name__


def _commit_time(commit: Mapping[str, Any]) -> datetime:
    return datetime.fromtimestamp(commit["timestamp"] / 1_000, UTC)


def _next_offsets(table: DeltaTable, topic: str) -> dict[int, int]:
    partitions = table.transaction_version(f"{topic}-partitions") or 0
    found = {number: table.transaction_version(f"{topic}-{number}") for number in range(partitions)}
    return {number: offset for number, offset in found.items() if offset is not None}
