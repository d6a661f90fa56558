"""Readings and outlooks published throughout a run.

They are seeded, with duplicates, late readings and outlooks, gaps, missing values and rejects.
"""

import random
import threading
import time
from collections.abc import Iterator

import kafka.errors as client_errors
import numpy as np

from pipeline.errors import StreamgruError
from pipeline.kafka.clients import make_producer
from pipeline.messages import encode_reading
from pipeline.outlook_messages import encode_outlook
from pipeline.settings import Settings
from tests.integration.stream_rig import START_US, Message, partition_of

BURST = 25  # messages sent at once
OUTLOOK_FIELD = b'"outlook":'  # only in the values of outlooks
FLUSH_S = 60.0  # longer than an outage of the broker


def messages(settings: Settings, sensors: list[str], seed: int) -> Iterator[Message]:
    """An endless stream of readings, about one per sensor and step, with outlooks between them."""
    generator = random.Random(seed)
    silent_until = dict.fromkeys(sensors, 0)
    level = {sensor: generator.uniform(-50, 50) for sensor in sensors}
    step = 0
    while True:
        batch: list[Message] = []
        for sensor in sensors:
            if step < silent_until[sensor]:
                continue
            if generator.random() < 0.01:  # a gap: stepped as missing, or a reset of the state beyond max_gap_steps
                silent_until[sensor] = step + generator.randint(1, settings.max_gap_steps + 3)
            level[sensor] += generator.gauss(0, 1)
            values = {feature: level[sensor] + generator.gauss(0, 0.5) for feature in settings.features}
            batch.append(_reading(settings, generator, sensor, step, values))
            trouble = generator.random()
            if trouble < 0.01:
                batch.append(batch[-1])  # a duplicate
            elif trouble < 0.02:
                batch.append(
                    _reading(settings, generator, sensor, step - generator.randint(1, 9), values)
                )  # a late reading
            elif trouble < 0.03:
                batch.append(_poison(settings, generator, sensor))
            elif trouble < 0.06:
                batch += _outlook(settings, generator, sensor, step)
        generator.shuffle(batch)
        yield from batch
        step += 1


def _reading(settings: Settings, generator: random.Random, sensor: str, step: int, values: dict[str, float]) -> Message:
    given: dict[str, float | None] = dict(values)
    if generator.random() < 0.05:
        given[generator.choice(settings.features)] = None
    jitter = generator.choice((0, 0, 0, generator.randint(0, settings.cadence_us // 3)))
    key, value = encode_reading(sensor, START_US + step * settings.cadence_us + jitter, given)
    return Message(key, value, partition_of(settings, sensor))


def _outlook(settings: Settings, generator: random.Random, sensor: str, step: int) -> list[Message]:
    """An outlook of a sensor, or of the group on every partition; it may come later than a newer one."""
    group = generator.choice((None, None, None, *settings.outlooks.groups))
    issued_us = START_US + (step - generator.randint(0, 2)) * settings.cadence_us
    times = issued_us + np.arange(1, 2 * settings.horizon_steps) * settings.cadence_us
    values = {name: np.array([generator.gauss(0, 1) for _ in times]) for name in settings.outlooks.covariates}
    key, value = encode_outlook(group or sensor, issued_us, times, values, is_group=group is not None)
    partitions = [partition_of(settings, sensor)] if group is None else range(settings.kafka.partitions)
    return [Message(key, value, partition) for partition in partitions]


def _poison(settings: Settings, generator: random.Random, sensor: str) -> Message:
    key, value = encode_reading(sensor, START_US, dict.fromkeys(settings.features, 1.0))
    partition = generator.randrange(settings.kafka.partitions)
    return generator.choice(
        (
            Message(key, generator.randbytes(40), partition),
            Message(None, value, partition),
            Message(b"\xff" + key, value, partition),
            Message(key, None, partition),
            Message(key, value.replace(b'"timestamp"', b'"when"'), partition),
            Message(key, b"[" * 5_000, partition, (("origin", b"chaos"),)),
        )
    )


class Publisher(threading.Thread):
    """Publishes ``rate`` messages a second until ``finish``, and continues until ``least`` readings were sent.

    A message that a dying broker does not accept is not sent again: the audit counts the readings on the topic.
    """

    def __init__(self, settings: Settings, sensors: list[str], seed: int, *, least: int, rate: float) -> None:
        super().__init__(name="publisher", daemon=True)
        self.sent = 0  # readings and rejects, without outlooks
        self.failure: BaseException | None = None
        self._settings = settings
        self._messages = messages(settings, sensors, seed)
        self._least = least
        self._pause_s = BURST / rate
        self._ending = threading.Event()

    def finish(self) -> None:
        """Publish the remaining messages, and return when the broker has them."""
        self._ending.set()
        self.join()
        if self.failure is not None:
            raise self.failure

    def run(self) -> None:
        try:
            while not self._ending.is_set() or self.sent < self._least:
                self._send_for_a_while()
        except BaseException as error:
            self.failure = error
            raise

    def _send_for_a_while(self) -> None:
        """Send with one producer until the last message, or until the producer fails."""
        try:
            producer = make_producer(self._settings)
        except StreamgruError:
            return  # the broker is unreachable; make_producer has waited for it
        try:
            while not self._ending.is_set() or self.sent < self._least:
                began = time.monotonic()
                for _ in range(BURST):
                    message = next(self._messages)
                    producer.send(
                        self._settings.kafka.topics.readings,
                        message.value,
                        message.key,
                        list(message.headers),
                        partition=message.partition,
                    )
                    self.sent += OUTLOOK_FIELD not in (message.value or b"")
                self._ending.wait(max(0.0, self._pause_s - (time.monotonic() - began)))
            producer.flush(timeout=FLUSH_S)
        except client_errors.KafkaError:
            pass  # ``run`` continues with a new producer
        finally:
            producer.close(timeout=1)
