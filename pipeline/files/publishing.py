"""Publishes a table of readings to the readings topic, as fast as possible or at a multiple of real time.

A sensor's readings stay in the table's order, on the partition that Java clients and kafka-python choose for its key.
Delivery is idempotent but not transactional. If an interrupted publication continues at ``Publication.acknowledged``,
it repeats at most the readings that were in flight; the stream recognises them as duplicates.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable
from itertools import repeat
from typing import Any, Final

import msgspec
import numpy as np
import orjson
from kafka import KafkaProducer
from kafka.partitioner.default import murmur2
from numpy.typing import NDArray

from pipeline.files.reading_table import ReadingTable
from pipeline.kafka.batch_producer import BatchAppender
from pipeline.kafka.clients import translate_errors
from pipeline.settings import Settings

# Rows encoded and appended at once: many enough to share the cost of a call, few enough for a smooth progress bar.
CHUNK_ROWS: Final = 8_192
# Rows sent but not acknowledged, some 50 MB; kafka-python itself has no limit.
MOST_ROWS_IN_FLIGHT: Final = 200_000
# The longest wait for an acknowledgement; the client fails a batch earlier.
ACKNOWLEDGE_TIMEOUT_S: Final = 150.0
# Sleep while no reading is due; a reading is sent at most this much late.
PACE_INTERVAL_S: Final = 0.05
_ARRAYS: Final = orjson.OPT_SERIALIZE_NUMPY

Report = Callable[[int], None]


class Publication:
    """Publishes the rows [start, stop) of a table. All rows before ``acknowledged`` are on the topic."""

    def __init__(
        self, settings: Settings, producer: KafkaProducer, table: ReadingTable, start: int = 0, stop: int | None = None
    ) -> None:
        self._settings = settings
        self._producer = producer
        self._appender = BatchAppender(producer)
        self._topic = settings.kafka.topics.readings
        self._table = table
        self._stop = len(table) if stop is None else min(stop, len(table))
        self._encoder = ReadingEncoder(table)
        self._next = min(start, self._stop)
        self._in_flight: deque[tuple[int, list[Any]]] = deque()
        self.acknowledged = self._next

    def run(self, speed: float | None = None, report: Report | None = None) -> None:
        """Publish all rows, and return when all are acknowledged.

        Args:
            speed: multiple of real time; None publishes as fast as possible.
            report: called with ``acknowledged`` after every chunk or pause.

        Raises:
            KafkaError: a broker refused a reading, or no broker answers.
        """
        with translate_errors(f"publishing to topic {self._topic}", self._settings):
            partitions = self._partition_of_sensor()
            due = _due_times(self._table.timestamp_us[self._next : self._stop], speed)
            first, started = self._next, time.monotonic()
            while self._next < self._stop:
                ready = self._stop
                if due is not None:
                    ready = first + int(np.searchsorted(due, time.monotonic() - started, side="right"))
                if ready > self._next:
                    self._publish(self._next, min(ready, self._next + CHUNK_ROWS), partitions)
                else:
                    time.sleep(PACE_INTERVAL_S)
                self._collect(MOST_ROWS_IN_FLIGHT)
                if report is not None:
                    report(self.acknowledged)
            self._collect(0)
            if report is not None:
                report(self.acknowledged)

    def wait_for_acks(self, timeout_s: float) -> None:
        """After an interruption: wait for acknowledgements of the rows in flight, to repeat as few as possible."""
        deadline = time.monotonic() + timeout_s
        while self._in_flight and time.monotonic() < deadline:
            self._collect(MOST_ROWS_IN_FLIGHT)
            time.sleep(PACE_INTERVAL_S)

    def _partition_of_sensor(self) -> NDArray[np.int64]:
        """The partition that Kafka's default partitioner gives each sensor's key, by sensor code."""
        count = len(self._producer.partitions_for(self._topic))
        return np.array([(murmur2(name.encode()) & 0x7FFFFFFF) % count for name in self._table.sensors])

    def _publish(self, start: int, stop: int, partitions: NDArray[np.int64]) -> None:
        of_row = partitions[self._table.sensor_codes[start:stop]]
        futures = []
        for partition in np.unique(of_row).tolist():
            rows = start + np.flatnonzero(of_row == partition)
            keys, values = self._encoder.encode(rows)
            futures += self._appender.append(self._topic, partition, keys, values)
        self._in_flight.append((stop, futures))
        self._next = stop

    def _collect(self, most_rows: int) -> None:
        """Update ``acknowledged``; wait until at most ``most_rows`` rows are in flight."""
        while self._in_flight:
            stop, futures = self._in_flight[0]
            waiting = self._next - self.acknowledged > most_rows
            if not waiting and not all(future.is_done for future in futures):
                return
            for future in futures:
                future.get(timeout=ACKNOWLEDGE_TIMEOUT_S)
            self.acknowledged = stop
            self._in_flight.popleft()


class ReadingEncoder:
    """Encodes rows of a table as readings, a column at a time, into the same JSON as ``messages.encode_reading``."""

    def __init__(self, table: ReadingTable) -> None:
        self._table = table
        names = [msgspec.json.encode(name) for name in table.values]
        self._before_first = b'","values":{' + names[0] + b":"
        self._before_others = [b"," + name + b":" for name in names[1:]]
        ids = [msgspec.json.encode(sensor) for sensor in table.sensors]
        self._keys = np.array([sensor.encode() for sensor in table.sensors] + [None], dtype=object)[:-1]
        heads = [b'{"sensor_id":' + sensor + b',"timestamp":"' for sensor in ids]
        self._heads = np.array([*heads, None], dtype=object)[:-1]

    def encode(self, rows: NDArray[np.int64]) -> tuple[list[bytes], list[bytes]]:
        """Keys and values of the rows, in their order."""
        table = self._table
        codes = table.sensor_codes[rows]
        moments = table.timestamp_us[rows].view("datetime64[us]")
        times = orjson.dumps(moments, option=_ARRAYS | orjson.OPT_NAIVE_UTC | orjson.OPT_UTC_Z)[2:-2].split(b'","')
        count = len(rows)
        columns: list[Iterable[bytes]] = [self._heads[codes].tolist(), times, repeat(self._before_first, count)]
        for index, values in enumerate(table.values.values()):
            if index:
                columns.append(repeat(self._before_others[index - 1], count))
            # orjson writes NaN as null, and floats with the fewest digits of their precision.
            columns.append(orjson.dumps(values[rows], option=_ARRAYS)[1:-1].split(b","))
        columns.append(repeat(b"}}", count))
        return self._keys[codes].tolist(), list(map(b"".join, zip(*columns, strict=True)))


def _due_times(timestamp_us: NDArray[np.int64], speed: float | None) -> NDArray[np.float64] | None:
    """Seconds from the start until each row is due, never decreasing; None if all rows are due at once."""
    if speed is None or not len(timestamp_us):
        return None
    due: NDArray[np.float64] = np.maximum.accumulate(timestamp_us - timestamp_us[0]) / (1e6 * speed)
    return due
