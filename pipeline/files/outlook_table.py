"""The outlooks in a user's files, in long form: a row for each time of issue, sensor or group, and time ahead."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DataFileError
from pipeline.files.file_layout import FileLayout
from pipeline.files.reading_table import ReadingTable, read_readings
from pipeline.messages import iso_timestamp
from pipeline.outlook_messages import MOST_ENTRIES, Outlook, encode_outlook
from pipeline.settings import Settings

Indexes = NDArray[np.int64]


@dataclass(frozen=True)
class OutlookRecord:
    """An outlook and its record, which goes to every partition if the outlook is a group's."""

    outlook: Outlook  # as the decoder of the stream decodes the record
    key: bytes
    value: bytes


@dataclass(frozen=True)
class OutlookTable:
    """Outlooks in the order of their issue; ``notes`` are sentences for the user."""

    records: tuple[OutlookRecord, ...]
    sensors: tuple[str, ...]
    groups: tuple[str, ...]
    notes: tuple[str, ...]


def no_readings(settings: Settings) -> ReadingTable:
    """A table of readings for a publication of outlooks alone."""
    none = np.empty(0, np.int64)
    return ReadingTable((), none, none, {feature: np.empty(0) for feature in settings.features}, ())


def read_outlooks(paths: Sequence[Path], layout: FileLayout, settings: Settings) -> OutlookTable:
    """All outlooks of the files. A name that is a group in the settings stands for the group.

    Rows of one outlook may lie anywhere in the files.

    Raises:
        DataFileError: a file is malformed, does not fit the layout, or holds an outlook that the stream rejects.
    """
    covariates = settings.outlooks.covariates
    if not covariates:
        raise DataFileError("the settings name no covariates of outlooks; name them under [outlooks]")
    assert layout.issued_column is not None
    table = read_readings(paths, replace(layout, order="event", columns_as_sensors=False), covariates)
    assert table.issued_us is not None
    order = np.lexsort((table.sensor_codes, table.issued_us))  # stable: the rows of an outlook keep their order
    issued_us, codes = table.issued_us[order], table.sensor_codes[order]
    cuts = np.flatnonzero((np.diff(issued_us) != 0) | (np.diff(codes) != 0)) + 1
    records = [_record(table, rows, settings) for rows in np.split(order, cuts) if len(rows)]
    groups = tuple(name for name in table.sensors if name in settings.outlooks.groups)
    sensors = tuple(name for name in table.sensors if name not in groups)
    return OutlookTable(tuple(records), sensors, groups, table.notes)


def rows_behind(table: ReadingTable, outlooks: Sequence[OutlookRecord]) -> Indexes:
    """(m,) the row before which each outlook comes: the first one with its time of issue or a later time.

    Args:
        table: readings in the order of their times.
    """
    issued_us = np.array([each.outlook.issued_us for each in outlooks], np.int64)
    rows: Indexes = np.searchsorted(table.timestamp_us, issued_us)
    return rows


def _record(table: ReadingTable, rows: np.ndarray, settings: Settings) -> OutlookRecord:
    """The outlook in some rows."""
    assert table.issued_us is not None
    issued_us, name = int(table.issued_us[rows[0]]), table.sensors[table.sensor_codes[rows[0]]]
    groups, covariates = settings.outlooks.groups, settings.outlooks.covariates
    is_group = name in groups
    values = {covariate: column[rows] for covariate, column in table.values.items()}
    key, value = encode_outlook(name, issued_us, table.timestamp_us[rows], values, is_group=is_group)
    if len(rows) > MOST_ENTRIES or len(key) + len(value) > settings.kafka.max_reading_bytes:
        raise DataFileError(
            f"the outlook of {name} issued at {iso_timestamp(issued_us)} has {len(rows):,} times and {len(value):,} "
            f"bytes; a record takes {MOST_ENTRIES:,} times and kafka.max_reading_bytes "
            f"({settings.kafka.max_reading_bytes:,}) bytes"
        )
    decoded = np.full((len(rows), len(covariates)), np.nan, np.float32)
    for place, covariate in enumerate(covariates):
        if covariate in values:
            decoded[:, place] = values[covariate]
    outlook = Outlook(name, is_group, groups.get(name, (name,)), issued_us, table.timestamp_us[rows], decoded)
    return OutlookRecord(outlook, key, value)
