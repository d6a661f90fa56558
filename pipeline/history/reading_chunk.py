"""Readings of one commit as columns: building row objects would take longer than decoding."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipeline.history.columns import column_of
from pipeline.history.outlook_rows import outlook_rows
from pipeline.kafka.reading_records import decode_readings
from pipeline.kafka.record_columns import offsets_of, timestamps_of
from pipeline.kafka.sensor_codes import join_names
from pipeline.messages import Rejected
from pipeline.outlook_messages import Outlook, decode_outlook, make_outlook_decoder
from pipeline.reading_times import RECORD_TIMESTAMP, sent_us
from pipeline.readings_format.decoder import make_decoder
from pipeline.settings import Settings


class _Part(NamedTuple):
    """The readings of one call of ``add``: only these columns are kept until the commit, and no record."""

    partition: int
    names: list[str]  # the sensors
    codes: NDArray[np.intp]  # (n,) index of the reading's sensor in ``names``
    timestamp_us: NDArray[np.int64]  # (n,)
    values: NDArray[np.float64]  # (n, F), NaN where missing
    offsets: NDArray[np.int64]  # (n,)
    sent_ms: NDArray[np.int64]  # (n,) timestamps of the records


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
        return sum(len(part.codes) for part in self._parts) + len(self._outlooks)

    def add(self, partition: int, records: Sequence[Any]) -> int:
        """Decode a partition's next records, and return the number of readings and outlooks in the chunk."""
        found = decode_readings(self._decoder, len(self._features), records)
        for record, rejected in found.others:
            self._add_outlook(partition, record, rejected)
        self.ignored_values += found.ignored
        if len(found.codes):
            offsets, sent_ms = found.select(offsets_of(records)), found.select(timestamps_of(records))
            columns = (found.names, found.codes, found.timestamp_us, found.values, offsets, sent_ms)
            self._parts.append(_Part(partition, *columns))
        return len(self)

    def _add_outlook(self, partition: int, record: Any, rejected: Rejected) -> None:
        """Add the outlook in a record that is not a reading, or count the record as malformed."""
        found = decode_outlook(self._outlook_decoder, record, rejected)
        if isinstance(found, Rejected):
            self.left_out[found.reason] += found.records
            return
        self._outlooks.append((partition, record.offset, found))
        self._outlooks_sent_ms.append(record.timestamp)
        self.outlooks += 1
        self.ignored_values += found.ignored

    def take(self) -> pl.DataFrame:
        """The columns of the history table, null where missing; the chunk is empty afterwards."""
        parts = self._parts
        names, codes = join_names([(part.names, part.codes) for part in parts])
        counts = [len(part.codes) for part in parts]
        values = np.concatenate([np.empty((0, len(self._features))), *(part.values for part in parts)])
        timestamp_us, offsets, sent_ms = (
            np.concatenate([np.empty(0, np.int64), *each])
            for each in (
                [part.timestamp_us for part in parts],
                [part.offsets for part in parts],
                [part.sent_ms for part in parts],
            )
        )
        columns: dict[str, Any] = {
            "sensor_id": pl.Series(names, dtype=pl.String).gather(pl.Series(codes)),
            "timestamp": pl.Series(timestamp_us).cast(pl.Datetime("us", "UTC")),
            **{column_of(name): np.ascontiguousarray(values[:, index]) for index, name in enumerate(self._features)},
            "partition": np.repeat(np.array([part.partition for part in parts], np.int32), counts),
            "offset": pl.Series(offsets),
            RECORD_TIMESTAMP: pl.Series(sent_us(sent_ms)).cast(pl.Datetime("us", "UTC")),
        }
        frame = pl.DataFrame(columns, nan_to_null=True)
        if self._outlooks:
            outlooks_sent_us = sent_us(np.array(self._outlooks_sent_ms, np.int64)).tolist()
            rows = outlook_rows(self._outlooks, self._covariates, outlooks_sent_us)
            frame = pl.concat([frame, rows], how="diagonal")
        self._clear()
        return frame

    def _clear(self) -> None:
        self._parts: list[_Part] = []
        self._outlooks: list[tuple[int, int, Outlook]] = []  # partition, offset, outlook
        self._outlooks_sent_ms: list[int] = []
