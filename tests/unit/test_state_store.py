"""The state table holds one row per partition and sensor."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.forecaster.states.table import StateTable

DTYPE = np.dtype([("last_us", "<i8"), ("hidden", "<f4", (2,))])
BLANK = np.array([(-1, (0.0, 0.0))], DTYPE)


def states(*last_us: int) -> np.ndarray:
    made = np.repeat(BLANK, len(last_us))
    made["last_us"] = last_us
    return made


@pytest.fixture
def table() -> StateTable:
    made = StateTable(BLANK)
    made.add_partition(0)
    made.add_partition(3)
    return made


def test_an_unknown_sensor_gets_a_blank_state(table: StateTable) -> None:
    rows = table.rows(0, ["a", "b", "a"])
    assert rows[0] == rows[2] != rows[1]
    assert table.gather(rows).tobytes() == np.repeat(BLANK, 3).tobytes()
    assert len(table) == 2


def test_a_sensor_has_a_row_of_its_own_in_each_partition(table: StateTable) -> None:
    here, there = table.rows(0, ["a"]), table.rows(3, ["a"])
    table.scatter(here, states(7))
    assert table.field("last_us", there).tolist() == [-1]
    assert table.sensors_at([int(here[0]), int(there[0])]) == ["a", "a"]
    assert table.partitions_at(np.concatenate([here, there])).tolist() == [0, 3]


def test_gathered_states_are_a_copy(table: StateTable) -> None:
    rows = table.rows(0, ["a"])
    copy = table.gather(rows)
    copy["last_us"] = 9
    assert table.field("last_us", rows).tolist() == [-1]


def test_rows_of_a_dropped_partition_are_blank_when_used_again(table: StateTable) -> None:
    rows = table.rows(0, [f"sensor-{index}" for index in range(100)])
    table.scatter(rows, states(*range(100)))
    size = table.nbytes
    table.drop_partition(0)
    assert len(table) == 0
    assert table.partitions == {3}
    again = table.rows(3, [f"other-{index}" for index in range(100)])
    assert table.nbytes == size
    assert (table.field("last_us", again) == -1).all()


def test_a_partition_that_is_added_again_is_empty(table: StateTable) -> None:
    table.scatter(table.rows(0, ["a"]), states(5))
    table.add_partition(0)
    assert table.partition_rows(0)[0] == []
    assert table.field("last_us", table.rows(0, ["a"])).tolist() == [-1]


def test_a_partition_that_was_not_added_is_refused(table: StateTable) -> None:
    with pytest.raises(KeyError):
        table.rows(1, ["a"])


def test_the_table_needs_little_more_memory_than_its_states() -> None:
    table = StateTable(BLANK)
    table.add_partition(0)
    table.rows(0, [str(index) for index in range(50_000)])
    assert table.nbytes < 50_000 * (DTYPE.itemsize + 4) * 1.3


@given(
    st.lists(
        st.tuples(st.sampled_from(["put", "drop"]), st.integers(0, 2), st.text("abc", max_size=2), st.integers(0, 99)),
        max_size=60,
    )
)
def test_the_table_behaves_as_a_dict_for_any_actions(actions: list[tuple[str, int, str, int]]) -> None:
    table = StateTable(BLANK)
    expected: dict[int, dict[str, int]] = {}
    for partition in range(3):
        table.add_partition(partition)
        expected[partition] = {}
    for action, partition, sensor, value in actions:
        if action == "drop":
            table.add_partition(partition)
            expected[partition] = {}
        else:
            table.scatter(table.rows(partition, [sensor]), states(value))
            expected[partition][sensor] = value
    for partition, content in expected.items():
        sensors, rows = table.partition_rows(partition)
        assert dict(zip(sensors, table.field("last_us", rows).tolist(), strict=True)) == content
