"""How long after a reading arrived in Kafka its forecast is visible to a reader of committed records.

A feeder, what turns readings into forecasts, and a reader, each a process of its own. Two sides take turns: `streamgru
forecast`, and a loop that does nothing but pass readings on in transactions, since what a transaction takes is the
machine's and the broker's. The readings topic stamps a reading when the broker appends it (LogAppendTime, whole
milliseconds, cut off); the reader takes the time when its poll hands out the forecast. All clocks are one machine's.
"""

import multiprocessing
import re
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from kafka import KafkaConsumer, TopicPartition
from kafka.admin import ConfigResource, ConfigResourceType
from kafka.net.compat import KafkaNetClient
from kafka.protocol.producer import ProduceRequest
from kafka.record.default_records import DefaultRecordBatchBuilder
from numpy.typing import NDArray

from pipeline.kafka.clients import make_admin
from pipeline.kafka.topics import ensure_topics
from pipeline.settings import Settings
from tests.benchmarks import sides
from tests.benchmarks.command import ForecastCommand, named, promote, register
from tests.benchmarks.page import Figure, Section
from tests.integration.stream_rig import partition_of, read_all, reading

RATE = 1_000  # readings a second
SENSORS = 1_000
SECONDS = 20
WARM_UP_S = 10.0  # the first forecasts are those of a process that still imports and grows
ROUNDS = 3
FEED_EVERY_S = 0.005  # what producers of sensors collect before they send (linger.ms of the Java client and librdkafka)
MOST_MS = 50.0
TIMEOUT_S = 120.0
PERCENTILES = {"median": 50.0, "p99": 99.0, "p99.9": 99.9, "largest": 100.0}

Delays = NDArray[np.float64]  # ms, one for each reading behind the warm-up
Message = tuple[bytes, bytes, int]  # key, value, partition


@dataclass(frozen=True)
class Feed:
    """What to send, at which pace."""

    servers: str
    topic: str
    messages: list[Message]
    rate: float


def measure(base: Settings) -> Section:
    """The section of the page."""
    forecast: list[Delays] = []
    passed: list[Delays] = []
    sizes: list[float] = []
    for number in range(1, ROUNDS + 1):
        passed.append(_pass_through(base))
        _say(number, "pass-through", passed[-1])
        delays, size = _forecast(base)
        forecast.append(delays)
        sizes.append(size)
        _say(number, "forecaster", delays)
    p99 = _median(forecast, 99.0)
    ratios = [
        float(np.percentile(mine, 99) / np.percentile(bare, 99)) for mine, bare in zip(forecast, passed, strict=True)
    ]
    return Section(
        "latency",
        f"From a reading's arrival to its forecast, at {RATE:,} readings a second",
        [
            Figure("p99", f"{p99:.1f} ms", f"≤ {MOST_MS:g} ms", p99 <= MOST_MS),
            Figure("p99, forecaster : pass-through", f"{statistics.median(ratios):.2f}"),
            Figure("readings in a forecaster's transaction, on average", f"{statistics.median(sizes):.1f}"),
        ],
        f"{RATE * SECONDS:,} readings of {SENSORS:,} sensors a round, one after the other, by a feeder that sends "
        f"every {FEED_EVERY_S * 1_000:g} ms what has become due, after {WARM_UP_S:g} s of warm-up, with default "
        "settings: from the time that the broker stamps on a reading as it appends it (LogAppendTime) to the moment "
        "that a `read_committed` consumer with kafka-python's defaults, in a process of its own, has the forecast. The "
        "pass-through polls, sends as many bytes as a forecast has for each reading, and commits them with the "
        "offsets: no decoding, no model, no states. Feeder, forecaster, reader, broker and MLflow share the machine. "
        "Figures are medians of the rounds.",
        _table({"forecaster": forecast, "transactional pass-through": passed}),
    )


def _table(sides_: dict[str, list[Delays]]) -> str:
    rows = [
        f"| {side} | "
        + " | ".join(f"{_median(rounds, percentile):.1f} ms" for percentile in PERCENTILES.values())
        + f" | {', '.join(f'{np.percentile(delays, 99):.0f}' for delays in rounds)} |"
        for side, rounds in sides_.items()
    ]
    return "\n".join([f"| side | {' | '.join(PERCENTILES)} | p99 of all rounds |", "|---|---|---|---|---|---|", *rows])


def _median(rounds: list[Delays], percentile: float) -> float:
    return statistics.median(float(np.percentile(delays, percentile)) for delays in rounds)


def _say(number: int, side: str, delays: Delays) -> None:
    found = ", ".join(f"{name} {np.percentile(delays, percentile):.0f} ms" for name, percentile in PERCENTILES.items())
    print(f"round {number}: {side}: {found}", flush=True)


def _forecast(base: Settings) -> tuple[Delays, float]:
    """Delays of the forecaster, and how many readings a transaction had on average."""
    settings = _fresh(base, "latency")
    promote(settings, register(settings))
    with ForecastCommand(settings, "bench") as process:
        process.wait_for("are served", TIMEOUT_S)
        delays = _delays(settings)
        process.end()
        transactions = int(re.findall(r"counts: .*\btransactions=(\d+)", process.said)[-1])
    return delays, _count() / transactions


def _pass_through(base: Settings) -> Delays:
    settings = _fresh(base, "passed")
    with _running(sides.keep_passing, settings, sides.payload_like(settings)):
        return _delays(settings)


def _fresh(base: Settings, name: str) -> Settings:
    """Topics of their own, where the broker stamps readings as it appends them."""
    settings = named(base, f"{name}-{time.time_ns() % 1_000_000}")
    ensure_topics(settings)
    admin = make_admin(settings)
    stamps = {"message.timestamp.type": "LogAppendTime"}
    admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, settings.kafka.topics.readings, stamps)])
    admin.close()
    return settings


def _count() -> int:
    return int((WARM_UP_S + SECONDS) * RATE)


def _delays(settings: Settings) -> Delays:
    """Feed readings, sensors taking turns, and read what becomes of them.

    The n-th record of an output partition is that of the n-th reading of the partition of that number.
    """
    names = [f"sensor-{number:05d}" for number in range(SENSORS)]
    messages: list[Message] = []
    for number in range(_count()):
        name = names[number % SENSORS]
        message = reading(settings, name, number // SENSORS)
        assert message.key is not None and message.value is not None
        messages.append((message.key, message.value, partition_of(settings, name)))
    servers, topics = settings.kafka.bootstrap_servers, settings.kafka.topics
    results: Any = multiprocessing.get_context("spawn").Queue()
    with (
        _running(read, servers, topics.forecasts, len(messages), results),
        _running(feed, Feed(servers, topics.readings, messages, RATE)),
    ):
        seen: list[tuple[int, float]] = results.get(timeout=len(messages) / RATE + TIMEOUT_S)
    arrived = read_all(settings, topics.readings)
    began = min(record.timestamp for record in arrived)
    delays: list[float] = []
    for partition in range(settings.kafka.partitions):
        then = np.array([record.timestamp for record in arrived if record.partition == partition], np.float64)
        delay = np.array([at for where, at in seen if where == partition]) - then
        delays += delay[then >= began + WARM_UP_S * 1_000].tolist()
    return np.array(delays)


@contextmanager
def _running(target: Any, *arguments: Any) -> Iterator[None]:
    """``target`` in a process of its own, which is killed at the end, from when it says that it is ready."""
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=target, args=(*arguments, ready), daemon=True)
    process.start()
    try:
        if not ready.wait(TIMEOUT_S):
            raise AssertionError(f"{target.__name__} did not begin")
        yield
    finally:
        process.kill()
        process.join()


def feed(order: Feed, ready: Any) -> None:
    """Send the messages, each when it is due, in one request at a time.

    With kafka-python's requests, but not by its producer, which takes half of a core for so many small batches: the
    sensors stand for machines elsewhere.
    """
    client = KafkaNetClient(bootstrap_servers=order.servers)
    client.check_version()
    ready.set()
    began, sent = time.monotonic(), 0
    while sent < len(order.messages):
        time.sleep(FEED_EVERY_S)
        due = min(int((time.monotonic() - began) * order.rate), len(order.messages))
        if due > sent:
            _send(client, order.topic, order.messages[sent:due])
            sent = due
    time.sleep(TIMEOUT_S)  # ended by whoever waits for the forecasts


def _send(client: KafkaNetClient, topic: str, messages: list[Message]) -> None:
    of_topic = ProduceRequest.TopicProduceData
    batches: dict[int, list[Message]] = {}
    for message in messages:
        batches.setdefault(message[2], []).append(message)
    records = [
        of_topic.PartitionProduceData(index=partition, records=_batch(batch)) for partition, batch in batches.items()
    ]
    request = ProduceRequest(
        transactional_id=None,
        acks=-1,
        timeout_ms=10_000,
        topic_data=[of_topic(name=topic, partition_data=records)],
        min_version=9,
        max_version=9,
    )
    response = client.send_and_receive(client.least_loaded_node(), request)  # there is one broker
    failed = [each.error_code for found in response.responses for each in found.partition_responses if each.error_code]
    assert not failed, f"the broker took not all readings: error codes {failed}"


def _batch(messages: list[Message]) -> bytes:
    builder = DefaultRecordBatchBuilder(
        magic=2,
        compression_type=0,
        is_transactional=0,
        producer_id=-1,
        producer_epoch=-1,
        base_sequence=-1,
        batch_size=1_000_000,
    )
    now_ms = int(time.time() * 1_000)
    for offset, (key, value, _) in enumerate(messages):
        builder.append(offset, timestamp=now_ms, key=key, value=value, headers=[])
    return bytes(builder.build())


def read(servers: str, topic: str, count: int, results: Any, ready: Any) -> None:
    """The partition of each record, in order, and when it was seen (ms since the epoch), until ``count`` were."""
    consumer = KafkaConsumer(bootstrap_servers=servers, isolation_level="read_committed", enable_auto_commit=False)
    where = [TopicPartition(topic, partition) for partition in consumer.partitions_for_topic(topic)]
    consumer.assign(where)
    for each in where:
        consumer.seek(each, 0)
    consumer.poll(timeout_ms=0)
    ready.set()
    seen: list[tuple[int, float]] = []
    while len(seen) < count:
        polled = consumer.poll(timeout_ms=1_000)
        now = time.time() * 1_000
        seen += [(at.partition, now) for at, records in polled.items() for _ in records]
    results.put(seen)
