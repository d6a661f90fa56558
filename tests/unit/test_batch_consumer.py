"""``read_batch`` reads the same records from the same bytes as kafka-python."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kafka.errors import CorruptRecordError
from kafka.record.default_records import DefaultRecordBatch, DefaultRecordBatchBuilder

from pipeline.kafka.batch_consumer import FetchedRecord, read_batch

Content = tuple[bytes | None, bytes | None, list[tuple[str, bytes | None]], int]

contents = st.lists(
    st.tuples(
        st.none() | st.binary(max_size=200),
        st.none() | st.binary(max_size=20_000),
        st.lists(st.tuples(st.text(max_size=70), st.none() | st.binary(max_size=200)), max_size=3),
        st.integers(0, 2**40),
    ),
    min_size=1,
    max_size=20,
)


def encoded(records: list[Content], compression: int = 0, skip: int = 1) -> bytearray:
    """A batch whose offsets are ``skip`` apart, as compaction leaves them."""
    builder = DefaultRecordBatchBuilder(
        magic=2,
        compression_type=compression,
        is_transactional=False,
        producer_id=-1,
        producer_epoch=-1,
        base_sequence=-1,
        batch_size=1 << 30,
    )
    for number, (key, value, headers, timestamp) in enumerate(records):
        assert builder.append(number * skip, timestamp, key, value, headers) is not None
    return builder.build()


@pytest.mark.parametrize("compression", range(DefaultRecordBatch.CODEC_ZSTD + 1))
@given(records=contents, skip=st.integers(1, 300))
def test_records_equal_those_of_the_client(records: list[Content], compression: int, skip: int) -> None:
    data = encoded(records, compression, skip)
    theirs = [
        FetchedRecord(one.key, one.value, one.offset, one.headers, one.timestamp) for one in DefaultRecordBatch(data)
    ]
    assert list(read_batch(DefaultRecordBatch(data))) == theirs


@given(records=contents, data=st.data())
def test_a_damaged_batch_is_read_or_raises_only_corrupt_record_error(
    records: list[Content], data: st.DataObject
) -> None:
    batch = encoded(records)
    at = data.draw(st.integers(DefaultRecordBatch.HEADER_STRUCT.size, len(batch) - 1))
    batch[at] = data.draw(st.integers(0, 255))
    with suppress(CorruptRecordError):  # the checksum, verified before, finds every damage
        list(read_batch(DefaultRecordBatch(batch)))


@pytest.mark.parametrize("cut", [1, 5])
def test_a_batch_cut_short_is_damaged(cut: int) -> None:
    batch = encoded([(b"key", b"a longer value", [], 0)])
    with pytest.raises(CorruptRecordError):
        list(read_batch(DefaultRecordBatch(batch[:-cut])))
