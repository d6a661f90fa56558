"""Latency: the time from a reading's arrival in Kafka until a reader of committed records sees its forecast.

Three processes run: a feeder, one side, and a reader. The sides take turns: `streamgru forecast`, the same command of
an earlier commit, and a pass-through that only copies readings in transactions, to show how much of the time is the
broker's and the machine's. The broker stamps a reading when it appends it (LogAppendTime, whole milliseconds, rounded
down). The reader takes the time when its poll returns the forecast. All clocks are one machine's.
"""

import multiprocessing
import re
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
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
from tests.benchmarks.earlier import BASE, earlier_tree
from tests.benchmarks.page import Figure, Section
from tests.integration.stream_rig import Message, read_all, reading
from tests.waiting import wait_until

RATE = 1_000  # readings a second
SENSORS = 1_000
SECONDS = 15
WARM_UP_S = 10.0  # left out, because a new process still imports modules and allocates memory
ROUNDS = 5
FEED_EVERY_S = 0.005  # the default linger.ms of librdkafka, and of the Java client since 4.0
PRODUCE_VERSION = 9  # version 13 replaces topic names by ids
MOST_P99_RATIO = 1.2  # to the pass-through
MOST_MEDIAN_RATIO = 0.8  # to the earlier commit
TIMEOUT_S = 180.0  # the first start of an earlier commit compiles its kernels
PASS = "transactional pass-through"
PERCENTILES = {"median": 50.0, "p99": 99.0, "p99.9": 99.9, "largest": 100.0}

Delays = NDArray[np.float64]  # ms, one per reading after the warm-up
PROCESSES = multiprocessing.get_context("spawn")


def measure(base: Settings) -> Section:
    """The section of the page."""
    earlier = earlier_tree()
    forecast: list[Delays] = []
    passed: list[Delays] = []
    before: list[Delays] = []
    sizes: list[float] = []
    for number in range(1, ROUNDS + 1):
        passed.append(_pass_through(base, number))
        _say(number, PASS, passed[-1])
        delays, size = _forecast(base, f"latency-{number}")
        forecast.append(delays)
        sizes.append(size)
        _say(number, "forecaster", delays)
        if earlier is not None:
            before.append(_forecast(base, f"earlier-{number}", earlier)[0])
            _say(number, BASE, before[-1])
    p99 = _ratio(forecast, passed, 99.0)
    figures = [
        Figure("p99, forecaster : pass-through", f"{p99:.2f}", f"≤ {MOST_P99_RATIO}", p99 <= MOST_P99_RATIO),
    ]
    sides_shown = {"forecaster": forecast, PASS: passed}
    if before:
        median = _ratio(forecast, before, 50.0)
        name = f"median, forecaster : forecaster of commit {BASE}"
        figures.append(Figure(name, f"{median:.2f}", f"≤ {MOST_MEDIAN_RATIO}", median <= MOST_MEDIAN_RATIO))
        sides_shown[f"forecaster of commit {BASE}"] = before
    figures += [
        Figure("p99", f"{_median(forecast, 99.0):.1f} ms"),
        Figure("readings per transaction of the forecaster, on average", f"{statistics.median(sizes):.1f}"),
    ]
    return Section(
        "latency",
        f"Latency from a reading to its forecast, at {RATE:,} readings a second",
        figures,
        f"{statistics.median(map(len, forecast)):,.0f} readings of {SENSORS:,} sensors per round, after "
        f"{WARM_UP_S:g} s of warm-up, with default settings, {ROUNDS} rounds in turns. A feeder sends the due readings "
        f"every {FEED_EVERY_S * 1_000:g} ms, one request at a time. Latency begins at the broker's time stamp of the "
        "reading (LogAppendTime). It ends when a `read_committed` consumer with kafka-python's defaults, in a separate "
        "process, has the forecast. The pass-through polls as the forecaster does, sends a value as long as a forecast "
        "for each reading, and commits them with the offsets. It has no decoding, model, states or headers. Feeder, "
        "forecaster, reader, broker and MLflow share the machine. Times are medians of the rounds, and ratios are the "
        "medians of the ratios within each round.",
        _table(sides_shown),
    )


def _ratio(forecast: list[Delays], beside: list[Delays], percentile: float) -> float:
    """The median of the ratios within each round: a slow moment of the machine slows both sides."""
    return statistics.median(
        float(np.percentile(mine, percentile) / np.percentile(other, percentile))
        for mine, other in zip(forecast, beside, strict=True)
    )


def _table(rounds_of: dict[str, list[Delays]]) -> str:
    rows = [
        f"| {side} | "
        + " | ".join(f"{_median(rounds, percentile):.1f} ms" for percentile in PERCENTILES.values())
        + f" | {', '.join(f'{np.percentile(delays, 99):.0f}' for delays in rounds)} |"
        for side, rounds in rounds_of.items()
    ]
    return "\n".join([f"| side | {' | '.join(PERCENTILES)} | p99 of all rounds |", "|---|---|---|---|---|---|", *rows])


def _median(rounds: list[Delays], percentile: float) -> float:
    return statistics.median(float(np.percentile(delays, percentile)) for delays in rounds)


def _say(number: int, side: str, delays: Delays) -> None:
    found = ", ".join(f"{name} {np.percentile(delays, percentile):.0f} ms" for name, percentile in PERCENTILES.items())
    print(f"round {number}: {side}: {found}", flush=True)


def _forecast(base: Settings, name: str, tree: Path | None = None) -> tuple[Delays, float]:
    """Delays of the forecaster of a tree, and its mean number of readings per transaction."""
    settings = fresh_settings(base, name)
    promote(settings, register(settings))
    with ForecastCommand(settings, "bench", tree) as process:
        process.wait_for("are served", TIMEOUT_S)
        delays = _delays(settings)
        process.end()
        transactions = int(re.findall(r"counts: .*\btransactions=(\d+)", process.log)[-1])
    return delays, _fed() / transactions


def _pass_through(base: Settings, number: int) -> Delays:
    settings = fresh_settings(base, f"passed-{number}")
    with running_process(sides.keep_passing, settings, sides.forecast_value(settings)):
        return _delays(settings)


def fresh_settings(base: Settings, name: str) -> Settings:
    """Settings with new topics, where the broker stamps readings when it appends them."""
    settings = named(base, name)
    ensure_topics(settings)
    admin = make_admin(settings)
    stamps = {"message.timestamp.type": "LogAppendTime"}
    admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, settings.kafka.topics.readings, stamps)])
    admin.close()
    return settings


def _fed() -> int:
    return int((WARM_UP_S + SECONDS) * RATE)


def _delays(settings: Settings) -> Delays:
    """Feed readings, the sensors taking turns; return the delay of the forecast of each reading after the warm-up.

    The n-th record of an output partition belongs to the n-th reading of the readings partition with that number.
    """
    names = [f"sensor-{number:05d}" for number in range(SENSORS)]
    messages = [reading(settings, names[number % SENSORS], number // SENSORS) for number in range(_fed())]
    servers, topics = settings.kafka.bootstrap_servers, settings.kafka.topics
    results: Any = PROCESSES.Queue()
    with (
        running_process(read, servers, topics.forecasts, len(messages), results) as reader,
        running_process(feed, servers, topics.readings, messages) as feeder,
    ):
        limit_s = len(messages) / RATE + TIMEOUT_S
        wait_until(
            lambda: not results.empty() or reader.exitcode or feeder.exitcode, limit_s, "all forecasts were seen"
        )
        if results.empty():
            raise AssertionError("the feeder or the reader failed; its traceback is printed above")
        seen: list[tuple[int, float]] = results.get()
    arrived = read_all(settings, topics.readings)
    began = min(record.timestamp for record in arrived)
    delays: list[float] = []
    for partition in range(settings.kafka.partitions):
        then = np.array([record.timestamp for record in arrived if record.partition == partition], np.float64)
        delay = np.array([at for where, at in seen if where == partition]) - then
        delays += delay[then >= began + WARM_UP_S * 1_000].tolist()
    return np.array(delays)


@contextmanager
def running_process(target: Any, *arguments: Any) -> Iterator[Any]:
    """A process that runs ``target``. The context begins when the process is ready, and kills it at the end."""
    ready = PROCESSES.Event()
    process = PROCESSES.Process(target=target, args=(*arguments, ready), daemon=True)
    process.start()
    try:
        wait_until(lambda: ready.is_set() or process.exitcode, TIMEOUT_S, f"{target.__name__} is ready")
        if not ready.is_set():
            raise AssertionError(f"{target.__name__} failed; its traceback is printed above")
        yield process
    finally:
        process.kill()
        process.join()


def feed(servers: str, topic: str, messages: list[Message], ready: Any) -> None:
    """Send each message when it is due, one request at a time.

    It builds the requests itself: kafka-python's producer takes 40 % of a core for batches this small and frequent, and
    real sensors run on other machines.
    """
    client = KafkaNetClient(bootstrap_servers=servers)
    client.check_version()  # opens the connection
    ready.set()
    began = next_at = time.monotonic()
    sent = 0
    while sent < len(messages):
        next_at += FEED_EVERY_S
        time.sleep(max(0.0, next_at - time.monotonic()))
        due = min(int((time.monotonic() - began) * RATE), len(messages))
        if due > sent:
            _send(client, topic, messages[sent:due])
            sent = due


def _send(client: KafkaNetClient, topic: str, messages: list[Message]) -> None:
    batches: dict[int, list[Message]] = {}
    for message in messages:
        batches.setdefault(message.partition, []).append(message)
    data = ProduceRequest.TopicProduceData
    request = ProduceRequest(
        transactional_id=None,
        acks=-1,
        timeout_ms=10_000,
        topic_data=[
            data(
                name=topic,
                partition_data=[
                    data.PartitionProduceData(index=partition, records=_encoded(batch))
                    for partition, batch in batches.items()
                ],
            )
        ],
        min_version=PRODUCE_VERSION,
        max_version=PRODUCE_VERSION,
    )
    response = client.send_and_receive(client.least_loaded_node(), request)  # the only broker
    failed = [each.error_code for found in response.responses for each in found.partition_responses if each.error_code]
    assert not failed, f"the broker rejected readings with the error codes {failed}"


def _encoded(batch: list[Message]) -> bytes:
    """A record batch without a producer id."""
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
    for offset, message in enumerate(batch):
        added = builder.append(offset, timestamp=now_ms, key=message.key, value=message.value, headers=[])
        assert added, "the due readings do not fit into one batch"
    return bytes(builder.build())


def read(servers: str, topic: str, count: int, results: Any, ready: Any) -> None:
    """Put (partition, ms since the epoch when seen) of the first ``count`` records into ``results``, in order."""
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
