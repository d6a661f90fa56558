"""Fleets whose states have seen thousands of readings: young states compress well and flatter the figures.

Some sensors are stepped by the product's stepper. Larger fleets hold copies of their states under other ids, and each
copy gets the readings of its original. The first reading of a sensor in the topic is the last one that its state has
seen; the stream goes on from there.
"""

import zlib
from collections.abc import Sequence
from contextlib import closing
from functools import cache

import numpy as np
from kafka import TopicPartition
from numpy.typing import NDArray

from model.state import NO_OFFSET, States, blank_states
from model.stepper import Stepper
from pipeline.forecaster.positions import POSITION_KEY, Position, PositionRecord, position_owner
from pipeline.kafka.batch_producer import BatchAppender, check_delivered
from pipeline.kafka.clients import make_consumer, make_producer
from pipeline.kafka.topics import find_topic_id
from pipeline.messages import StateTag, encode_reading
from pipeline.settings import Settings
from tests.benchmarks.sides import HIDDEN_SIZE
from tests.integration.stream_rig import START_US, partition_of, small_forecaster

ORIGINALS = 1_000  # sensors that are stepped
READINGS = 2_000  # of every sensor before the stream goes on
ROUND_STEPS = 20  # readings of every sensor in a call of the stepper
BATCH_RECORDS = 20_000  # readings or states between two flushes


def names(sensors: int) -> list[str]:
    """The ids of a fleet."""
    return [f"sensor-{number:06d}" for number in range(sensors)]


def series(settings: Settings, sensors: int, step: int) -> NDArray[np.float64]:
    """(S, F) the values of the originals at a step: a wave, a saw-tooth and noise."""
    noise = np.random.default_rng(step).normal(0, 0.5, (ORIGINALS, len(settings.features)))[:sensors]
    return np.round(np.sin(step / 5 + _phases(settings.features, sensors)) * 10 + step % 11 + noise, 3)


@cache
def _phases(features: Sequence[str], sensors: int) -> NDArray[np.int64]:
    """(S, F) the phase of each wave."""
    return np.array([[zlib.crc32(f"{name}{feature}".encode()) % 7 for feature in features] for name in names(sensors)])


def matured(settings: Settings) -> States:
    """The states of the originals after ``READINGS`` readings."""
    count = ORIGINALS
    forecaster = small_forecaster(settings, hidden_size=HIDDEN_SIZE)
    states = blank_states(forecaster.config, count, settings.adaptation)
    stepper = Stepper(forecaster, settings.adaptation)
    slots = np.tile(np.arange(count), ROUND_STEPS)
    for first in range(0, READINGS, ROUND_STEPS):
        each = range(first, first + ROUND_STEPS)
        steps = np.repeat(np.array(each), count)
        values = np.concatenate([series(settings, count, step) for step in each])
        stepper.step(states, names(count), slots, START_US + steps * settings.cadence_us, values, steps)
    return states


def publish(settings: Settings, sensors: int, steps: int) -> int:
    """Publish the last reading that the states have seen, and then ``steps`` readings of every sensor.

    Return the number of the readings that the states have not seen.
    """
    ids = names(sensors)
    partitions = [partition_of(settings, name) for name in ids]
    producer = make_producer(settings)
    appender = BatchAppender(producer)
    try:
        for step in range(READINGS - 1, READINGS + steps):
            at_us = START_US + step * settings.cadence_us
            values = [
                dict(zip(settings.features, row, strict=True))
                for row in series(settings, min(sensors, ORIGINALS), step).tolist()
            ]
            sent: dict[int, list[tuple[bytes, bytes]]] = {}
            for number, (name, partition) in enumerate(zip(ids, partitions, strict=True)):
                sent.setdefault(partition, []).append(encode_reading(name, at_us, values[number % ORIGINALS]))
            futures = []
            for partition, records in sent.items():
                keys, contents = zip(*records, strict=True)
                futures += appender.append(settings.kafka.topics.readings, partition, keys, contents)
            producer.flush()
            check_delivered(futures)
    finally:
        producer.close()
    return sensors * steps


def give_states(settings: Settings, sensors: int, states: States) -> None:
    """Write the state of every sensor and the positions into the changelog, and commit the positions.

    The positions come after the first reading of each sensor. If the changelog and the group had different positions, a
    forecaster would write all states again.
    """
    ids = names(sensors)
    by_partition: list[list[int]] = [[] for _ in range(settings.kafka.partitions)]
    for number, name in enumerate(ids):
        by_partition[partition_of(settings, name)].append(number)
    tag = StateTag(1, settings.fingerprint)
    owner = position_owner(settings.forecaster.group_id, find_topic_id(settings, settings.kafka.topics.readings))
    producer = make_producer(settings, transactional_id=f"states-{settings.forecaster.group_id}")
    appender = BatchAppender(producer)
    try:
        producer.init_transactions()
        for partition, numbers in enumerate(by_partition):
            for first in range(0, len(numbers), BATCH_RECORDS):
                mine = numbers[first : first + BATCH_RECORDS]
                copies = states[np.array(mine) % ORIGINALS]
                copies["last_us"] = START_US + (READINGS - 1) * settings.cadence_us
                copies["offset"] = copies["origin"] = np.arange(first, first + len(mine))
                copies["anchors"] = NO_OFFSET
                copies["anchors"][:, -1] = copies["offset"]
                producer.begin_transaction()
                values = [tag.encode(state.tobytes()) for state in copies]
                keys = [ids[number].encode() for number in mine]
                futures = appender.append(settings.kafka.topics.state, partition, keys, values)
                producer.flush()
                check_delivered(futures)
                producer.commit_transaction()
            position = PositionRecord(Position(len(numbers)), owner).encode()
            producer.begin_transaction()
            futures = appender.append(settings.kafka.topics.state, partition, [POSITION_KEY], [position])
            producer.flush()
            check_delivered(futures)
            producer.commit_transaction()
    finally:
        producer.close()
    with closing(make_consumer(settings, group_id=settings.forecaster.group_id)) as consumer:
        topic = settings.kafka.topics.readings
        positions = {TopicPartition(topic, at): Position(len(mine)) for at, mine in enumerate(by_partition)}
        consumer.assign(list(positions))
        consumer.commit({where: position.to_commit() for where, position in positions.items()})
