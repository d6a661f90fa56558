"""How long after a reading arrived in Kafka its forecast is visible to a reader of committed records.

A feeder, `streamgru forecast` and a reader, each a process of its own. The readings topic stamps a reading when the
broker appends it (LogAppendTime, whole milliseconds, cut off); the reader takes the time when its poll hands out the
forecast. All clocks are one machine's.
"""

import multiprocessing
import re
import time
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import ConfigResource, ConfigResourceType

from pipeline.kafka.clients import make_admin
from pipeline.kafka.topics import ensure_topics
from pipeline.settings import Settings
from tests.benchmarks.command import ForecastCommand, named, promote, register
from tests.benchmarks.page import Figure, Section
from tests.integration.stream_rig import partition_of, read_all, reading

RATE = 1_000  # readings a second
SENSORS = 1_000
SECONDS = 20
WARM_UP_S = 10.0  # the first forecasts are those of a process that still imports and grows
# The Java producer's default. A request for every reading would keep one of two cores busy with asking and answering.
FEED_LINGER_MS = 5
MOST_MS = 50.0
TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Feed:
    """What to send, at which pace."""

    servers: str
    topic: str
    messages: list[tuple[bytes, bytes, int]]  # key, value, partition
    rate: float


def measure(base: Settings) -> Section:
    """The section of the page."""
    settings = named(base, f"latency-{time.time_ns() % 1_000_000}")
    ensure_topics(settings)
    stamp_on_arrival(settings)
    promote(settings, register(settings))
    with ForecastCommand(settings, "bench") as process:
        process.wait_for("are served", TIMEOUT_S)
        seen = run(settings, RATE, SENSORS, int((SECONDS + WARM_UP_S) * RATE))
        process.end()
        transactions = _transactions(process.said)
    arrived = arrivals(settings)
    began = min(arrived.values())
    delays = np.array([at - arrived[where] for where, at in seen if arrived[where] >= began + WARM_UP_S * 1_000])
    p50, p99, p999 = np.percentile(delays, [50, 99, 99.9])
    return Section(
        "latency",
        f"From a reading's arrival to its forecast, at {RATE:,} readings a second",
        [
            Figure("median", f"{p50:.1f} ms"),
            Figure("p99", f"{p99:.1f} ms", f"≤ {MOST_MS:g} ms", bool(p99 <= MOST_MS)),
            Figure("p99.9", f"{p999:.1f} ms"),
            Figure("largest", f"{delays.max():.1f} ms"),
            Figure("readings in a transaction, on average", f"{len(arrived) / transactions:.1f}"),
        ],
        f"{len(delays):,} readings of {SENSORS:,} sensors, one after the other, sent by a producer with linger.ms = "
        f"{FEED_LINGER_MS}, after {WARM_UP_S:g} s of warm-up, with "
        "default settings: from the time that the broker stamps on a reading as it appends it (LogAppendTime) to the "
        "moment that a `read_committed` consumer with kafka-python's defaults, in a process of its own, has the "
        "forecast. Feeder, forecaster, reader, broker and MLflow share the machine.",
    )


def run(settings: Settings, rate: float, sensors: int, count: int) -> list[tuple[tuple[int, int], float]]:
    """Feed readings and read their forecasts: by input partition and offset, when they were seen (ms since the epoch).

    Sensors take turns.
    """
    names = [f"sensor-{number:05d}" for number in range(sensors)]
    messages: list[tuple[bytes, bytes, int]] = []
    for number in range(count):
        name = names[number % sensors]
        message = reading(settings, name, number // sensors)
        assert message.key is not None and message.value is not None
        messages.append((message.key, message.value, partition_of(settings, name)))
    context = multiprocessing.get_context("spawn")
    results: Any = context.Queue()
    ready: Any = context.Event()
    servers, topics = settings.kafka.bootstrap_servers, settings.kafka.topics
    reader = context.Process(target=read, args=(servers, topics.forecasts, count, ready, results), daemon=True)
    feeder = context.Process(target=feed, args=(Feed(servers, topics.readings, messages, rate),), daemon=True)
    reader.start()
    if not ready.wait(TIMEOUT_S):
        raise AssertionError("the reader did not begin")
    feeder.start()
    try:
        found: list[tuple[tuple[int, int], float]] = results.get(timeout=count / rate + TIMEOUT_S)
    finally:
        feeder.kill()
        reader.kill()
    return found


def feed(order: Feed) -> None:
    """Send the messages, each when it is due."""
    producer = KafkaProducer(bootstrap_servers=order.servers, acks="all", linger_ms=FEED_LINGER_MS)
    producer.partitions_for(order.topic)
    began = time.monotonic()
    for number, (key, value, partition) in enumerate(order.messages):
        wait_s = began + number / order.rate - time.monotonic()
        if wait_s > 0:
            time.sleep(wait_s)
        producer.send(order.topic, value, key, partition=partition)
    producer.flush()
    time.sleep(TIMEOUT_S)  # ended by whoever waits for the forecasts


def read(servers: str, topic: str, count: int, ready: Any, results: Any) -> None:
    """Note when each forecast is seen, until ``count`` were."""
    consumer = KafkaConsumer(bootstrap_servers=servers, isolation_level="read_committed", enable_auto_commit=False)
    where = [TopicPartition(topic, partition) for partition in consumer.partitions_for_topic(topic)]
    consumer.assign(where)
    for each in where:
        consumer.seek(each, 0)
    consumer.poll(timeout_ms=0)
    ready.set()
    seen: list[tuple[bytes, float]] = []
    while len(seen) < count:
        polled = consumer.poll(timeout_ms=1_000)
        now = time.time() * 1_000
        for records in polled.values():
            seen += [(record.value, now) for record in records]
    inputs = ((msgspec.json.decode(value)["input"], at) for value, at in seen)
    results.put([((given["partition"], given["offset"]), at) for given, at in inputs])


def stamp_on_arrival(settings: Settings) -> None:
    """Let the broker stamp readings as it appends them."""
    admin = make_admin(settings)
    stamps = {"message.timestamp.type": "LogAppendTime"}
    admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, settings.kafka.topics.readings, stamps)])
    admin.close()


def arrivals(settings: Settings) -> dict[tuple[int, int], int]:
    """By partition and offset, when the broker appended a reading (ms since the epoch)."""
    return {
        (record.partition, record.offset): record.timestamp
        for record in read_all(settings, settings.kafka.topics.readings)
    }


def _transactions(said: str) -> int:
    """How many there were, by the last counts in a forecaster's log."""
    return int(re.findall(r"counts: .*\btransactions=(\d+)", said)[-1])
