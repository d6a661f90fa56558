"""The rules of acceptance and gaps on arrays equal plain loops over single readings."""

import math
from collections.abc import Iterator
from fractions import Fraction

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from model import acceptance_kernel
from model.acceptance import (
    ACCEPTED,
    DUPLICATE,
    LATE,
    NEVER_US,
    accepted_mask,
    bridge_gaps,
    classify,
    lowest_from_here,
    missing_steps,
    running_maximum,
)

Stream = list[tuple[int, int]]

EARLIEST_US, LATEST_US = -2_208_988_800_000_000, 7_258_118_400_000_000

moments = st.one_of(st.integers(-5, 5), st.integers(EARLIEST_US, LATEST_US))
streams = st.lists(st.tuples(st.integers(0, 4), moments), max_size=60)


def classify_one_by_one(stream: Stream, last: dict[int, int]) -> Iterator[int]:
    last = dict(last)
    for sensor, moment in stream:
        if sensor not in last or moment > last[sensor]:
            last[sensor] = moment
            yield ACCEPTED
        else:
            yield DUPLICATE if moment == last[sensor] else LATE


def arrays(stream: Stream) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    codes = np.array([sensor for sensor, _ in stream], np.int32)
    return codes, np.array([moment for _, moment in stream], np.int64)


@given(streams)
def test_verdicts_equal_those_of_a_plain_loop(stream: Stream) -> None:
    codes, timestamp_us = arrays(stream)
    assert classify(codes, timestamp_us).tolist() == list(classify_one_by_one(stream, {}))


@given(streams, st.dictionaries(st.integers(0, 4), moments))
def test_the_compiled_loop_gives_the_same_verdicts(stream: Stream, last: dict[int, int]) -> None:
    codes, timestamp_us = arrays(stream)
    last_us = np.array([last.get(sensor, NEVER_US) for sensor in range(5)])
    expected = classify(codes, timestamp_us, last_us)
    accepted = expected == ACCEPTED
    newest_us = last_us.copy()
    np.maximum.at(newest_us, codes[accepted], timestamp_us[accepted])
    verdicts = np.empty(len(stream), np.int8)
    counts = acceptance_kernel.classify(codes.astype(np.int64), timestamp_us, last_us, verdicts)
    np.testing.assert_array_equal(verdicts, expected)
    np.testing.assert_array_equal(last_us, newest_us)
    assert counts == (np.count_nonzero(expected == DUPLICATE), np.count_nonzero(expected == LATE))


@given(streams, st.integers(0, 60))
def test_a_stream_cut_in_two_has_the_same_verdicts(stream: Stream, cut: int) -> None:
    codes, timestamp_us = arrays(stream)
    accepted = accepted_mask(codes[:cut], timestamp_us[:cut])
    last_us = np.full(5, NEVER_US)
    np.maximum.at(last_us, codes[:cut][accepted], timestamp_us[:cut][accepted])
    later = classify(codes[cut:], timestamp_us[cut:], last_us)
    assert later.tolist() == list(classify_one_by_one(stream, {}))[cut:]


def test_many_sensors_over_three_centuries_do_not_overflow() -> None:
    sensors = 3_000  # 3,000 sensors times 300 years in microseconds exceed int64
    codes = np.repeat(np.arange(sensors), 3)
    timestamp_us = np.tile(np.array([LATEST_US - 1, EARLIEST_US, LATEST_US - 1]), sensors)
    assert classify(codes, timestamp_us).tolist() == [ACCEPTED, LATE, DUPLICATE] * sensors


@given(st.lists(st.lists(moments, min_size=1, max_size=8), max_size=8))
def test_extremes_within_groups_equal_those_of_slices(values: list[list[int]]) -> None:
    groups = np.repeat(np.arange(len(values)), list(map(len, values)))
    flat = np.array([value for group in values for value in group], np.int64)
    highest = [max(group[: place + 1]) for group in values for place in range(len(group))]
    lowest = [min(group[place:]) for group in values for place in range(len(group))]
    assert running_maximum(groups, flat).tolist() == highest
    assert lowest_from_here(groups, flat).tolist() == lowest


def test_elapsed_time_up_to_one_and_a_half_cadences_skips_no_step() -> None:
    cadence_us = 1_000_000
    elapsed_us = np.array([1, 1_000_000, 1_500_000, 1_500_001, 2_000_000, 2_500_000, 2_500_001, 3_000_000])
    assert missing_steps(elapsed_us, cadence_us).tolist() == [0, 0, 0, 1, 1, 1, 2, 2]


@given(st.integers(1, LATEST_US - EARLIEST_US), st.integers(1, 10**13))
def test_missing_steps_follow_the_formula_exactly(elapsed_us: int, cadence_us: int) -> None:
    cadences = Fraction(elapsed_us, cadence_us)
    expected = 0 if cadences <= Fraction(3, 2) else math.ceil(cadences - Fraction(1, 2)) - 1
    found = int(missing_steps(np.array([elapsed_us]), cadence_us)[0])
    assert found == expected
    if found:
        assert Fraction(1, 2) < cadences - found <= Fraction(3, 2)


def test_a_gap_is_bridged_up_to_the_limit_and_resets_beyond_it() -> None:
    previous_us = np.array([NEVER_US, 0, 0, 0, 0])
    timestamp_us = np.array([7, 100, 250, 400, 401])
    gaps = bridge_gaps(timestamp_us, previous_us, cadence_us=100, max_gap_steps=3)
    assert gaps.missing.tolist() == [0, 0, 1, 3, 3]
    assert gaps.reset.tolist() == [True, False, False, False, False]
    assert gaps.elapsed.tolist() == [0.0, 1.0, 1.5, 1.0, np.float32(1.01)]
    too_long = bridge_gaps(np.array([451, 100_000]), np.array([0, 0]), cadence_us=100, max_gap_steps=3)
    assert too_long.missing.tolist() == [0, 0]
    assert too_long.reset.tolist() == [True, True]
    assert too_long.elapsed.tolist() == [0.0, 0.0]
