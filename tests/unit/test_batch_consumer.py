"""``read_batch`` reads the same records from the same bytes as kafka-python; unreadable batches become one record."""

import tracemalloc
from contextlib import suppress
from dataclasses import replace
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kafka.errors import CorruptRecordError
from kafka.record.default_records import DefaultRecordBatch, DefaultRecordBatchBuilder

from pipeline.dead_letter_form import dead_letter
from pipeline.kafka.decompression import TooLarge
from pipeline.kafka.next_batch import find_next_base
from pipeline.kafka.record_batch import (
    RECORD_BYTES,
    ColumnReader,
    FetchedRecord,
    find_fault,
    first_offsets,
    read_batch,
    read_or_set_aside,
    split_batches,
)
from pipeline.kafka.record_columns import RecordColumns, join_records, places_of
from pipeline.kafka.record_kernel import read_columns
from pipeline.messages import InputPosition, ReadingDecoder, Rejected
from pipeline.unreadable_batch import DAMAGED, OVERSIZED, UnreadableBatch
from tests.raw_batches import CODECS, GZIP, LZ4, NONE, SNAPPY, ZSTD, RawBatch, batch_of, bomb, compress, record, varint

LIMIT = 1 << 30

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
    ours = read_batch(DefaultRecordBatch(data), LIMIT)
    assert ours.records == theirs
    columns = read_batch(DefaultRecordBatch(data), LIMIT, read_columns)
    assert isinstance(columns.records, RecordColumns)
    assert list(columns.records) == theirs
    assert columns.memory_bytes == ours.memory_bytes


@given(records=contents, data=st.data())
def test_a_damaged_batch_is_read_or_raises_only_corrupt_record_error(
    records: list[Content], data: st.DataObject
) -> None:
    batch = encoded(records)
    at = data.draw(st.integers(DefaultRecordBatch.HEADER_STRUCT.size, len(batch) - 1))
    batch[at] = data.draw(st.integers(0, 255))
    with suppress(CorruptRecordError):  # the checksum, verified before, finds every damage
        read_batch(DefaultRecordBatch(batch), LIMIT)
    assert read_outcome(batch, LIMIT, read_columns) == read_outcome(batch, LIMIT)


def read_outcome(batch: bytes, limit: int, reader: ColumnReader | None = None) -> object:
    """The records and their memory, or the error in words."""
    try:
        records, memory_bytes = read_batch(DefaultRecordBatch(batch), limit, reader)
    except (CorruptRecordError, TooLarge) as error:
        return type(error), str(error)
    return list(records), memory_bytes


@given(records=contents, data=st.data())
def test_the_memory_limit_is_the_same_with_columns(records: list[Content], data: st.DataObject) -> None:
    batch = encoded(records)
    limit = data.draw(st.integers(0, 2 * (len(batch) + RECORD_BYTES * (len(records) + 3))))
    assert read_outcome(batch, limit, read_columns) == read_outcome(batch, limit)


@given(st.lists(contents, min_size=1, max_size=3), st.data())
def test_columns_are_a_sequence_like_a_list_of_records(batches: list[list[Content]], data: st.DataObject) -> None:
    runs = [read_batch(DefaultRecordBatch(encoded(batch)), LIMIT, read_columns).records for batch in batches]
    runs = [run[data.draw(st.integers(0, len(run) - 1)) :] for run in runs]
    wanted = [record for run in runs for record in run]
    joined = join_records(runs)
    assert isinstance(joined, RecordColumns)
    assert list(joined) == wanted
    assert [joined[place] for place in range(-len(wanted), len(wanted))] == wanted * 2
    first, end = (data.draw(st.integers(0, len(wanted))) for _ in range(2))
    assert list(joined[first:end]) == wanted[first:end]
    with pytest.raises(IndexError):
        joined[len(wanted)]
    keys = [record.key for record in wanted[:2] if record.key is not None]
    assert (
        list(places_of(joined, keys))
        == list(places_of(wanted, keys))
        == [place for place, record in enumerate(wanted) if record.key in keys]
    )


def test_joining_columns_copies_their_bytes_once() -> None:
    size = 1_000_000
    batch = DefaultRecordBatch(encoded([(b"k", b"v" * size, [], 0)]))
    runs = [read_batch(batch, 2 * LIMIT + 2 * size, read_columns).records for _ in range(4)]
    tracemalloc.start()
    try:
        joined = join_records(runs)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert isinstance(joined, RecordColumns)
    assert peak_bytes < 5 * size


def test_columns_joined_with_records_that_are_objects_are_objects() -> None:
    columns = read_batch(DefaultRecordBatch(encoded([(b"k", b"v", [], 0)])), LIMIT, read_columns).records
    objects = [FetchedRecord(None, None, 5, [])]
    assert join_records([columns, objects]) == [*columns, *objects]


def test_more_headers_than_bytes_are_damage_and_not_a_large_batch() -> None:
    batch = encoded([(b"key", b"value", [("name", b"text")], 0)])
    at = batch.index(b"value") + len(b"value")  # the number of headers
    batch[at : at + 1] = bytes([0xFE])  # the first byte of a number of several
    with pytest.raises(CorruptRecordError, match="more headers"):
        read_batch(DefaultRecordBatch(batch), LIMIT)


@pytest.mark.parametrize("cut", [1, 5])
def test_a_batch_cut_short_is_damaged(cut: int) -> None:
    batch = encoded([(b"key", b"a longer value", [], 0)])
    with pytest.raises(CorruptRecordError):
        read_batch(DefaultRecordBatch(batch[:-cut]), LIMIT)


# --- batches that cannot be read --------------------------------------------------------------------------------------

READINGS: list[tuple[bytes | None, bytes | None]] = [(b"s", b"value %d" % number) for number in range(3)]
WHERE = SimpleNamespace(topic="readings", partition=1)


def set_aside(batch: RawBatch, limit: int = LIMIT) -> UnreadableBatch:
    """The one record of a batch that cannot be read."""
    client = DefaultRecordBatch(batch.encode())
    fault = find_fault(client, check_crc=True)
    (found,), _ = read_or_set_aside(client, limit, client.last_offset, fault)
    assert read_or_set_aside(client, limit, client.last_offset, fault, read_columns).records == [found]
    assert isinstance(found.value, UnreadableBatch)
    assert (found.key, found.offset, found.next_offset) == (None, batch.base_offset, client.last_offset + 1)
    return found.value


@pytest.mark.parametrize("codec", [GZIP, SNAPPY, LZ4, ZSTD])
def test_a_batch_that_unpacks_beyond_the_limit_is_set_aside_in_flat_memory(codec: int) -> None:
    batch = bomb(codec, 100_000_000, b"s", b"{}")
    tracemalloc.start()
    aside = set_aside(batch, 4_000_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16_000_000 + 3 * len(batch.records)
    assert (aside.reason, aside.first_offset, aside.last_offset, aside.records) == (OVERSIZED, 0, 99, 100)
    assert bytes(aside) == batch.encode()
    for part in ("offsets 0 to 99", "100 records", "kafka.max_batch_bytes allows 4,000,000", tuple(CODECS)[codec]):
        assert part in aside.detail


@pytest.mark.parametrize("count", [-1, -(2**31)])
def test_a_batch_with_a_negative_number_of_records_is_set_aside_in_flat_memory(count: int) -> None:
    batch = replace(bomb(ZSTD, 100_000_000, b"s", b"{}"), count=count, last_offset_delta=99)
    tracemalloc.start()
    aside = set_aside(batch, 4_000_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000
    assert (aside.reason, aside.first_offset, aside.last_offset, aside.records) == (DAMAGED, 0, 99, 1)
    assert "negative number of records" in aside.detail


def test_a_last_offset_before_the_first_is_not_trusted() -> None:
    batch = replace(batch_of(NONE, READINGS), base_offset=40, last_offset_delta=-1)
    fault = find_fault(DefaultRecordBatch(batch.encode()), check_crc=True)
    assert fault == "its header states a negative number of records or offsets"


def test_a_snappy_block_that_claims_gigabytes_is_refused_before_it_takes_memory() -> None:
    aside = set_aside(RawBatch(b"\xff\xff\xff\xff\x0f" + b"\x00" * 100, 3, SNAPPY), 4_000_000)
    assert aside.reason == OVERSIZED
    assert "at least 4,294,968," in aside.detail  # the claim, and the memory of three records


def test_many_records_or_headers_of_no_bytes_count_as_memory() -> None:
    tiny = record(0, None, None)
    assert set_aside(RawBatch(tiny, 2_000_000), 100_000_000).reason == OVERSIZED
    headers = tiny[1:-1] + varint(100_000) + b"\x00\x01" * 100_000
    with pytest.raises(TooLarge):
        read_batch(DefaultRecordBatch(RawBatch(varint(len(headers)) + headers, 1).encode()), 10_000 * RECORD_BYTES)


@pytest.mark.parametrize("codec", [GZIP, SNAPPY, LZ4, ZSTD])
@pytest.mark.parametrize("cut", [1, 4, 9, 20])
def test_a_compressed_batch_that_is_cut_short_is_damaged(codec: int, cut: int) -> None:
    batch = batch_of(codec, READINGS)
    data = replace(batch, records=batch.records[:-cut]).encode()
    if codec == LZ4 and cut <= 4:  # only the end mark is missing, which readers of the records do not need
        return
    (found,), _ = read_or_set_aside(DefaultRecordBatch(data), LIMIT, 2)
    assert isinstance(found.value, UnreadableBatch)
    assert (found.value.reason, found.value.records) == (DAMAGED, 3)


INNER = [record(number, *READINGS[number]) for number in range(3)]


@pytest.mark.parametrize(
    ("batch", "detail"),
    [
        (replace(batch_of(LZ4, READINGS), crc=1), "checksum"),
        (replace(batch_of(LZ4, READINGS), magic=7), "record format is 7"),
        (replace(batch_of(LZ4, READINGS), codec=5), "compression codec 5"),
        (replace(batch_of(LZ4, READINGS), codec=GZIP), "gzip data is damaged"),
        (replace(batch_of(NONE, READINGS), count=4), "end too early"),
        (replace(batch_of(NONE, READINGS), count=2), "does not end with its last record"),
        (RawBatch(INNER[0] + record(9, *READINGS[1]) + INNER[2], 3), "do not ascend"),
        (RawBatch(INNER[0] + record(0, *READINGS[1]) + INNER[2], 3), "do not ascend"),
        (RawBatch(INNER[0] + INNER[1] + record(9, *READINGS[1]), 3), "after the batch"),
        (RawBatch(compress(ZSTD, [bytes([INNER[0][0] ^ 0x3C]) + INNER[0][1:], *INNER[1:]]), 3, ZSTD), "stated length"),
        (RawBatch(b"\x80" * 1_000_000, 3), "too long"),
    ],
)
def test_a_damaged_batch_is_set_aside_with_its_fault(batch: RawBatch, detail: str) -> None:
    aside = set_aside(replace(batch, base_offset=40))
    assert (aside.reason, aside.first_offset, aside.last_offset) == (DAMAGED, 40, 40 + batch.count - 1)
    assert detail in aside.detail


@pytest.mark.parametrize("codec", [GZIP, LZ4])
def test_bytes_after_the_compressed_data_do_not_matter_as_brokers_accept_them(codec: int) -> None:
    batch = batch_of(codec, READINGS)
    found, _ = read_batch(DefaultRecordBatch(replace(batch, records=batch.records + b"more").encode()), LIMIT)
    assert [(one.key, one.value) for one in found] == READINGS


def test_a_damaged_header_does_not_hide_the_batches_after_it() -> None:
    batches = [replace(batch_of(NONE, READINGS), base_offset=first, last_offset_delta=1 << 30) for first in (0, 3)]
    found = list(split_batches(b"".join(batch.encode() for batch in batches), WHERE, 0))
    assert [following for _, following in found] == [3, None]
    whole = b"".join(batch.encode() for batch in batches)
    assert list(first_offsets(whole, WHERE, 0)) == [0, 3]
    assert list(first_offsets(whole[: len(whole) // 2 + 20], WHERE, 0)) == [0, 3]


class OneDamagedBatch:
    """A log that finds offsets as a broker does, by the last offsets that the headers of the batches state.

    Args:
        segments: the numbers of records in the batches of each segment.
        damaged: index of the damaged batch.
        claims: the last offset that its header states, counted from its first.
        shown: batches of one fetch.
    """

    def __init__(self, segments: list[list[int]], damaged: int, claims: int, shown: int) -> None:
        self.segments: list[list[tuple[int, int]]] = []  # first and stated last offset
        self.fetches, self.end, self.shown = 0, 0, shown
        for counts in segments:
            self.segments.append([])
            for count in counts:
                self.segments[-1].append((self.end, self.end + count - 1))
                self.end += count
        bases = [base for segment in self.segments for base, _ in segment]
        self.base = bases[damaged]
        self.next = [*bases, self.end][damaged + 1]
        stated = (self.base, self.base + claims)
        self.segments = [[stated if each[0] == self.base else each for each in segment] for segment in self.segments]

    def fetch(self, offset: int) -> list[int]:
        self.fetches += 1
        assert self.fetches < 100
        start = max(number for number, segment in enumerate(self.segments) if segment[0][0] <= offset)
        for number, segment in enumerate(self.segments[start:]):
            for place, (_, last) in enumerate(segment):
                if number or last >= offset:
                    return [base for base, _ in segment[place : place + self.shown]]
        return []


@given(
    segments=st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=4), min_size=1, max_size=4),
    data=st.data(),
    claims=st.integers(0, 200) | st.just(1 << 30),
    shown=st.integers(2, 3),
)
def test_the_batch_after_a_damaged_one_is_found_for_any_last_offset_in_its_header(
    segments: list[list[int]], data: st.DataObject, claims: int, shown: int
) -> None:
    damaged = data.draw(st.integers(0, sum(map(len, segments)) - 1))
    log = OneDamagedBatch(segments, damaged, claims, shown)
    assert find_next_base(log.fetch, log.base, log.end) == log.next


def test_an_impossible_batch_length_is_an_error_with_the_position() -> None:
    data = bytearray(batch_of(NONE, READINGS).encode() * 2)
    data[8:12] = b"\x00\x00\x00\x07"
    with pytest.raises(
        CorruptRecordError, match="the log of readings, partition 1, is damaged at or after offset 17: "
    ):
        list(split_batches(bytes(data), WHERE, 17))


def test_the_dead_letter_of_a_batch_names_its_offsets_and_count() -> None:
    aside = set_aside(replace(batch_of(LZ4, READINGS), crc=1, base_offset=40))
    with pytest.raises(Rejected) as caught:
        ReadingDecoder(("a",)).decode(None, aside)
    rejected = caught.value
    assert (rejected.reason, rejected.records) == (DAMAGED, 3)
    for limit in (1_000_000, 50):
        letter = dead_letter(None, aside, [], rejected, InputPosition("readings", 1, 40), limit)
        assert letter.value == bytes(aside)[:limit]
        headers = dict(letter.headers)
        assert headers["streamgru-offset"] == b"40"
        assert headers["streamgru-last-offset"] == b"42"
        assert headers["streamgru-records"] == b"3"
        assert len(rejected.detail) < 500  # not cut
