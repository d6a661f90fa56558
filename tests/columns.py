"""Records in columns as a consumer returns them, and decoded records in a form that can be compared."""

from typing import Any

import numpy as np

from pipeline.forecaster.readings import DecodedRecords
from pipeline.kafka.record_batch import FetchedRecord
from pipeline.kafka.record_columns import (
    COLUMNS,
    END,
    KEY_SIZE,
    KEY_START,
    OFFSET,
    TIMESTAMP,
    VALUE_SIZE,
    VALUE_START,
    RecordColumns,
)


def in_columns(records: list[FetchedRecord]) -> RecordColumns:
    """The records as a consumer with columns returns them; records without headers."""
    data, table = bytearray(b"?"), np.zeros((len(records), COLUMNS), np.int64)
    for row, record in enumerate(records):
        for start, size, part in ((KEY_START, KEY_SIZE, record.key), (VALUE_START, VALUE_SIZE, record.value)):
            table[row, start], table[row, size] = len(data), -1 if part is None else len(part)
            data += part or b""
        table[row, END], table[row, OFFSET], table[row, TIMESTAMP] = len(data), record.offset, record.timestamp
    return RecordColumns(bytes(data), table)


def content(decoded: DecodedRecords) -> Any:
    """Everything in decoded records, numbers as bytes."""
    readings = decoded.readings
    numbers = [
        np.ascontiguousarray(column).tobytes()
        for column in (readings.codes, readings.timestamp_us, readings.values, readings.offsets)
    ]
    rejected = [(record, reason.reason, reason.detail, reason.records) for record, reason in decoded.rejected]
    return readings.names, numbers, rejected, decoded.ignored_features, decoded.implausible_times
