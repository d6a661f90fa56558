"""Time and memory that a forecaster takes to restore the states of many sensors.

The readings topic gets one reading per sensor, and the group's offsets are committed after it. The changelog gets one
state per sensor from the product's encoder, in one transaction. The states hold random numbers, because compressible
ones would improve the figures. Then `streamgru forecast` starts.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from kafka import TopicPartition
from kafka.structs import OffsetAndMetadata

from model.state import blank_states
from pipeline.forecaster.states.table import States
from pipeline.kafka.batch_producer import BatchAppender, check_delivered
from pipeline.kafka.clients import make_consumer, make_producer
from pipeline.kafka.topics import ensure_topics
from pipeline.messages import StateTag
from pipeline.settings import Settings
from tests.benchmarks.command import ForecastCommand, Memory, named, promote, register
from tests.benchmarks.page import Figure, Section
from tests.benchmarks.sides import HIDDEN_SIZE, adapting
from tests.integration.stream_rig import START_US, partition_of, publish, rounds, small_forecaster

MANY, FEW = 100_000, 100
REPEATS = 3
MOST_SECONDS = 10.0
MOST_BYTES = 1_500
TIMEOUT_S = 300.0
SERVED = r"are served: (\d+) states restored, (\d+) rebuilt from readings, (\d+) cold, in ([\d.]+) s"


@dataclass(frozen=True)
class Outcome:
    """One restore."""

    inside_s: float  # from the assignment of the partitions to the last restored state
    outside_s: float  # from the start of the process to the last restored state
    memory: Memory


def measure(base: Settings) -> Section:
    """The section of the page: states of the bare model, without adaptation."""
    base = adapting(base, "off")
    few = _restore(_prepare(base, FEW), FEW)
    settings = _prepare(base, MANY)
    many = [_restore(settings, MANY) for _ in range(REPEATS)]
    inside = sorted(outcome.inside_s for outcome in many)
    outside = sorted(outcome.outside_s for outcome in many)
    memory = max(outcome.memory.now - few.memory.now for outcome in many) / (MANY - FEW)
    peak = max(outcome.memory.peak - few.memory.peak for outcome in many) / (MANY - FEW)
    size = blank_states(small_forecaster(settings, hidden_size=HIDDEN_SIZE).config, 1).dtype.itemsize
    return Section(
        "restore",
        f"Restoring {MANY:,} sensors",
        [
            Figure(
                "assignment of the partitions → all states in memory",
                f"{inside[-1]:.1f} s",
                f"≤ {MOST_SECONDS:g} s",
                inside[-1] <= MOST_SECONDS,
            ),
            Figure(
                "start of the process → all states in memory",
                f"{outside[-1]:.1f} s",
            ),
            Figure(
                f"memory per sensor, beyond a forecaster that restored {FEW}",
                f"{memory:,.0f} bytes",
                f"≤ {MOST_BYTES:,} bytes",
                memory <= MOST_BYTES,
            ),
            Figure("... at the peak", f"{peak:,.0f} bytes", f"≤ {MOST_BYTES:,} bytes", peak <= MOST_BYTES),
            Figure("... of which the state itself", f"{size:,} bytes"),
        ],
        f"`streamgru forecast` (hidden size {HIDDEN_SIZE}, 3 features, 1 target, {settings.kafka.partitions} "
        f"partitions, adaptation off) on a changelog of {MANY:,} states of random numbers; the worst of {REPEATS} "
        "starts. The time from the start of the process includes Python's imports, the model's download from the "
        "registry or its local copy, and joining the group.",
    )


def _prepare(base: Settings, sensors: int) -> Settings:
    """Create topics with one reading and one state per sensor, and a champion."""
    settings = named(base, f"restore-{sensors}-{time.time_ns() % 1_000_000}")
    ensure_topics(settings)
    promote(settings, register(settings))
    names = [f"sensor-{number:06d}" for number in range(sensors)]
    publish(settings, rounds(settings, names, range(1)))
    by_partition: list[list[str]] = [[] for _ in range(settings.kafka.partitions)]
    for name in names:
        by_partition[partition_of(settings, name)].append(name)
    write_states(settings, by_partition)
    commit_offsets(settings, [len(members) for members in by_partition])
    return settings


def write_states(settings: Settings, by_partition: Sequence[Sequence[str]]) -> None:
    """Write one state per sensor, as of its first reading, in one transaction."""
    tag = StateTag(1, settings.fingerprint)
    producer = make_producer(settings, transactional_id=f"states-{settings.model_name}")
    appender = BatchAppender(producer)
    random = np.random.default_rng(0)
    try:
        producer.init_transactions()
        producer.begin_transaction()
        futures = []
        for partition, names in enumerate(by_partition):
            states = _random_states(settings, len(names), random)
            values = [tag.encode(state.tobytes()) for state in states]
            keys = [name.encode() for name in names]
            futures += appender.append(settings.kafka.topics.state, partition, keys, values)
        producer.flush()
        check_delivered(futures)
        producer.commit_transaction()
    finally:
        producer.close()


def _random_states(settings: Settings, count: int, random: np.random.Generator) -> States:
    states = blank_states(small_forecaster(settings, hidden_size=HIDDEN_SIZE).config, count)
    assert states.dtype.names is not None
    for name in states.dtype.names:
        field = states[name]
        if field.dtype.kind == "f":
            field[...] = random.uniform(0.1, 0.9, field.shape)
    states["last_us"] = START_US
    states["offset"] = states["origin"] = np.arange(count)
    states["steps"] = states["accepted"] = 1
    states["anchors"][:, -1] = states["offset"]
    return states


def commit_offsets(settings: Settings, offsets: Sequence[int]) -> None:
    """Commit the group's offset of each partition."""
    topic = settings.kafka.topics.readings
    consumer = make_consumer(settings, group_id=settings.forecaster.group_id)
    where = [TopicPartition(topic, partition) for partition in range(len(offsets))]
    consumer.assign(where)
    consumer.commit({each: OffsetAndMetadata(offsets[each.partition], "", -1) for each in where})
    consumer.close()


def _restore(settings: Settings, sensors: int) -> Outcome:
    with ForecastCommand(settings, "bench") as process:
        found = process.wait_for(SERVED, TIMEOUT_S)
        outside_s = time.monotonic() - process.began
        restored, rebuilt, cold = (int(found[group]) for group in (1, 2, 3))
        assert (restored, rebuilt, cold) == (sensors, 0, 0), process.log
        memory = process.memory()
        process.end()
    return Outcome(float(found[4]), outside_s, memory)
