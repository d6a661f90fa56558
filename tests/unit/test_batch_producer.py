"""Records in columns give the same broker batches as records in lists."""

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kafka import TopicPartition
from kafka.producer.record_accumulator import RecordAccumulator

from pipeline.errors import KafkaError
from pipeline.kafka.batch_producer import BatchAppender, encode_headers
from pipeline.kafka.byte_strings import ByteStrings

WHERE = TopicPartition("forecasts", 0)
BATCH_BYTES = 2_000
NOW_MS = 1_700_000_000_000


def make_appender() -> tuple[BatchAppender, RecordAccumulator]:
    """An appender whose batches stay in memory."""
    accumulator = RecordAccumulator(batch_size=BATCH_BYTES, compression_attrs=0)
    producer = SimpleNamespace(
        _accumulator=accumulator,
        _sender=SimpleNamespace(wakeup=lambda: None),
        _transaction_manager=None,
        _closed=False,
        config={"max_request_size": 20_000},
        partitions_for=lambda topic: [0],
    )
    return BatchAppender(cast(Any, producer)), accumulator


def contents(accumulator: RecordAccumulator) -> list[tuple[Any, ...]]:
    """Bytes, number of records, last offset and sizes of each batch."""
    found = []
    for batch in accumulator._batches[WHERE]:
        builder = batch.records._builder
        found.append((bytes(builder.build()), builder._num_records, builder._last_offset, batch.max_record_size))
    return found


# Sizes of which some need varints of two bytes, some fill a batch, and some exceed it.
strings = st.one_of(
    st.binary(max_size=3),
    st.sampled_from([63, 64, 200, BATCH_BYTES - 90, BATCH_BYTES, 9_000]).map(lambda size: b"x" * size),
)
blocks = st.lists(st.tuples(st.text(max_size=3), st.binary(max_size=70)), max_size=3).map(encode_headers)
records = st.tuples(strings, strings, blocks)
appends = st.lists(st.tuples(st.lists(records, min_size=1, max_size=90), st.integers(-70, 70_000)), max_size=4)


@settings(deadline=None, max_examples=100)
@given(appends=appends, same_headers=st.booleans())
def test_columns_and_lists_give_equal_batches(
    appends: list[tuple[list[tuple[bytes, bytes, bytes]], int]], same_headers: bool
) -> None:
    (listed, in_lists), (columnar, in_columns) = make_appender(), make_appender()
    for rows, late_ms in appends:
        keys, values, headers = map(list, zip(*rows, strict=True))
        block: Any = headers[0] if same_headers else headers
        in_column: Any = headers[0] if same_headers else ByteStrings.of(headers)
        expected = listed.append(*WHERE, keys, values, block, NOW_MS + late_ms)
        made = columnar.append(*WHERE, ByteStrings.of(keys), ByteStrings.of(values), in_column, NOW_MS + late_ms)
        assert len(made) == len(expected)
    assert contents(in_columns) == contents(in_lists)


def test_overlapping_strings_are_written_in_the_given_order() -> None:
    (listed, in_lists), (columnar, in_columns) = make_appender(), make_appender()
    names = ByteStrings.of([b"a", b"bb", b"ccc"])
    keys = names.take(np.array([2, 0, 0, 1, 2]))
    assert list(keys) == [b"ccc", b"a", b"a", b"bb", b"ccc"]
    listed.append(*WHERE, list(keys), list(keys[::-1]), timestamp_ms=NOW_MS)
    columnar.append(*WHERE, keys, keys[::-1], timestamp_ms=NOW_MS)
    assert contents(in_columns) == contents(in_lists)


@pytest.mark.parametrize("make", [list, ByteStrings.of])
def test_a_record_beyond_the_size_limit_is_refused_before_any_append(make: Any) -> None:
    appender, accumulator = make_appender()
    with pytest.raises(KafkaError, match=r"20,006 bytes for topic forecasts, partition 0, exceeds .*b'large'"):
        appender.append(*WHERE, make([b"small", b"large"]), make([b"v", b"v" * 20_000]))
    assert contents(accumulator) == []


@given(texts=st.lists(st.binary(max_size=5)), cut=st.slices(8))
def test_columns_are_a_sequence_of_their_strings(texts: list[bytes], cut: slice) -> None:
    columns = ByteStrings.of(texts)
    assert columns == texts
    assert columns[cut] == texts[cut]
    assert [columns[place] for place in range(len(texts))] == texts
    assert columns.sizes.tolist() == list(map(len, texts))
    assert columns != [*texts, b""]
