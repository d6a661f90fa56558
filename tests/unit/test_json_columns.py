"""The texts of a column are the texts that msgspec writes for each value alone."""

import msgspec
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.messages import EARLIEST_TIMESTAMP_US, LATEST_TIMESTAMP_US, iso_timestamp
from pipeline.text.json_columns import float_rows, float_texts, integer_texts, time_texts

NUMBERS = st.floats(-1e30, 1e30) | st.sampled_from([1e17, -1e16, 1e21, 5e-324, -0.0, 123456789012345680.0])


@given(st.lists(NUMBERS | st.just(float("nan"))))
def test_floats_are_spelled_as_msgspec_spells_them(numbers: list[float]) -> None:
    expected = [msgspec.json.encode(None if number != number else number) for number in numbers]
    assert float_texts(np.array(numbers, np.float64)) == expected


@given(st.lists(st.tuples(NUMBERS, NUMBERS)))
def test_the_numbers_of_a_row_are_separated_by_commas(rows: list[tuple[float, float]]) -> None:
    array = np.array(rows, np.float64).reshape(-1, 2)
    assert float_rows(array) == [msgspec.json.encode(row)[1:-1] for row in rows]
    assert float_texts(array) == [text for row in float_rows(array) for text in row.split(b",")]


def test_single_precision_keeps_its_few_digits() -> None:
    assert float_texts(np.array([0.1, 1e17], np.float32)) == [b"0.1", b"1e17"]


@given(st.lists(st.integers(EARLIEST_TIMESTAMP_US, LATEST_TIMESTAMP_US - 1)))
def test_times_and_integers_are_spelled_as_messages_spell_them(times: list[int]) -> None:
    column = np.array(times, np.int64)
    assert integer_texts(column) == [b"%d" % time for time in times]
    assert time_texts(column) == [iso_timestamp(time).encode() for time in times]
