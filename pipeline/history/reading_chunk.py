"""Readings of one commit as columns: building row objects would take longer than decoding."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from pipeline.history.columns import column_of
from pipeline.history.outlook_rows import outlook_rows
from pipeline.messages import Rejected
from pipeline.outlook_messages import Outlook, make_outlook_decoder
from pipeline.reading_times import RECORD_TIMESTAMP, sent_us
from pipeline.readings_format.decoder import make_decoder
from pipeline.settings import Settings


class ReadingChunk:
    """Decodes records of the readings topic into the columns of the history table, one commit after another.

    Over all commits, ``left_out`` counts malformed records by reason, ``outlooks`` the records with outlooks, and
    ``ignored_values`` the values of features and covariates that the settings do not name.
    """

    def __init__(self, settings: Settings) -> None:
        self._features = settings.features
        self._decoder = make_decoder(settings)
        self._outlook_decoder = make_outlook_decoder(settings)
        self._covariates = settings.outlooks.covariates
        self.left_out: Counter[str] = Counter()
        self.outlooks = 0
        self.ignored_values = 0
        self._clear()

    def __len__(self) -> int:
        return len(self._offsets) + len(self._outlooks)

    def add(self, partition: int, records: Sequence[Any]) -> int:
        """Decode a partition's next records, and return the number of readings and outlooks in the chunk."""
        decode = self._decoder.decode
        sensor_ids, timestamps, values, offsets = self._sensor_ids, self._timestamps, self._values, self._offsets
        sent, before = self._sent_ms, len(offsets)
        for record in records:
            try:
                reading = decode(record.key, record.value, record.headers, record.timestamp)
            except Rejected as rejected:
                self._add_outlook(partition, record, rejected)
                continue
            sensor_ids.append(reading.sensor_id)
            timestamps.append(reading.timestamp_us)
            values.extend(reading.values)
            offsets.append(record.offset)
            sent.append(record.timestamp)
            self.ignored_values += reading.ignored
        self._partitions.append((partition, len(offsets) - before))
        return len(self)

    def _add_outlook(self, partition: int, record: Any, rejected: Rejected) -> None:
        """Add the outlook in a record that is not a reading, or count the record as malformed."""
        outlook = None
        if self._outlook_decoder is not None:
            try:
                outlook = self._outlook_decoder.decode(record.key, record.value, record.headers, rejected)
            except Rejected as invalid:
                rejected = invalid
        if outlook is None:
            self.left_out[rejected.reason] += rejected.records
            return
        self._outlooks.append((partition, record.offset, outlook))
        self._outlooks_sent_ms.append(record.timestamp)
        self.outlooks += 1
        self.ignored_values += outlook.ignored

    def take(self) -> pl.DataFrame:
        """The columns of the history table, null where missing; the chunk is empty afterwards."""
        values = np.asarray(self._values, dtype=np.float64).reshape(len(self._offsets), len(self._features))
        numbers, counts = zip(*self._partitions, strict=True) if self._partitions else ((), ())
        partitions = np.repeat(np.asarray(numbers, dtype=np.int32), np.asarray(counts, dtype=np.int64))
        columns: dict[str, Any] = {
            "sensor_id": pl.Series(self._sensor_ids, dtype=pl.String),
            "timestamp": pl.Series(self._timestamps, dtype=pl.Int64).cast(pl.Datetime("us", "UTC")),
            **{column_of(name): np.ascontiguousarray(values[:, index]) for index, name in enumerate(self._features)},
            "partition": partitions,
            "offset": pl.Series(self._offsets, dtype=pl.Int64),
            RECORD_TIMESTAMP: pl.Series(sent_us(np.asarray(self._sent_ms, np.int64))).cast(pl.Datetime("us", "UTC")),
        }
        frame = pl.DataFrame(columns, nan_to_null=True)
        if self._outlooks:
            outlooks_sent_us = sent_us(np.array(self._outlooks_sent_ms, np.int64)).tolist()
            rows = outlook_rows(self._outlooks, self._covariates, outlooks_sent_us)
            frame = pl.concat([frame, rows], how="diagonal")
        self._clear()
        return frame

    def _clear(self) -> None:
        self._sensor_ids: list[str] = []
        self._timestamps: list[int] = []  # microseconds
        self._values: list[float] = []  # of all features of one reading after another
        self._offsets: list[int] = []
        self._sent_ms: list[int] = []  # timestamps of the records
        self._partitions: list[tuple[int, int]] = []  # (partition, number of consecutive readings)
        self._outlooks: list[tuple[int, int, Outlook]] = []  # partition, offset, outlook
        self._outlooks_sent_ms: list[int] = []
