"""The size of the changelog while states are rewritten: compaction must keep it near one record per sensor.

The product's encoder writes the states to a topic with the product's settings, many times, at the rate of a busy
stream. A restart has to read all of the changelog.
"""

import time
from pathlib import Path

import numpy as np

from model.state import blank_states
from pipeline.kafka.batch_producer import BatchAppender, check_delivered
from pipeline.kafka.clients import make_producer
from pipeline.kafka.topics import STATE_DIRTY_RATIO, STATE_SEGMENT_BYTES, ensure_topics
from pipeline.messages import StateTag
from pipeline.settings import Settings
from tests.benchmarks.command import named
from tests.benchmarks.page import Figure, Section
from tests.benchmarks.sides import HIDDEN_SIZE, adapting
from tests.integration.stream_rig import small_forecaster

SENSORS = 2_000
WRITES = 400  # writes of every state
SECONDS = 60.0
PARTITIONS = 2
SETTLE_S = 45.0  # three times the broker's interval between compactions
# In each partition, beyond one record per sensor: the open segment, which is never compacted, and one segment that was
# closed since the last compaction.
SLACK_BYTES = PARTITIONS * 2 * STATE_SEGMENT_BYTES


def measure(base: Settings) -> Section:
    """The section of the page."""
    settings = named(adapting(base, "off"), "changelog", kafka={"partitions": PARTITIONS})
    ensure_topics(settings)
    live, written, largest = _rewrite(settings)
    deadline = time.monotonic() + SETTLE_S
    limit = live + SLACK_BYTES
    while (found := _size(settings)) > limit and time.monotonic() < deadline:
        time.sleep(1.0)
    return Section(
        "changelog",
        "The changelog while states are rewritten",
        [
            Figure("written", f"{written / 2**20:,.0f} MiB"),
            Figure("one record per sensor", f"{live / 2**20:,.1f} MiB"),
            Figure("largest size on disk during the writes", f"{largest / 2**20:,.0f} MiB"),
            Figure("size on disk after", f"{found / 2**20:,.1f} MiB", f"≤ {limit / 2**20:,.0f} MiB", found <= limit),
        ],
        f"{SENSORS:,} states of hidden size {HIDDEN_SIZE}, each written {WRITES} times within {SECONDS:g} s to "
        f"{PARTITIONS} partitions. A compacted topic keeps its open segment ({STATE_SEGMENT_BYTES >> 20} MiB per "
        "partition) and the segments closed since the last compaction. The broker looks for work every 15 s, and "
        f"compacts a partition when {STATE_DIRTY_RATIO:.0%} of its bytes are superseded.",
    )


def _rewrite(settings: Settings) -> tuple[int, int, int]:
    """Bytes of one record per sensor, bytes written, and the largest size on disk during the writes."""
    states = blank_states(small_forecaster(settings, hidden_size=HIDDEN_SIZE).config, SENSORS)
    random = np.random.default_rng(0)
    states["hidden"] = random.uniform(-1, 1, states["hidden"].shape)
    states["lags"] = random.uniform(-1, 1, states["lags"].shape)
    states["profile"] = random.uniform(-1, 1, states["profile"].shape)
    tag = StateTag(1, settings.fingerprint)
    keys = [f"sensor-{number:05d}".encode() for number in range(SENSORS)]
    producer = make_producer(settings)
    appender = BatchAppender(producer)
    live = written = largest = 0
    began = time.monotonic()
    for number in range(WRITES):
        states["offset"] = number
        values = [tag.encode(state.tobytes()) for state in states]
        futures = []
        for partition in range(PARTITIONS):
            mine = slice(partition, None, PARTITIONS)
            futures += appender.append(settings.kafka.topics.state, partition, keys[mine], values[mine])
        producer.flush()
        check_delivered(futures)
        live = sum(map(len, keys)) + sum(map(len, values))
        written += live
        largest = max(largest, _size(settings))
        time.sleep(max(0.0, began + (number + 1) * SECONDS / WRITES - time.monotonic()))
    producer.close()
    return live, written, largest


def _size(settings: Settings) -> int:
    """Bytes of the topic's log on the broker's disk, without segments that are marked as deleted."""
    folder = settings.home.parent / "kafka" / "data"
    total = 0
    for partition in range(PARTITIONS):
        for path in Path(folder / f"{settings.kafka.topics.state}-{partition}").glob("*.log"):
            try:
                total += path.stat().st_size
            except FileNotFoundError:
                continue  # the broker deleted the segment after ``glob`` listed it
    return total
