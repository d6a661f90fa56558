"""The columns of a commit are the readings of its records, whether they came as objects or in columns."""

import gc
import tracemalloc
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import polars as pl
import pytest

from pipeline.history.reading_chunk import ReadingChunk
from pipeline.kafka.record_batch import FetchedRecord
from pipeline.messages import encode_reading
from pipeline.settings import Settings
from tests.columns import in_columns

SETTINGS = Settings(features=("a", "b"), targets=("a",))
MOMENT_MS = 1_362_096_000_000

RECORDS = [
    FetchedRecord(
        *encode_reading(f"s{number % 3}", 1_000 * number, {"a": 0.1 * number, "b": None}), number, [], MOMENT_MS
    )
    for number in range(20)
]
RECORDS[3] = RECORDS[3]._replace(value=b"rubbish")
RECORDS[7] = FetchedRecord(
    b"s7", b'{"sensor_id":"\\u00737","timestamp":7,"values":{"a":1,"c":2}}', 7, [], MOMENT_MS + 1
)  # an escape: not in columns
RECORDS[9] = RECORDS[9]._replace(timestamp=-1)


@pytest.mark.parametrize("cuts", [(0, 20), (0, 5, 20), (0, 3, 4, 20)])
def test_objects_and_columns_give_the_same_frame(cuts: tuple[int, ...]) -> None:
    plain, columnar = ReadingChunk(SETTINGS), ReadingChunk(SETTINGS)
    for partition, (begin, end) in enumerate(pairwise(cuts)):
        added = plain.add(partition, RECORDS[begin:end])
        assert columnar.add(partition, in_columns(RECORDS[begin:end])) == added == len(plain)
    frame = plain.take()
    assert frame.equals(columnar.take())
    assert plain.left_out == columnar.left_out == {"malformed": 1}
    assert plain.ignored_values == columnar.ignored_values == 1
    read = [record for record in RECORDS if record.offset != 3]
    assert frame["offset"].to_list() == [record.offset for record in read]
    assert frame["sensor_id"].to_list() == [(record.key or b"").decode() for record in read]
    assert frame["b"].null_count() == len(read)
    assert len(plain) == 0


def test_an_empty_chunk_has_the_columns_of_a_full_one() -> None:
    chunk = ReadingChunk(SETTINGS)
    empty = chunk.take()
    chunk.add(0, RECORDS)
    assert chunk.take().schema == empty.schema
    assert empty.schema["offset"] == pl.Int64


@pytest.mark.parametrize("form", [list, in_columns])
def test_no_rejected_record_stays_in_memory_until_the_commit(form: Callable[[list[FetchedRecord]], Any]) -> None:
    chunk, size = ReadingChunk(SETTINGS), 100_000
    chunk.add(0, form(RECORDS))  # the first call loads modules
    tracemalloc.start()
    try:
        for number in range(20):
            chunk.add(0, form([RECORDS[0], FetchedRecord(b"s", b"x" * size, number, [], MOMENT_MS)]))
        gc.collect()
        kept_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert chunk.left_out == {"malformed": 21}
    assert kept_bytes < size
