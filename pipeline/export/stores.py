"""Exported tables: Delta Lake, where a commit holds rows and offsets, or Parquet files named by their offsets."""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Protocol

import polars as pl
from deltalake import CommitProperties, DeltaTable, WriterProperties, write_deltalake
from deltalake.exceptions import DeltaError

from pipeline.errors import ExportError
from pipeline.history.delta_offsets import is_of_another_topic, offset_marks, stored_offsets
from pipeline.history.durable import sync_path, sync_versions

_PARTITION: Final = "partition"


class ExportStore(Protocol):
    """An exported table. It is an ``OffsetStore`` (``pipeline.kafka.offset_range``) with an append."""

    def next_offsets(self, topic: str) -> dict[int, int]:
        """The next offset to append by partition of ``topic``; partitions never read are absent."""

    def has_offsets(self) -> bool:
        """Whether there was an append for any topic."""

    def is_of_another_topic(self, topic: str, topic_id: str) -> bool:
        """Whether the stored offsets of ``topic`` belong to a topic with another id."""

    def append(self, frame: pl.DataFrame, next_offsets: Mapping[int, int], topic: str, topic_id: str) -> None:
        """Append rows, whose ``partition`` and ``offset`` lie below ``next_offsets``, and these offsets.

        Raises:
            ExportError: the table is damaged or cannot be written; no row is appended.
        """


class DeltaStore:
    """A Delta Lake table at ``path``; the first append creates it. Later columns are added to it."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def next_offsets(self, topic: str) -> dict[int, int]:
        table = self._open()
        return {} if table is None else stored_offsets(table, topic)

    def has_offsets(self) -> bool:
        return self._open() is not None

    def is_of_another_topic(self, topic: str, topic_id: str) -> bool:
        table = self._open()
        return table is not None and is_of_another_topic(table, topic, topic_id)

    def append(self, frame: pl.DataFrame, next_offsets: Mapping[int, int], topic: str, topic_id: str) -> None:
        table = self._open()
        stored = {} if table is None else stored_offsets(table, topic)
        self._check_columns(frame, table)
        with _translate_errors(self._path):
            # No retry after a conflict: Delta refuses the commit if a later version has the same transactions.
            write_deltalake(
                str(self._path) if table is None else table,
                frame,
                mode="append",
                schema_mode="merge",
                writer_properties=WriterProperties(compression="ZSTD", compression_level=3),
                commit_properties=CommitProperties(
                    app_transactions=offset_marks(topic, stored, next_offsets, topic_id)
                ),
            )
            written = DeltaTable(str(self._path)).version()
            sync_versions(self._path, 0 if table is None else table.version(), written)

    def _check_columns(self, frame: pl.DataFrame, table: DeltaTable | None) -> None:
        """Refuse columns that differ only in case: Delta Lake ignores case in column names."""
        spelled = {} if table is None else {field.name.lower(): field.name for field in table.schema().fields}
        for name in frame.columns:
            if (known := spelled.setdefault(name.lower(), name)) != name:
                raise ExportError(
                    f"the exported table {self._path} has a column {known} and cannot have {name}, which differs only "
                    "in case; export to a new folder (--to), or use --format parquet"
                )

    def _open(self) -> DeltaTable | None:
        with _translate_errors(self._path):
            found = DeltaTable.is_deltatable(str(self._path))
            return DeltaTable(str(self._path)) if found else None


class ParquetStore:
    """A folder of Parquet files at ``path``, one per partition and append.

    The name of a file is its partition and its range of offsets, ``00003-00000000000000000000-00000000000000000120``.
    The rename to that name is the commit: after a crash a range is complete or absent.
    """

    _NAME: Final = re.compile(r"(\d{5,})-(\d{20})-(\d{20})\.parquet")
    TOPIC_FILE: Final = "_topic.json"

    def __init__(self, path: Path) -> None:
        self._path = path

    def next_offsets(self, topic: str) -> dict[int, int]:
        if self._topic().get("topic") != topic:
            return {}
        ends: dict[int, int] = {}
        for file in self._path.glob("*.parquet"):
            if found := self._NAME.fullmatch(file.name):
                partition, end = int(found[1]), int(found[3])
                ends[partition] = max(ends.get(partition, 0), end)
        return ends

    def has_offsets(self) -> bool:
        return bool(self._topic())

    def is_of_another_topic(self, topic: str, topic_id: str) -> bool:
        known = self._topic()
        return known.get("topic") == topic and known.get("topic_id") != topic_id

    def append(self, frame: pl.DataFrame, next_offsets: Mapping[int, int], topic: str, topic_id: str) -> None:
        starts = self.next_offsets(topic)
        with _translate_errors(self._path):
            self._path.mkdir(parents=True, exist_ok=True)
            if not self._topic():
                self._replace(self.TOPIC_FILE, json.dumps({"topic": topic, "topic_id": topic_id}).encode())
            for partition, end in sorted(next_offsets.items()):
                rows = frame.filter(pl.col(_PARTITION) == partition)
                name = f"{partition:05}-{starts.get(partition, 0):020}-{end:020}.parquet"
                partial = self._path / f".{name}.partial"
                rows.write_parquet(partial, compression="zstd", compression_level=3)
                sync_path(partial)
                partial.replace(self._path / name)
            sync_path(self._path)

    def _topic(self) -> dict[str, Any]:
        file = self._path / self.TOPIC_FILE
        with _translate_errors(self._path):
            try:
                content = json.loads(file.read_text(encoding="utf-8"))
            except FileNotFoundError:
                return {}
            except ValueError as error:
                raise ExportError(f"{file} is damaged: {error}; export to a new folder") from error
        return content if isinstance(content, dict) else {}

    def _replace(self, name: str, content: bytes) -> None:
        partial = self._path / f".{name}.partial"
        partial.write_bytes(content)
        sync_path(partial)
        partial.replace(self._path / name)


@contextmanager
def _translate_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (DeltaError, OSError, pl.exceptions.PolarsError) as error:
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ExportError(
            f"the exported table {path} could not be read or written: {first}; earlier commits stay. Check "
            "that folder and its disk, then run the same command again"
        ) from error
