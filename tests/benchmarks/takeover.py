"""The silence of partitions after one of two forecasters is killed, as a consumer of committed records sees it.

Both forecasters run with default settings, under a steady flow of readings. One is killed by SIGKILL. A partition's
pause is the time from the last forecast before the kill to the first one after it. Then the victim is restarted, and
the next round kills the other forecaster.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import pairwise

from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from pipeline.kafka.topics import ensure_topics
from pipeline.messages import decode_forecast
from pipeline.settings import Settings
from tests.benchmarks.command import ForecastCommand, named, promote, register
from tests.benchmarks.page import Figure, Section
from tests.integration.stream_rig import partition_of, reading
from tests.waiting import wait_until

RATE = 200.0  # readings a second
SENSORS = 200
ROUNDS = 5
MOST_S = 10.0
# seconds; no takeover is faster, because the group waits for the session timeout: 6 s from the victim's last heartbeat,
# at most 1 s before the kill. Forecasts seen earlier were committed before the kill.
LEAST_S = 4.5
STEADY_S = 5.0  # seconds that both forecasters serve before a kill
TIMEOUT_S = 120.0


def measure(base: Settings) -> Section:
    """The section of the page."""
    settings = named(base, f"takeover-{time.time_ns() % 1_000_000}")
    ensure_topics(settings)
    promote(settings, register(settings))
    pauses = []
    with flow(settings, RATE, SENSORS), Watch(settings) as watch, ExitStack() as stack:
        forecasters = {name: stack.enter_context(ForecastCommand(settings, name)) for name in ("one", "two")}
        for number in range(ROUNDS):
            for process in forecasters.values():
                process.wait_for("are served", TIMEOUT_S)
            victim = ("one", "two")[number % 2]
            wait_until(watch.is_lively, TIMEOUT_S, "forecasts in all partitions")
            time.sleep(STEADY_S)
            killed = time.monotonic()
            forecasters[victim].kill()
            wait_until(partial(watch.have_all_since, killed + LEAST_S), TIMEOUT_S, "forecasts in all partitions again")
            pauses.append(watch.longest_pause(killed))
            print(f"takeover {number + 1}: {pauses[-1]:.1f} s", flush=True)
            forecasters[victim] = stack.enter_context(ForecastCommand(settings, victim))
    pauses.sort()
    return Section(
        "takeover",
        "A forecaster is killed and another takes over",
        [
            Figure("pause in the slowest partition: median", f"{pauses[len(pauses) // 2]:.1f} s"),
            Figure("... the longest", f"{pauses[-1]:.1f} s", f"< {MOST_S:g} s", pauses[-1] < MOST_S),
            Figure("... all", ", ".join(f"{pause:.1f}" for pause in pauses) + " s"),
        ],
        f"Two `streamgru forecast` with default settings share {settings.kafka.partitions} partitions at {RATE:g} "
        f"readings a second. One is killed by SIGKILL, {ROUNDS} times in total. The pause is the longest time between "
        "two forecasts of one partition, as a `read_committed` consumer sees them. Most of it is the session timeout "
        "(6 s, the smallest that brokers allow by default).",
    )


@contextmanager
def flow(settings: Settings, rate: float, sensors: int, first_step: int = 0) -> Iterator[None]:
    """Publish readings at a steady rate in the background, the sensors taking turns, until the context ends."""
    ended = threading.Event()
    names = [f"sensor-{number:05d}" for number in range(sensors)]

    def send() -> None:
        producer = KafkaProducer(bootstrap_servers=settings.kafka.bootstrap_servers, acks="all", linger_ms=0)
        began, number = time.monotonic(), 0
        while not ended.wait(max(0.0, began + number / rate - time.monotonic())):
            name = names[number % sensors]
            message = reading(settings, name, first_step + number // sensors)
            producer.send(
                settings.kafka.topics.readings, message.value, message.key, partition=partition_of(settings, name)
            )
            number += 1
        producer.close(timeout=1)

    thread = threading.Thread(target=send, name="flow", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(TIMEOUT_S)


class Watch:
    """A thread that reads committed forecasts, and records when it saw one in each partition."""

    def __init__(self, settings: Settings, *, from_now: bool = False) -> None:
        self.versions: dict[int, float] = {}  # model version -> time when its first forecast was seen
        self._settings = settings
        self._from_now = from_now
        self._ended = threading.Event()
        self._seen: list[list[float]] = [[] for _ in range(settings.kafka.partitions)]
        self._thread = threading.Thread(target=self._read, name="watch", daemon=True)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._ended.set()
        self._thread.join(TIMEOUT_S)

    def is_lively(self) -> bool:
        """Whether every partition had a forecast within the last second."""
        now = time.monotonic()
        return all(seen and now - seen[-1] < 1.0 for seen in self._seen)

    def have_all_since(self, moment: float) -> bool:
        """Whether every partition had a forecast after ``moment`` and within the last second."""
        return all(seen and seen[-1] > moment for seen in self._seen) and self.is_lively()

    def longest_pause(self, moment: float) -> float:
        """The longest time in seconds between two forecasts of a partition, from the last one before ``moment`` on."""
        longest = 0.0
        for seen in self._seen:
            since = next(place for place, at in enumerate(seen) if at > moment)
            times = seen[max(0, since - 1) :]
            longest = max(longest, *(after - before for before, after in pairwise(times)))
        return longest

    def _read(self) -> None:
        servers = self._settings.kafka.bootstrap_servers
        consumer = KafkaConsumer(bootstrap_servers=servers, isolation_level="read_committed", enable_auto_commit=False)
        topic = self._settings.kafka.topics.forecasts
        where = [TopicPartition(topic, partition) for partition in range(self._settings.kafka.partitions)]
        consumer.assign(where)
        (consumer.seek_to_end if self._from_now else consumer.seek_to_beginning)(*where)
        while not self._ended.is_set():
            for partition, records in consumer.poll(timeout_ms=200).items():
                now = time.monotonic()
                self._seen[partition.partition].append(now)
                for version in {decode_forecast(record.value).model.version for record in records}:
                    self.versions.setdefault(version, now)
        consumer.close()
