"""Publishes a table of readings to the readings topic, as fast as possible or at a multiple of real time.

Outlooks may come with the readings. Each is published before the first reading with its time of issue or a later time,
a group's outlook on every partition. A sensor's readings stay in the table's order, on the partition that Java clients
and kafka-python choose for its key.

Delivery is idempotent but not transactional. If an interrupted publication continues at ``Publication.acknowledged``,
it repeats at most the readings that were in flight. The stream drops these: they count as late, or as duplicates if
no later reading of their sensor came first.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import numpy as np
from kafka import KafkaProducer
from kafka.partitioner.default import murmur2
from kafka.producer.future import FutureRecordMetadata
from numpy.typing import NDArray

from pipeline.files.outlook_table import OutlookRecord, rows_behind
from pipeline.files.reading_encoder import ReadingEncoder
from pipeline.files.reading_table import ReadingTable
from pipeline.kafka.batch_producer import NO_HEADERS, BatchAppender, encode_headers
from pipeline.kafka.clients import translate_errors
from pipeline.messages import OWN_FORM_HEADER
from pipeline.settings import Settings

# Rows encoded and appended at once: many enough to share the cost of a call, few enough for a smooth progress bar.
CHUNK_ROWS: Final = 8_192
# Keys and values sent but not acknowledged, some 200,000 readings or 20,000 outlooks; kafka-python itself has no limit.
MOST_BYTES_IN_FLIGHT: Final = 30_000_000
# The longest wait for an acknowledgement; the client fails a batch earlier.
ACKNOWLEDGE_TIMEOUT_S: Final = 150.0
# Sleep while no reading is due; a reading is sent at most this much late.
PACE_INTERVAL_S: Final = 0.05

Report = Callable[[int], None]


class _InFlight(NamedTuple):
    """Records that were sent together, to one partition."""

    stop: int  # the rows before it are on the topic when these futures and all earlier ones are done
    size: int  # bytes of keys and values
    futures: Sequence[FutureRecordMetadata]


class Publication:
    """Publishes the rows [start, stop) of a table. All rows before ``acknowledged`` are on the topic.

    Args:
        outlooks: in the order of their issue. Those that belong to rows before ``start`` or from ``stop`` on are left
            out; ``published_outlooks`` counts the other ones.
    """

    def __init__(
        self,
        settings: Settings,
        producer: KafkaProducer,
        table: ReadingTable,
        start: int = 0,
        stop: int | None = None,
        outlooks: Sequence[OutlookRecord] = (),
    ) -> None:
        self._settings = settings
        self._producer = producer
        self._appender = BatchAppender(producer)
        self._topic = settings.kafka.topics.readings
        self._table = table
        self._stop = len(table) if stop is None else min(stop, len(table))
        self._encoder = ReadingEncoder(table)
        # Records of other forms surround these if the settings map the topic.
        self._headers = encode_headers([OWN_FORM_HEADER]) if settings.readings.is_mapped else NO_HEADERS
        self._next = min(start, self._stop)
        self._in_flight: deque[_InFlight] = deque()
        self._bytes_in_flight = 0
        self.acknowledged = self._next
        rows = rows_behind(table, outlooks).tolist()
        due = zip(rows, outlooks, strict=True)
        is_last = self._stop == len(table)
        self._outlooks = deque(one for one in due if start <= one[0] and (is_last or one[0] < self._stop))
        self.published_outlooks = len(self._outlooks)

    def run(self, speed: float | None = None, report: Report | None = None) -> None:
        """Publish all rows and outlooks, and return when all are acknowledged.

        Args:
            speed: multiple of real time; None publishes as fast as possible.
            report: called with ``acknowledged`` after every chunk or pause.

        Raises:
            KafkaError: a broker refused a record, or no broker answers.
        """
        with translate_errors(f"publishing to topic {self._topic}", self._settings):
            every = sorted(self._producer.partitions_for(self._topic))
            of_sensor = np.array([_partition_of(name.encode(), len(every)) for name in self._table.sensors])
            due = _due_times(self._table.timestamp_us[self._next : self._stop], speed)
            first, started = self._next, time.monotonic()
            while self._next < self._stop or self._outlooks:
                self._publish_outlooks(every)
                ready = self._stop if not self._outlooks else min(self._stop, self._outlooks[0][0])
                if due is not None:
                    ready = min(ready, first + int(np.searchsorted(due, time.monotonic() - started, side="right")))
                if ready > self._next:
                    self._publish(self._next, min(ready, self._next + CHUNK_ROWS), of_sensor)
                elif self._next < self._stop:
                    time.sleep(PACE_INTERVAL_S)
                self._collect(MOST_BYTES_IN_FLIGHT)
                if report is not None:
                    report(self.acknowledged)
            self._collect(0)
            if report is not None:
                report(self.acknowledged)

    def wait_for_acks(self, timeout_s: float) -> None:
        """After an interruption: wait for acknowledgements of the records in flight, to repeat as few as possible."""
        deadline = time.monotonic() + timeout_s
        while self._in_flight and time.monotonic() < deadline:
            self._collect(MOST_BYTES_IN_FLIGHT)
            time.sleep(PACE_INTERVAL_S)

    def _publish_outlooks(self, every: Sequence[int]) -> None:
        """Publish the outlooks that come before the next row; ``every`` has the topic's partitions."""
        while self._outlooks and self._outlooks[0][0] <= self._next:
            _, record = self._outlooks.popleft()
            for partition in every if record.outlook.is_group else [_partition_of(record.key, len(every))]:
                self._send(partition, [record.key], [record.value], self._next)
            self._collect(MOST_BYTES_IN_FLIGHT)

    def _publish(self, start: int, stop: int, of_sensor: NDArray[np.int64]) -> None:
        of_row = of_sensor[self._table.sensor_codes[start:stop]]
        for partition in np.unique(of_row).tolist():
            rows = start + np.flatnonzero(of_row == partition)
            self._send(partition, *self._encoder.encode(rows), start)
        self._in_flight.append(_InFlight(stop, 0, ()))  # no record: the rows count once those before it are done
        self._next = stop

    def _send(self, partition: int, keys: Sequence[bytes], values: Sequence[bytes], done: int) -> None:
        """Send records to a partition. The rows before ``done`` were sent earlier."""
        futures = self._appender.append(self._topic, partition, keys, values, self._headers)
        size = sum(map(len, keys)) + sum(map(len, values))
        self._in_flight.append(_InFlight(done, size, futures))
        self._bytes_in_flight += size

    def _collect(self, most_bytes: int) -> None:
        """Update ``acknowledged``; wait until at most ``most_bytes`` are in flight."""
        while self._in_flight:
            stop, size, futures = self._in_flight[0]
            if self._bytes_in_flight <= most_bytes and not all(future.is_done for future in futures):
                return
            for future in futures:
                future.get(timeout=ACKNOWLEDGE_TIMEOUT_S)
            self.acknowledged = stop
            self._in_flight.popleft()
            self._bytes_in_flight -= size


def _partition_of(key: bytes, partitions: int) -> int:
    """The partition that Kafka's default partitioner gives a key on a topic with this number of partitions."""
    return int((murmur2(key) & 0x7FFFFFFF) % partitions)


def _due_times(timestamp_us: NDArray[np.int64], speed: float | None) -> NDArray[np.float64] | None:
    """Seconds from the start until each row is due, never decreasing; None if all rows are due at once."""
    if speed is None or not len(timestamp_us):
        return None
    due: NDArray[np.float64] = np.maximum.accumulate(timestamp_us - timestamp_us[0]) / (1e6 * speed)
    return due
