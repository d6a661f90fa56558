"""The limit of sensors per partition: the same readings are refused in the stream, the history and the audit."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kafka import TopicPartition

from model.acceptance import ACCEPTED
from pipeline.audit.delivery import ReadingLog
from pipeline.audit.scope import set_aside_by_limit
from pipeline.dead_letters import DeadLetter, Republication, _due
from pipeline.forecaster.micro_batch import MicroBatchBuilder
from pipeline.forecaster.readings import Readings
from pipeline.forecaster.states.store import ServedModel
from pipeline.history.table import History
from pipeline.kafka.record_batch import FetchedRecord
from pipeline.messages import encode_reading
from pipeline.sensor_limit import TOO_MANY_SENSORS, limit_detail, limit_in
from pipeline.settings import Settings
from pipeline.windows import load_sequences
from tests.integration.stream_rig import HOUR_US, START_US, small_forecaster

LIMIT = 3
SETTINGS = Settings(features=("a",), targets=("a",), horizon_steps=1, forecaster={"max_sensors_per_partition": LIMIT})
MODEL = small_forecaster(SETTINGS)

streams = st.lists(st.integers(0, 6), min_size=1, max_size=40)  # the sensor of each reading, in offset order


def serving(settings: Settings = SETTINGS) -> ServedModel:
    made = ServedModel(1, MODEL, settings)
    made.table.add_partition(0)
    return made


def readings(sensors: list[int], first_offset: int = 0) -> Readings:
    count = len(sensors)
    names = [f"sensor-{sensor}" for sensor in sensors]
    offsets = np.arange(first_offset, first_offset + count)
    return Readings.of_sensors(0, names, START_US + offsets * HOUR_US, np.zeros((count, 1)), offsets)


def refused(model: ServedModel, part: Readings) -> list[int]:
    classified = model.classify(part)
    return [] if classified.refused is None else classified.refused.offsets.tolist()


def beyond(sensors: list[int], limit: int = LIMIT) -> list[int]:
    """The offsets of readings whose sensor is not among the first ones, by the definition."""
    known: list[int] = []
    found = []
    for offset, sensor in enumerate(sensors):
        if sensor not in known and len(known) >= limit:
            found.append(offset)
        elif sensor not in known:
            known.append(sensor)
    return found


@given(sensors=streams, cut=st.integers(0, 40))
def test_readings_of_new_sensors_beyond_the_limit_are_refused_under_any_cut(sensors: list[int], cut: int) -> None:
    model = serving()
    found = refused(model, readings(sensors[:cut])) + refused(model, readings(sensors[cut:], len(sensors[:cut])))
    assert found == beyond(sensors)


def test_known_sensors_are_exempt_from_a_limit_that_was_set_later() -> None:
    model = serving()
    model.table.rows(0, [f"sensor-{sensor}" for sensor in range(6)])  # as a restore does
    assert refused(model, readings([5, 6, 0, 6, 4])) == [1, 3]
    assert len(model.table) == 6


def test_without_a_limit_no_reading_is_refused() -> None:
    model = serving(SETTINGS.model_copy(update={"forecaster": Settings().forecaster}))
    assert refused(model, readings(list(range(100)))) == []


def test_a_refused_reading_is_a_dead_letter_with_the_limit_and_the_remedy() -> None:
    records = [
        FetchedRecord(*encode_reading(f"sensor-{sensor}", START_US, {"a": 1.0}), offset, [])
        for offset, sensor in enumerate([0, 1, 2, 3])
    ]
    records.insert(2, FetchedRecord(b"sensor-0", b"rubbish", 9, []))
    builder = MicroBatchBuilder(SETTINGS, serving(), "owner")
    batch = builder.build({TopicPartition("readings", 0): records})
    (letters,) = [part for part in batch.records if part.topic == SETTINGS.kafka.topics.dead_letters]
    assert batch.counts.dead_letters == {TOO_MANY_SENSORS: 1, "malformed": 1}
    assert letters.keys == [b"sensor-3", b"sensor-0"]
    assert batch.counts.accepted == 3


def test_the_limit_can_be_read_back_from_the_detail_of_a_letter() -> None:
    detail = limit_detail(10_000, 7)
    assert detail.startswith("too many sensors: limit 10000 of partition 7 ")
    assert limit_in(detail) == 10_000
    assert limit_in("another reason") is None


@given(sensors=streams)
def test_the_audit_sets_the_same_readings_aside_as_the_stream(sensors: list[int]) -> None:
    letters = {(0, offset): LIMIT for offset in beyond(sensors)}
    assert np.flatnonzero(set_aside_by_limit(log(sensors), letters, {})).tolist() == beyond(sensors)


def test_the_audit_does_not_believe_a_letter_of_a_known_sensor_or_below_the_limit() -> None:
    sensors = [0, 1, 0, 2, 3, 4]
    letters = {(0, 2): LIMIT, (0, 3): LIMIT, (0, 5): LIMIT}
    # Sensor 0 was known, and at offset 3 only two sensors were; at offset 5 there were three.
    assert np.flatnonzero(set_aside_by_limit(log(sensors), letters, {})).tolist() == [5]
    # Without the group's first readings, the number of sensors cannot be checked.
    assert np.flatnonzero(set_aside_by_limit(log(sensors), letters, {0: None})).tolist() == [3, 5]


@given(before=streams, sensors=streams)
def test_the_audit_counts_no_sensor_from_before_the_start_of_the_group(before: list[int], sensors: list[int]) -> None:
    letters = {(0, len(before) + offset): LIMIT for offset in beyond(sensors)}
    found = set_aside_by_limit(log(before + sensors), letters, {0: len(before)})
    assert np.flatnonzero(found).tolist() == [offset for _, offset in letters]


def log(sensors: list[int]) -> ReadingLog:
    count = len(sensors)
    zeros = np.zeros(count, np.int64)
    return ReadingLog(
        sensors=tuple(f"sensor-{sensor}" for sensor in range(7)),
        partition=zeros.astype(np.int32),
        offset=np.arange(count),
        sensor=np.array(sensors),
        timestamp_us=np.arange(count),
        values=np.zeros((count, 1)),
        sent_ms=zeros,
        verdict=np.full(count, ACCEPTED, np.int8),
    )


def test_the_history_is_read_without_the_readings_that_the_stream_refuses(tmp_path: Path) -> None:
    sensors = [0, 1, 0, 3, 5, 2, 5, 0, 3, 1]
    history = History(tmp_path / "history", ("a",))
    history.create()
    frame = pl.DataFrame(
        {
            "sensor_id": [f"sensor-{sensor}" for sensor in sensors] * 2,
            "timestamp": [START_US + step * HOUR_US for step in range(len(sensors))] * 2,
            "a": [1.0] * 2 * len(sensors),
            "partition": [0] * len(sensors) + [1] * len(sensors),
            "offset": [*range(len(sensors)), *range(100, 100 + len(sensors))],
        }
    ).filter((pl.col("partition") == 0) | pl.col("sensor_id").is_in(["sensor-2", "sensor-5"]))
    history.append(frame, {0: 10, 1: 110}, "readings")
    sequences = load_sequences(history, SETTINGS)
    assert sequences.sensors == ("sensor-0", "sensor-1", "sensor-2", "sensor-3", "sensor-5")
    observed = {
        name: int(sequences.observed[slice(*sequences.span(number))].sum())
        for number, name in enumerate(sequences.sensors)
    }
    # Partition 0 knows sensors 0, 1 and 3; partition 1 knows 5 and 2.
    assert observed == {"sensor-0": 3, "sensor-1": 2, "sensor-2": 1, "sensor-3": 2, "sensor-5": 2}


@pytest.mark.parametrize(("limit", "published"), [(LIMIT, 0), (LIMIT + 1, 1), (None, 1)])
def test_republish_leaves_a_refused_reading_until_the_limit_is_raised(limit: int | None, published: int) -> None:
    settings = Settings(features=("a",), targets=("a",), forecaster={"max_sensors_per_partition": limit})
    key, value = encode_reading("sensor-9", START_US, {"a": 1.0})
    letter = DeadLetter(0, 0, key, value, (), TOO_MANY_SENSORS, limit_detail(LIMIT, 0), "readings", 0, 5, 0)
    outcome = Republication()
    assert len(list(_due(settings, [letter], outcome))) == published
    assert outcome.still_rejected[TOO_MANY_SENSORS] == 1 - published
