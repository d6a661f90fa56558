"""Surprise: the distance of a reading to its interval, in widths of the interval."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.surprise import LARGEST_SURPRISE, largest_surprise, surprise

NAN = float("nan")
numbers = st.floats(-(2.0**99), 2.0**99, width=32)


@pytest.mark.parametrize(
    ("value", "low", "high", "expected"),
    [
        (5, 0, 10, 0),
        (0, 0, 10, 0),
        (10, 0, 10, 0),
        (15, 0, 10, 0.5),
        (-20, 0, 10, 2),
        (NAN, 0, 10, NAN),
        (5, 0, NAN, NAN),
    ],
)
def test_surprise_counts_widths_outside_the_interval(value: float, low: float, high: float, expected: float) -> None:
    np.testing.assert_allclose(surprise(value, low, high), expected)


def test_a_point_interval_gives_a_finite_surprise() -> None:
    assert surprise(3.0, 3.0, 3.0) == 0.0
    assert surprise(4.0, 3.0, 3.0) == LARGEST_SURPRISE
    assert surprise(1.0, 0.0, 0.0) == LARGEST_SURPRISE


@given(numbers, numbers, numbers)
def test_surprise_is_finite_and_zero_exactly_inside(value: float, one: float, other: float) -> None:
    low, high = min(one, other), max(one, other)
    found = float(surprise(value, low, high))
    assert 0.0 <= found <= LARGEST_SURPRISE
    if low <= value <= high:
        assert found == 0.0


def test_the_largest_surprise_names_its_target_and_ignores_missing_ones() -> None:
    found, target = largest_surprise(np.array([[0.0, 2.0], [NAN, 0.5], [NAN, NAN]]))
    np.testing.assert_array_equal(found, [2.0, 0.5, NAN])
    assert target[:2].tolist() == [1, 1]
