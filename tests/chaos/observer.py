"""A live consumer of forecasts: it reads committed records, and notes when each became visible."""

import threading
import time
import zlib
from dataclasses import dataclass

import kafka.errors as client_errors
from kafka import KafkaConsumer, TopicPartition

from pipeline.errors import StreamgruError
from pipeline.kafka.clients import make_consumer
from pipeline.settings import Settings


@dataclass(frozen=True)
class LiveForecast:
    """A forecast that became visible."""

    partition: int
    offset: int
    checksum: int  # CRC-32 of the record's value
    sent_ms: int  # the record's timestamp
    seen: float  # seconds since the epoch


class Observer(threading.Thread):
    """A thread that reads forecasts until ``finish``."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(name="observer", daemon=True)
        self.live_forecasts: list[LiveForecast] = []
        self._settings = settings
        self._topic = settings.kafka.topics.forecasts
        self._next = dict.fromkeys(range(settings.kafka.partitions), 0)
        self._ends: dict[int, int] | None = None

    def finish(self, ends: dict[int, int], timeout_s: float) -> bool:
        """Read up to these offsets, then end; return whether that was in time."""
        self._ends = ends
        self.join(timeout_s)
        return not self.is_alive()

    def run(self) -> None:
        while not self._is_at_end():
            try:
                consumer = make_consumer(self._settings, client_id="chaos-observer")
            except StreamgruError:
                continue  # the broker is unreachable; make_consumer has waited for it
            try:
                self._read(consumer)
            except client_errors.KafkaError:
                pass
            finally:
                consumer.close()

    def _read(self, consumer: KafkaConsumer) -> None:
        places = {partition: TopicPartition(self._topic, partition) for partition in self._next}
        consumer.assign(list(places.values()))
        for partition, where in places.items():
            consumer.seek(where, self._next[partition])
        while not self._is_at_end():
            polled = consumer.poll(timeout_ms=100)
            seen = time.time()
            for where, records in polled.items():
                self.live_forecasts += [
                    LiveForecast(where.partition, record.offset, zlib.crc32(record.value), record.timestamp, seen)
                    for record in records
                ]
            for partition, where in places.items():
                self._next[partition] = consumer.position(where)

    def _is_at_end(self) -> bool:
        ends = self._ends
        return ends is not None and all(self._next[partition] >= end for partition, end in ends.items())
