"""Records with outlooks of groups are cut before they make too many entries or too large a transaction."""

import logging
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kafka import TopicPartition

from pipeline.forecaster.group_limit import GroupLimit, _Polled
from pipeline.forecaster.states.table import StateTable
from pipeline.kafka.record_batch import FetchedRecord
from pipeline.settings import Settings
from tests.outlook_streams import MEMBERS, PARTITION_OF, SETTINGS, Event, events
from tests.outlook_streams import Stream as Topic
from tests.unit.test_outlook_stream import served

ALL = SETTINGS.model_copy(update={"outlooks": SETTINGS.outlooks.model_copy(update={"groups": {"city": ("s0", "s1")}})})


def at(partition: int) -> TopicPartition:
    return TopicPartition(SETTINGS.kafka.topics.readings, partition)


def table_with_sensors() -> StateTable:
    table = served().table
    for sensor, partition in PARTITION_OF.items():
        table.rows(partition, [sensor])
    return table


def offsets(records: Sequence[FetchedRecord]) -> list[int]:
    return [record.offset for record in records]


def test_a_run_is_cut_before_the_outlook_with_too_many_entries() -> None:
    made = [Event("city", 0, True), Event("s0", 0, False), Event("city", 1, True), Event("s0", 1, True)]
    records = Topic.of([*made, Event("city", 2, True)]).records[0]
    for most, expected in ((1, [[0, 1], [2, 3], [4]]), (4, [[0, 1, 2, 3], [4]]), (6, [[0, 1, 2, 3, 4]])):
        limit = GroupLimit(ALL, most_entries=most)
        assert [offsets(piece) for piece in limit.pieces(records, 2)] == expected
    assert len(list(GroupLimit(Settings(), most_entries=1).pieces(records, 2))) == 1, "no groups"
    assert [list(piece) for piece in GroupLimit(ALL).pieces([], 2)] == [[]], "an empty poll is one piece"


def test_a_sensor_with_the_name_of_a_group_is_not_counted() -> None:
    records = Topic.of([Event("s0", hour, False) for hour in range(5)]).records[0]
    named = ALL.model_copy(update={"outlooks": ALL.outlooks.model_copy(update={"groups": {"s0": MEMBERS}})})
    assert len(list(GroupLimit(named, most_entries=1).pieces(records, 2))) == 1


def test_only_sensors_that_a_partition_can_have_count() -> None:
    many = tuple(f"other{number}" for number in range(1_000))
    large = ALL.model_copy(update={"outlooks": ALL.outlooks.model_copy(update={"groups": {"city": many}})})
    records = Topic.of([Event("city", hour, True) for hour in range(4)]).records[0]
    assert len(list(GroupLimit(large, most_entries=24).pieces(records, 2))) == 1
    assert len(list(GroupLimit(large, most_entries=23).pieces(records, 2))) == 2


def test_a_transaction_takes_the_states_of_further_partitions_later() -> None:
    topic = Topic.of([Event("s0", 0, False), Event("s2", 0, False), *(Event("city", hour, True) for hour in range(3))])
    polled = {at(partition): records for partition, records in topic.records.items()}
    kept, later = GroupLimit(SETTINGS, most_bytes=1).cut(polled, table_with_sensors())
    assert {where.partition: offsets(records) for where, records in kept.items()} == {0: [0, 1, 2, 3], 1: [0]}
    assert later == {at(1): 1}
    kept, later = GroupLimit(SETTINGS).cut(polled, table_with_sensors())
    assert (kept, later) == (polled, {})


def test_one_outlook_with_large_states_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    records = Topic.of([Event("city", 0, True), Event("city", 1, True)]).records[0]
    limit, table = GroupLimit(ALL, most_bytes=1), table_with_sensors()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert limit.cut({at(0): records}, table) == ({at(0): records}, {})
    (warning,) = caplog.messages
    assert "group 'city' changes the states of its 2 sensors in partition 0" in warning
    assert "more partitions" in warning


@settings(deadline=None)
@given(events, st.integers(1, 6), st.sampled_from([1, 1_000_000]))
def test_cuts_lose_no_record_and_always_advance(made: list[Event], most_entries: int, most_bytes: int) -> None:
    topic, table = Topic.of(made), table_with_sensors()
    limit = GroupLimit(SETTINGS, most_entries, most_bytes)
    for records in topic.records.values():
        assert [one for piece in limit.pieces(records, 2) for one in piece] == records
    done: dict[int, list[int]] = {0: [], 1: []}
    waiting: _Polled = {at(partition): records for partition, records in topic.records.items() if records}
    while waiting:
        kept, later = limit.cut(waiting, table)
        assert kept
        for where, records in kept.items():
            done[where.partition] += offsets(records)
        waiting = {where: topic.records[where.partition][offset:] for where, offset in later.items()}
    assert done == {partition: offsets(records) for partition, records in topic.records.items()}
