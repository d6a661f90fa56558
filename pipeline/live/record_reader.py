"""Reads single committed records by their offsets.

A reader has a consumer of its own. Its fetches are small and never wait at the broker: after a seek the client sends
the next fetch only when the one before has been answered.
"""

import time
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from threading import BoundedSemaphore, Lock
from typing import Any, Final

import kafka.errors as client_errors
from kafka import KafkaConsumer, TopicPartition

from pipeline.errors import BrokerUnreachable, KafkaError
from pipeline.kafka.batch_consumer import read_fast
from pipeline.kafka.clients import make_consumer, translate_errors
from pipeline.kafka.record_batch import FetchedRecord
from pipeline.settings import Settings

READERS: Final = 2  # at the same time; each takes some 3 MB
_TIMEOUT_S: Final = 5.0
_LOOK_UP_MS: Final = 2_000
_FETCH_BYTES: Final = 64 * 1024  # of the batches after the first, which the broker returns whole
_FETCH_WAIT_MS: Final = 1
_POLL_RECORDS: Final = 500
_CACHE_BYTES: Final = 8 * 1024 * 1024
_CACHED_RECORD_BYTES: Final = 300  # of a record's objects, besides its value


class RecordMissing(KafkaError):
    """Retention has deleted the record, or the offset was never a record's."""


class RecordReaders:
    """A few readers that all threads share, and the records that were read last.

    The first use connects. A failed reader is replaced.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._free: deque[KafkaConsumer] = deque()
        self._tickets = BoundedSemaphore(READERS)
        self._cache = _Cache()

    def read(self, topic: str, partition: int, offset: int) -> FetchedRecord:
        """The record at an offset.

        Raises:
            RecordMissing: there is no such record.
            KafkaError: no broker answers.
        """
        return self.read_all(topic, partition, [offset])[offset]

    def read_all(self, topic: str, partition: int, offsets: Iterable[int]) -> dict[int, FetchedRecord]:
        """The records at the offsets of a partition.

        Raises:
            RecordMissing: one of them does not exist.
            KafkaError: no broker answers.
        """
        wanted = sorted(set(offsets))
        found = self._cache.find(topic, partition, wanted)
        missing = [offset for offset in wanted if offset not in found]
        if missing:
            with self._reader() as consumer:
                read = _read(consumer, TopicPartition(topic, partition), missing)
            self._cache.add(topic, partition, read)
            found |= read
        return found

    def forget(self) -> None:
        """Discard the records that were read so far."""
        self._cache.clear()

    def close(self) -> None:
        """Close the connections of free readers."""
        while self._free:
            self._free.popleft().close()

    @contextmanager
    def _reader(self) -> Iterator[KafkaConsumer]:
        if not self._tickets.acquire(timeout=_TIMEOUT_S):
            raise BrokerUnreachable("all readers wait for a broker; check `streamgru status`, then ask again")
        try:
            consumer = self._free.popleft() if self._free else self._connect()
            try:
                with translate_errors("reading a record", self._settings):
                    yield consumer
            except RecordMissing:
                self._free.append(consumer)
                raise
            except BaseException:
                consumer.close()
                raise
            self._free.append(consumer)
        finally:
            self._tickets.release()

    def _connect(self) -> KafkaConsumer:
        consumer = make_consumer(
            self._settings,
            client_id="streamgru-serve-records",
            auto_offset_reset="none",
            max_poll_records=_POLL_RECORDS,
            max_partition_fetch_bytes=_FETCH_BYTES,
            fetch_max_wait_ms=_FETCH_WAIT_MS,
        )
        return read_fast(consumer, self._settings.kafka)


def _read(consumer: KafkaConsumer, tp: TopicPartition, offsets: list[int]) -> dict[int, FetchedRecord]:
    """The records at ascending offsets of one partition."""
    consumer.assign([tp])
    found: dict[int, FetchedRecord] = {}
    wanted = deque(offsets)
    position = None  # next offset that the consumer delivers; None: it must seek
    deadline = time.monotonic() + _TIMEOUT_S
    while wanted:
        if position is None or not position <= wanted[0] < position + _POLL_RECORDS:
            consumer.seek(tp, wanted[0])
            position = wanted[0]
        try:
            records = consumer.poll(timeout_ms=200).get(tp, [])
        except client_errors.OffsetOutOfRangeError as error:
            raise _missing(tp, wanted[0]) from error
        for record in records:
            if wanted and record.offset > wanted[0]:
                raise _missing(tp, wanted[0])
            if wanted and record.offset == wanted[0]:
                found[wanted.popleft()] = record
                deadline = time.monotonic() + _TIMEOUT_S
        position = records[-1].next_offset if records else position
        if wanted and not records and _is_no_record(consumer, tp, wanted[0]):
            raise _missing(tp, wanted[0])
        if wanted and time.monotonic() > deadline:
            raise BrokerUnreachable(
                f"the brokers did not send offset {wanted[0]} of {tp.topic}, partition {tp.partition}, within "
                f"{_TIMEOUT_S:g} s; check `streamgru status`"
            )
    return found


def _is_no_record(consumer: KafkaConsumer, tp: Any, offset: int) -> bool:
    """Whether the consumer passed the offset without a record, or the offset is not committed yet."""
    return bool(consumer.position(tp) > offset or consumer.end_offsets([tp], timeout_ms=_LOOK_UP_MS)[tp] <= offset)


def _missing(tp: Any, offset: int) -> RecordMissing:
    return RecordMissing(
        f"there is no record at offset {offset} of {tp.topic}, partition {tp.partition}: retention has deleted it, "
        "the offset is a transaction's marker, or nothing is committed there yet"
    )


class _Cache:
    """The records that were used last, up to ``_CACHE_BYTES``. Records never change while their topic exists."""

    def __init__(self) -> None:
        self._records: OrderedDict[tuple[str, int, int], FetchedRecord] = OrderedDict()
        self._bytes = 0
        self._lock = Lock()

    def find(self, topic: str, partition: int, offsets: Iterable[int]) -> dict[int, FetchedRecord]:
        with self._lock:
            found = {}
            for offset in offsets:
                where = topic, partition, offset
                if where in self._records:
                    self._records.move_to_end(where)
                    found[offset] = self._records[where]
        return found

    def clear(self) -> None:
        with self._lock:
            self._records.clear()
            self._bytes = 0

    def add(self, topic: str, partition: int, records: dict[int, FetchedRecord]) -> None:
        with self._lock:
            for offset, record in records.items():
                if (topic, partition, offset) not in self._records:
                    self._records[topic, partition, offset] = record
                    self._bytes += _size(record)
            while self._bytes > _CACHE_BYTES:
                _, dropped = self._records.popitem(last=False)
                self._bytes -= _size(dropped)


def _size(record: FetchedRecord) -> int:
    return _CACHED_RECORD_BYTES + len(record.value or b"")
