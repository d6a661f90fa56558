"""The compiled kernels read and write the columns of a record that ``record_columns`` names.

The kernels use the numbers of the columns: numba would miss a change of an imported constant.
"""

import numpy as np
from kafka.record.default_records import DefaultRecordBatch

from pipeline.kafka import record_columns
from pipeline.kafka.record_batch import read_batch
from pipeline.kafka.record_columns import COLUMNS, RecordColumns
from pipeline.kafka.record_kernel import read_columns
from pipeline.readings_format.reading_columns import ColumnDecoder
from tests.unit.test_batch_consumer import encoded

NAMES = ("KEY_START", "KEY_SIZE", "VALUE_START", "VALUE_SIZE", "HEADERS", "END", "OFFSET", "TIMESTAMP")


def test_each_column_has_a_name() -> None:
    assert sorted(getattr(record_columns, name) for name in NAMES) == list(range(COLUMNS))


def test_the_reader_of_batches_fills_the_named_columns() -> None:
    headers = [("first", b"1"), ("second", b"22")]
    batch = encoded(
        [(b"key", b"value", headers, 7_000), (None, b"other", [], 9_000), (b"last", None, [], 8_000)], skip=3
    )
    records = read_batch(DefaultRecordBatch(batch), 1 << 20, read_columns).records
    assert isinstance(records, RecordColumns)
    column = {name: records.table[:, getattr(record_columns, name)].tolist() for name in NAMES}
    data = records.data
    assert column["KEY_START"][0] == data.index(b"key")
    assert column["KEY_START"][2] == data.index(b"last")
    assert column["KEY_SIZE"] == [3, -1, 4]
    assert column["VALUE_START"][:2] == [data.index(b"value"), data.index(b"other")]
    assert column["VALUE_SIZE"] == [5, 5, -1]
    assert column["HEADERS"] == [2, 0, 0]
    assert column["END"] == [data.index(b"22") + 2, data.index(b"other") + 6, len(data)]
    assert column["OFFSET"] == [0, 3, 6]
    assert column["TIMESTAMP"] == [7_000, 9_000, 8_000]


def test_the_decoder_of_readings_reads_the_named_columns() -> None:
    value = b'{"sensor_id":"s","timestamp":7,"values":{"a":1.5}}'
    table = np.full((3, COLUMNS), 1 << 40, np.int64)  # columns that the decoder does not need point beyond the data
    for name, number in (("KEY_START", 2), ("KEY_SIZE", 1), ("VALUE_START", 3), ("VALUE_SIZE", len(value))):
        table[:, getattr(record_columns, name)] = number
    table[1, record_columns.KEY_SIZE] = -1
    table[2, record_columns.VALUE_SIZE] = -1
    found = ColumnDecoder(("a",), 1_000).decode(b"??s" + value + b"?", table)
    assert (found.names, found.codes.tolist(), found.decoded) == (["s"], [0, -1, -1], 1)
    assert (found.timestamp_us[0], found.values[0, 0]) == (7_000, 1.5)
