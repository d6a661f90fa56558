"""One poll becomes the records of a transaction, in the order that a restore needs."""

import numpy as np
import pytest
from kafka import TopicPartition

from pipeline.forecaster.micro_batch import MicroBatch, MicroBatchBuilder
from pipeline.forecaster.positions import POSITION_KEY, Position, PositionRecord
from pipeline.forecaster.states.store import ServedModel
from pipeline.kafka.record_batch import FetchedRecord
from pipeline.messages import encode_reading
from pipeline.settings import Settings
from tests.integration.stream_rig import HOUR_US, START_US, small_forecaster

SETTINGS = Settings(horizon_steps=1, forecaster={"adaptation": "off", "calibration": False})
FORECASTER = small_forecaster(SETTINGS, seed=1, hidden_size=4)
TOPICS = SETTINGS.kafka.topics
SENSORS = ("a", "b")


@pytest.fixture
def serving() -> ServedModel:
    made = ServedModel(1, FORECASTER, SETTINGS)
    for partition in range(3):
        made.table.add_partition(partition)
    return made


def polled(partition: int, step: int) -> dict[TopicPartition, list[FetchedRecord]]:
    """One reading of every sensor, and after them a record that does not decode."""
    sent = [encode_reading(sensor, START_US + step * HOUR_US, {"value": 1.0}) for sensor in SENSORS]
    records = [*sent, (b"a", b"rubbish")]
    first = step * len(records)
    return {
        TopicPartition(TOPICS.readings, partition): [
            FetchedRecord(key, value, offset, []) for offset, (key, value) in enumerate(records, first)
        ]
    }


def changelog(batch: MicroBatch, partition: int) -> list[bytes | None]:
    """The keys that a batch appends to the changelog of a partition, in order."""
    return [
        key
        for records in batch.records
        if (records.topic, records.partition) == (TOPICS.state, partition)
        for key in records.keys
    ]


def test_the_position_of_a_partition_follows_its_states(serving: ServedModel) -> None:
    builder = MicroBatchBuilder(SETTINGS, serving, "group")
    batch = builder.build(polled(0, 0) | polled(1, 0))
    for partition in (0, 1):
        *states, position = changelog(batch, partition)
        assert (set(states), position) == ({b"a", b"b"}, POSITION_KEY)
    assert changelog(batch, 2) == []
    position_records = [records.values[0] for records in batch.records if list(records.keys) == [POSITION_KEY]]
    assert [PositionRecord.decode(value) for value in position_records] == [PositionRecord(Position(3), "group")] * 2


def test_the_position_of_a_full_write_follows_all_states_of_the_partition(serving: ServedModel) -> None:
    builder = MicroBatchBuilder(SETTINGS, serving, "group")
    before = builder.build(polled(0, 0))
    assert before.stepped is not None
    serving.table.scatter(before.stepped.rows, before.stepped.states)
    batch = builder.build(polled(1, 0), needs_full_write={0: 3})
    *states, position = changelog(batch, 0)
    assert (sorted(states), position) == ([b"a", b"b"], POSITION_KEY)
    assert batch.positions == {0: Position(3), 1: Position(3)}


def test_a_full_write_keeps_no_texts_of_its_sensors(serving: ServedModel) -> None:
    before = MicroBatchBuilder(SETTINGS, serving, "group").build(polled(0, 0))
    assert before.stepped is not None
    serving.table.scatter(before.stepped.rows, before.stepped.states)
    builder = MicroBatchBuilder(SETTINGS, serving, "group")
    batch = builder.build({}, needs_full_write={0: 3})
    written = next(records for records in batch.records if records.topic == TOPICS.state)
    for key, value in zip(written.keys, written.values, strict=True):
        assert key is not None
        rows = serving.table.rows(0, [key.decode()])
        assert value == serving.tag.encode(serving.table.gather(rows).tobytes())
    assert not builder._encoder._sensors


def test_a_batch_without_readings_moves_only_the_position(serving: ServedModel) -> None:
    where = TopicPartition(TOPICS.readings, 0)
    batch = MicroBatchBuilder(SETTINGS, serving, "group").build({where: [FetchedRecord(b"a", b"rubbish", 7, [])]})
    assert changelog(batch, 0) == [POSITION_KEY]
    assert {records.topic for records in batch.records} == {TOPICS.dead_letters, TOPICS.state}
    assert batch.positions == {0: Position(8)}


def test_building_a_batch_changes_no_state(serving: ServedModel) -> None:
    builder = MicroBatchBuilder(SETTINGS, serving, "group")
    builder.build(polled(0, 0))
    _, rows = serving.table.partition_rows(0)
    assert np.array_equal(serving.table.gather(rows), serving.table.blank(len(rows)))
