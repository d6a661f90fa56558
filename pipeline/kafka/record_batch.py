"""Reads the bytes of record batches into records, at most a stated number of bytes in memory.

A batch that is damaged or too large becomes one record with an ``UnreadableBatch``. ``batch_consumer`` calls this
module for each fetched batch.
"""

import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, NamedTuple

from kafka.errors import CorruptRecordError
from kafka.record.default_records import DefaultRecordBatch

from pipeline.kafka.decompression import CODECS, Damaged, TooLarge, decompress
from pipeline.unreadable_batch import DAMAGED, OVERSIZED, UnreadableBatch

# Memory of a record's objects, or of a header's, in addition to its bytes: measured at 230 and 150 bytes.
RECORD_BYTES: Final = 256
LEAST_HEADER_BYTES: Final = 2  # of a header in a batch: the lengths of its name and of its value

_RECORD_FORMAT: Final = 2  # the only record format of Kafka 4
_OFFSET: Final = struct.Struct(">q")  # first field of a batch
_LENGTH: Final = struct.Struct(">i")  # second field: bytes of the batch after this field
_LENGTH_AT: Final = _OFFSET.size
_LONGEST_VARINT_BITS: Final = 63

Headers = list[tuple[str, bytes | None]]


class FetchedRecord(NamedTuple):
    """A fetched record, with key and value as bytes."""

    key: bytes | None
    value: bytes | None
    offset: int
    headers: Headers  # shared by records without headers: do not mutate; names may hold surrogate escapes
    timestamp: int = -1  # ms since the epoch, as the producer or the broker stamped it

    @property
    def next_offset(self) -> int:
        """The offset after this record; the offset after the whole batch if the value is an ``UnreadableBatch``."""
        value = self.value
        return value.last_offset + 1 if isinstance(value, UnreadableBatch) else self.offset + 1


class BatchContent(NamedTuple):
    """The records of a batch, and the memory that they take."""

    records: Sequence[FetchedRecord]
    memory_bytes: int


class UnpackedBatch(NamedTuple):
    """The decompressed records of a batch, and the numbers in the batch's header that records are relative to."""

    data: bytes
    record_count: int
    base_offset: int
    last_offset_delta: int
    stamped_ms: int  # timestamp of each record if the broker stamped the batch; otherwise records count from it
    is_stamped_by_broker: bool
    left_bytes: int  # memory for headers; negative if the records alone take more than the limit


ColumnReader = Callable[[UnpackedBatch, int], BatchContent | None]


def split_batches(data: bytes, where: Any, position: int) -> Iterator[tuple[memoryview, int | None]]:
    """The bytes of each whole batch, and the first offset of the batch after it if that is known.

    Args:
        position: offset of the first record to read, for the message.

    Raises:
        CorruptRecordError: a batch states a length that no batch has, so the next batch cannot be found.
    """
    view = memoryview(data)
    start = 0
    while len(view) - start >= DefaultRecordBatch.HEADER_STRUCT.size:
        (length,) = _LENGTH.unpack_from(view, start + _LENGTH_AT)
        end = start + DefaultRecordBatch.AFTER_LEN_OFFSET + length
        if end - start < DefaultRecordBatch.HEADER_STRUCT.size:
            raise unfindable(where, position, "a record batch states an impossible length")
        if end > len(view):
            return  # the fetch ended within this batch
        follows = len(view) - end >= _OFFSET.size
        yield view[start:end], _OFFSET.unpack_from(view, end)[0] if follows else None
        start = end


def find_fault(batch: Any, *, check_crc: bool) -> str | None:
    """Why the header of a batch cannot be trusted; None if it can."""
    if batch.magic != _RECORD_FORMAT:
        return f"its record format is {batch.magic} instead of {_RECORD_FORMAT}"
    if check_crc and not batch.validate_crc():
        return "its checksum does not match its content"
    # A negative number of records would raise the limit of memory; a last offset before the first would turn the reader
    # back.
    if batch.records_count < 0 or batch.last_offset_delta < 0:
        return "its header states a negative number of records or offsets"
    return None


def unfindable(where: Any, position: int, why: object) -> CorruptRecordError:
    """The error for a log that is damaged beyond one batch."""
    return CorruptRecordError(
        f"the log of {where.topic}, partition {where.partition}, is damaged at or after offset {position}: {why}. The "
        "batches after it cannot be found. Restore the broker's log from a replica, or move the group's offset past "
        "the damage with `kafka-consumer-groups.sh --reset-offsets`"
    )


def first_offsets(data: bytes, where: Any, position: int) -> Iterator[int]:
    """The first offset of each batch, also of the last one if only its beginning was fetched.

    Raises:
        CorruptRecordError: see ``split_batches``.
    """
    following: int | None = None
    for content, following in split_batches(data, where, position):  # noqa: B007
        yield _OFFSET.unpack_from(content)[0]
    if following is not None:
        yield following


def read_or_set_aside(
    batch: Any,
    limit_bytes: int,
    last_offset: int,
    fault: str | None = None,
    read_columns: ColumnReader | None = None,
) -> BatchContent:
    """The records of a batch; if it cannot be read, one record with an ``UnreadableBatch``.

    Private: ``DefaultRecordBatch._buffer``.
    Why, Without it, Goes when: see ``batch_consumer.read_fast``.
    Tested with: kafka-python >=3.0.12,<3.1.

    Args:
        limit_bytes: largest batch in memory, see ``read_batch``.
        last_offset: offset of the batch's last record.
        fault: why the header of the batch cannot be trusted.
        read_columns: see ``read_batch``.
    """
    try:
        if fault is not None:
            raise CorruptRecordError(fault)
        return read_batch(batch, limit_bytes, read_columns)
    except TooLarge as error:
        content, described = _describe(batch, last_offset)
        reason = OVERSIZED
        detail = (
            f"the batch takes at least {error.size:,} bytes in memory, and kafka.max_batch_bytes allows "
            f"{limit_bytes:,} ({described}); let its producer send smaller batches, or raise the setting"
        )
    except CorruptRecordError as error:
        content, described = _describe(batch, last_offset)
        reason = DAMAGED
        why = error.args[0] if error.args else error
        detail = f"the batch is damaged: {why} ({described}); check its producer and the brokers' disks"
    first_offset = batch.base_offset
    value = UnreadableBatch.of(
        content, reason, detail, first_offset=first_offset, last_offset=last_offset, records=batch.records_count
    )
    return BatchContent([FetchedRecord(None, value, first_offset, [], batch.max_timestamp)], len(content))


def _describe(batch: Any, last_offset: int) -> tuple[bytes, str]:
    """The bytes of a batch that cannot be read, and its offsets and sizes in words.

    Private: ``DefaultRecordBatch._buffer``.
    Why, Without it, Goes when: see ``batch_consumer.read_fast``.
    Tested with: kafka-python >=3.0.12,<3.1.
    """
    content = bytes(batch._buffer)
    codec = CODECS.get(batch.compression_type, f"codec {batch.compression_type}")
    offsets = f"offsets {batch.base_offset} to {last_offset}"
    return content, f"{offsets}, {batch.records_count:,} records, {len(content):,} bytes, {codec}"


def read_batch(batch: Any, limit_bytes: int, read_columns: ColumnReader | None = None) -> BatchContent:
    """The records of a batch.

    Args:
        limit_bytes: for the decompressed bytes, and ``RECORD_BYTES`` for every record and header.
        read_columns: reads a valid batch faster, and returns None for any other batch.

    Raises:
        CorruptRecordError: the bytes are not valid records.
        TooLarge: the records would take more than the limit.
    """
    unpacked = _unpack(batch, limit_bytes)
    content = None if read_columns is None else read_columns(unpacked, limit_bytes)
    return content or _read_records(unpacked, limit_bytes)


def _unpack(batch: Any, limit_bytes: int) -> UnpackedBatch:
    """The decompressed records of a batch; raises like ``read_batch``.

    Private: ``DefaultRecordBatch._buffer``, ``._pos``.
    Why, Without it, Goes when: see ``batch_consumer.read_fast``.
    Tested with: kafka-python >=3.0.12,<3.1.
    """
    data = bytes(memoryview(batch._buffer)[batch._pos :])
    overhead = RECORD_BYTES * batch.records_count
    if overhead > limit_bytes:
        raise TooLarge(overhead)
    if batch.compression_type != batch.CODEC_NONE:
        try:
            data = decompress(batch.compression_type, data, limit_bytes - overhead)
        except TooLarge as error:
            raise TooLarge(error.size + overhead) from error
        except Damaged as error:
            raise CorruptRecordError(str(error)) from error
    by_broker = batch.timestamp_type == batch.LOG_APPEND_TIME
    return UnpackedBatch(
        data,
        batch.records_count,
        batch.base_offset,
        batch.last_offset_delta,
        batch.max_timestamp if by_broker else batch.first_timestamp,
        by_broker,
        limit_bytes - overhead - len(data),
    )


def _read_records(unpacked: UnpackedBatch, limit_bytes: int) -> BatchContent:
    """The records of a batch; raises like ``read_batch``."""
    data, count, base_offset, last_offset_delta, stamped, by_broker, left = unpacked
    none: Headers = []
    records: list[FetchedRecord] = []
    position, last_delta = 0, -1
    try:
        for _ in range(count):
            length, position = _varint(data, position)
            end = position + length
            position += 1  # record attributes; format 2 defines no attributes
            since = data[position]
            if since < 0x80:
                since = (since >> 1) ^ -(since & 1)
                position += 1
            else:
                since, position = _varint(data, position)
            delta, position = _varint(data, position)
            if delta <= last_delta:
                raise CorruptRecordError("the offsets of its records do not ascend")
            last_delta = delta
            size, position = _varint(data, position)
            key = value = None
            if size >= 0:
                key = data[position : position + size]
                position += size
            size, position = _varint(data, position)
            if size >= 0:
                value = data[position : position + size]
                position += size
            headers = none
            if data[position]:
                headers, position = read_headers(data, position, left)
                left -= RECORD_BYTES * len(headers)
            else:
                position += 1
            if position != end:
                raise CorruptRecordError(f"a record near offset {base_offset + delta} does not have its stated length")
            records.append(
                FetchedRecord(key, value, base_offset + delta, headers, stamped if by_broker else stamped + since)
            )
    except IndexError as error:
        raise CorruptRecordError("its records end too early") from error
    if position != len(data):
        raise CorruptRecordError("it does not end with its last record")
    if last_delta > last_offset_delta:
        raise CorruptRecordError("the offset of a record lies after the batch")
    return BatchContent(records, limit_bytes - left)


def read_headers(data: bytes, position: int, left: int) -> tuple[Headers, int]:
    """The headers of a record, in at most ``left`` bytes of memory, and the position after them."""
    count, position = _varint(data, position)
    if LEAST_HEADER_BYTES * count > len(data) - position:
        raise CorruptRecordError("a record states more headers than its batch has bytes for")
    if RECORD_BYTES * count > left:
        raise TooLarge(RECORD_BYTES * count)
    headers: Headers = []
    for _ in range(count):
        size, position = _varint(data, position)
        # Brokers accept any bytes as a name. Surrogate escapes keep bytes that are not UTF-8 for a dead letter.
        name = data[position : position + size].decode(errors="surrogateescape")
        position += size
        size, position = _varint(data, position)
        headers.append((name, None if size < 0 else data[position : position + size]))
        position += max(size, 0)
    return headers, position


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """A zigzag varint and the position after it."""
    byte = data[position]
    if byte < 0x80:  # most are small
        return (byte >> 1) ^ -(byte & 1), position + 1
    value = byte & 0x7F
    shift = 7
    while True:
        position += 1
        byte = data[position]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return (value >> 1) ^ -(value & 1), position + 1
        shift += 7
        if shift > _LONGEST_VARINT_BITS:
            raise CorruptRecordError("a number in its records is too long")
