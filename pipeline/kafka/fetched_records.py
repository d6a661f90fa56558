"""Makes a consumer hand out its records three times as fast, with what the stream needs of each.

kafka-python reads a record through a dozen calls and makes two objects of it, in about 6 µs; this reads the same bytes
in one loop into one ``FetchedRecord``. Everything else stays the client's: fetching, checksums, compression, positions,
and which batches count. But for one thing: a header's name that is no UTF-8 ends the client's reading for ever.

What it leans on inside kafka-python (pinned to one minor line; a test compares its records with the client's):

- ``KafkaConsumer._fetcher``, and that the fetcher makes one ``PartitionRecords`` per fetched partition
- ``PartitionRecords._unpack_records`` and what it is to keep up to date: ``next_fetch_offset``, ``leader_epoch``,
  ``bytes_read``, ``records_read``, ``drain``, and the handling of aborted transactions
- ``DefaultRecordBatch._maybe_uncompress``, ``._buffer``, ``._pos``
"""

from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from kafka import KafkaConsumer
from kafka.consumer.fetcher import Fetcher
from kafka.errors import CorruptRecordError
from kafka.protocol.consumer import IsolationLevel

_RECORD_FORMAT: Final = 2  # since Kafka 0.11; Kafka 4 knows no other

Headers = list[tuple[str, bytes | None]]


class FetchedRecord(NamedTuple):
    """A record as it was fetched."""

    key: bytes | None
    value: bytes | None
    offset: int
    headers: Headers  # one list for all records that have none: not to be changed; names with surrogate escapes
    timestamp: int = -1  # ms since the epoch, as the producer or the broker stamped it


def read_fast(consumer: KafkaConsumer) -> KafkaConsumer:
    """Let ``poll`` return ``FetchedRecord`` s. For a consumer without deserialisers, before its first poll."""
    consumer._fetcher.PartitionRecords = _FastPartitionRecords
    return consumer


class _FastPartitionRecords(Fetcher.PartitionRecords):  # type: ignore[misc]
    """What was fetched of a partition, handed out record by record."""

    def _unpack_records(self, tp: Any, records: Any, *deserializers: Any) -> Iterator[FetchedRecord]:
        batch = None
        for batch in iter(records.next_batch, None):
            if batch.magic != _RECORD_FORMAT or (self.check_crcs and not batch.validate_crc()):
                raise CorruptRecordError(f"a record batch of {tp} at offset {batch.base_offset} is damaged")
            self.leader_epoch = batch.leader_epoch
            if self._is_void(batch) or batch.is_control_batch:
                self.next_fetch_offset = batch.next_offset
                continue
            self.records_read += batch.records_count
            self.bytes_read += batch.size_in_bytes
            for record in read_batch(batch):
                self.next_fetch_offset = record.offset + 1
                yield record
        if batch is not None:
            # Compaction may have taken the last records of a batch: the next fetch goes on behind all of it.
            self.next_fetch_offset = batch.next_offset
        self.drain()

    def _is_void(self, batch: Any) -> bool:
        """Whether a batch is part of an aborted transaction."""
        if self.isolation_level != IsolationLevel.READ_COMMITTED or not batch.has_producer_id():
            return False
        self._consume_aborted_transactions_up_to(batch.last_offset)
        if self._contains_abort_marker(batch):
            self.aborted_producer_ids.discard(batch.producer_id)
            return False
        aborted: bool = self._is_batch_aborted(batch)
        return aborted


def read_batch(batch: Any) -> Iterator[FetchedRecord]:
    """The records of a batch.

    Raises:
        CorruptRecordError: the bytes are no records.
    """
    batch._maybe_uncompress()
    data = bytes(memoryview(batch._buffer)[batch._pos :])
    base_offset = batch.base_offset
    by_broker = batch.timestamp_type == batch.LOG_APPEND_TIME
    stamped = batch.max_timestamp if by_broker else batch.first_timestamp
    none: Headers = []
    position = 0
    try:
        for _ in range(batch.records_count):
            length, position = _varint(data, position)
            end = position + length
            position += 1  # attributes, of which there are none
            since = data[position]
            if since < 0x80:
                since = (since >> 1) ^ -(since & 1)
                position += 1
            else:
                since, position = _varint(data, position)
            delta, position = _varint(data, position)
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
                headers, position = _headers(data, position)
            else:
                position += 1
            if position != end:
                raise CorruptRecordError(f"a record near offset {base_offset + delta} has another length than it says")
            yield FetchedRecord(key, value, base_offset + delta, headers, stamped if by_broker else stamped + since)
        if position != len(data):
            raise CorruptRecordError(f"the record batch at offset {base_offset} has another length than its records")
    except IndexError as error:
        raise CorruptRecordError(f"the record batch at offset {base_offset} is damaged: {error}") from error


def _headers(data: bytes, position: int) -> tuple[Headers, int]:
    count, position = _varint(data, position)
    headers: Headers = []
    for _ in range(count):
        size, position = _varint(data, position)
        # Brokers take any bytes: what is no UTF-8 must not stop the stream, and is written again as it came.
        name = data[position : position + size].decode(errors="surrogateescape")
        position += size
        size, position = _varint(data, position)
        if size < 0:
            headers.append((name, None))
            continue
        headers.append((name, data[position : position + size]))
        position += size
    return headers, position


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """A zigzag varint and the position behind it."""
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
