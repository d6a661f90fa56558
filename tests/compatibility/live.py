"""Readings for the upgrade of a fleet: a history, and a live stream with gaps, duplicates and reordered readings."""

import json
import math
import random
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Final

from kafka import KafkaProducer

SENSORS: Final = tuple(f"sensor-{number}" for number in range(16))
HISTORY_STEPS: Final = 400
RATE: Final = 120.0  # live readings a second
# Number of steps at the end without gaps or reordering, so that the reorder buffer empties.
CALM_STEPS: Final = 6
_BEGIN: Final = datetime(2024, 1, 1, tzinfo=UTC)

Sent = tuple[str, str]  # sensor and timestamp


def timestamp(step: int) -> str:
    """The timestamp of a step, as readings and forecasts have it."""
    return (_BEGIN + timedelta(hours=step)).isoformat().replace("+00:00", "Z")


def values(sensor: str, step: int) -> tuple[float, float]:
    """A sensor's values at a step: a daily and a slow wave, and noise seeded by the name."""
    number = SENSORS.index(sensor)
    noise = random.Random(f"{sensor}-{step}").gauss(0, 0.5)
    value = 10 * number + 5 * math.sin(step * math.tau / 24 + number) + 3 * math.sin(step / 70) + noise
    return round(value, 3), round(math.cos(step / 9), 3)


def history() -> Iterator[tuple[str, str, float, float]]:
    """Sensor, timestamp and values of every reading before the live ones."""
    for step in range(HISTORY_STEPS):
        for sensor in SENSORS:
            yield (sensor, timestamp(step), *values(sensor, step))


class LivePublisher(threading.Thread):
    """Publishes one step after the other until ``finish``. Each reading in ``sent`` must get exactly one forecast.

    No reading is late: a reordered reading follows its successor at once, and the successor waits in the buffer.
    """

    def __init__(self, servers: str, topic: str) -> None:
        super().__init__(name="publisher", daemon=True)
        self.sent: list[Sent] = []
        self._producer = KafkaProducer(bootstrap_servers=servers, acks="all", linger_ms=5)
        self._topic = topic
        self._random = random.Random(1)
        self._back: dict[str, int] = {}  # sensor -> step that is sent after its successor
        self._ending = threading.Event()
        self._failure: BaseException | None = None

    def finish(self) -> None:
        """Publish the calm steps, and return when the broker has all readings."""
        self._ending.set()
        self.join()
        if self._failure is not None:
            raise self._failure

    def abandon(self) -> None:
        """Stop publishing, without waiting for the calm steps."""
        self._ending.set()

    def run(self) -> None:
        try:
            step = HISTORY_STEPS
            while not self._ending.is_set():
                began = time.monotonic()
                self._publish(step, calm=False)
                step += 1
                self._ending.wait(max(0.0, len(SENSORS) / RATE - (time.monotonic() - began)))
            for last in range(step, step + CALM_STEPS):
                self._publish(last, calm=True)
            self._producer.flush()
            self._producer.close()
        except BaseException as error:
            self._failure = error
            raise

    def _publish(self, step: int, *, calm: bool) -> None:
        for sensor in self._random.sample(SENSORS, len(SENSORS)):
            trouble = 1.0 if calm else self._random.random()
            waiting = self._back.pop(sensor, None)
            if waiting is None and trouble < 0.02:
                self._back[sensor] = step
                continue
            if trouble >= 0.04 or waiting is not None:  # otherwise a gap
                self._send(sensor, step)
                if trouble < 0.06:
                    self._send(sensor, step)  # a duplicate
            if waiting is not None:
                self._send(sensor, waiting)

    def _send(self, sensor: str, step: int) -> None:
        value, other = values(sensor, step)
        moment = timestamp(step)
        content = {"sensor_id": sensor, "timestamp": moment, "values": {"value": value, "other": other}}
        self._producer.send(self._topic, json.dumps(content).encode(), sensor.encode())
        if (sensor, moment) not in self.sent[-4 * len(SENSORS) :]:
            self.sent.append((sensor, moment))
