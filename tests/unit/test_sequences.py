"""Steps by the gap rule, slices and labels equal those of plain loops."""

from collections.abc import Iterable, Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.sequences import Sequences, Split, build_sequences, split_by_time

Readings = dict[str, list[int]]  # by sensor: the timestamps of its readings

CADENCE_US = 100
MAX_GAP_STEPS = 4


def sequences_of(readings: Readings, max_gap_steps: int = MAX_GAP_STEPS) -> Sequences:
    """One feature whose value is the reading's offset; offsets count up from 0 over all sensors."""
    counts = [len(moments) for moments in readings.values()]
    timestamp_us = np.array([moment for moments in readings.values() for moment in moments], np.int64)
    offset = np.arange(len(timestamp_us))
    return build_sequences(
        list(readings),
        np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        timestamp_us,
        offset[:, None].astype(np.float64),
        offset,
        features=("level",),
        cadence_us=CADENCE_US,
        max_gap_steps=max_gap_steps,
    )


def step_one_by_one(moments: Iterable[int], offset: int) -> Iterator[tuple[int, int, float, bool]]:
    """(timestamp, offset, elapsed, reset) of every step, by the gap rule one reading at a time."""
    last = None
    for moment in moments:
        if last is None or (missing := _skipped(moment - last)) > MAX_GAP_STEPS:
            yield moment, offset, 0.0, True
        else:
            for _ in range(missing):
                last += CADENCE_US
                yield last, -1, 1.0, False
            yield moment, offset, (moment - last) / CADENCE_US, False
        last = moment
        offset += 1


def _skipped(elapsed: int) -> int:
    skipped = 0
    while elapsed > 1.5 * CADENCE_US:
        elapsed -= CADENCE_US
        skipped += 1
    return skipped


def ascending(max_size: int = 12) -> st.SearchStrategy[list[int]]:
    gaps = st.one_of(st.just(CADENCE_US), st.integers(1, 8 * CADENCE_US))
    return st.lists(gaps, max_size=max_size).map(lambda steps: np.cumsum(steps).tolist())


sensor_readings = st.lists(ascending(), min_size=1, max_size=4).map(
    lambda many: {f"s{number}": moments for number, moments in enumerate(many)}
)


def assert_same(left: Sequences, right: Sequences) -> None:
    assert left.sensors == right.sensors
    for field in ("starts", "timestamp_us", "values", "elapsed", "reset", "observed", "offset"):
        np.testing.assert_array_equal(getattr(left, field), getattr(right, field), err_msg=field)


@given(sensor_readings)
def test_steps_equal_those_of_a_plain_loop(readings: Readings) -> None:
    sequences = sequences_of(readings)
    offset = 0
    for sensor, moments in enumerate(readings.values()):
        lo, hi = sequences.span(sensor)
        expected = list(step_one_by_one(moments, offset))
        found = zip(
            sequences.timestamp_us[lo:hi].tolist(),
            sequences.offset[lo:hi].tolist(),
            sequences.elapsed[lo:hi].tolist(),
            sequences.reset[lo:hi].tolist(),
            strict=True,
        )
        assert [(m, o, pytest.approx(e), r) for m, o, e, r in found] == expected
        offset += len(moments)
    np.testing.assert_array_equal(sequences.observed, sequences.offset >= 0)
    np.testing.assert_array_equal(np.isnan(sequences.values[:, 0]), ~sequences.observed)
    np.testing.assert_array_equal(sequences.values[sequences.observed, 0], sequences.offset[sequences.observed])


@given(sensor_readings, st.integers(0, 3_000), st.integers(0, 3_000))
def test_a_slice_equals_the_steps_of_its_readings(readings: Readings, start_us: int, length_us: int) -> None:
    end_us = start_us + length_us
    whole = sequences_of(readings)
    kept = {sensor: [m for m in moments if start_us <= m < end_us] for sensor, moments in readings.items()}
    sliced, built = whole.slice_time(start_us, end_us), sequences_of(kept)
    np.testing.assert_array_equal(sliced.offset[sliced.observed], sliced.values[sliced.observed, 0])
    for field in ("starts", "timestamp_us", "elapsed", "reset", "observed"):
        np.testing.assert_array_equal(getattr(sliced, field), getattr(built, field), err_msg=field)


@given(sensor_readings)
def test_a_slice_without_bounds_changes_nothing(readings: Readings) -> None:
    whole = sequences_of(readings)
    assert_same(whole.slice_time(), whole)


@given(sensor_readings, st.integers(-4, 9))
def test_labels_are_the_nearest_readings_of_the_same_sensor(readings: Readings, shift: int) -> None:
    sequences = sequences_of(readings)
    for sensor in range(len(sequences.sensors)):
        lo, hi = sequences.span(sensor)
        candidates = [i for i in range(lo, hi) if sequences.observed[i]]
        found = sequences.nearest_step(lo, hi, [shift])[:, 0]
        for step, index in zip(range(lo, hi), found, strict=True):
            wanted = sequences.timestamp_us[step] + shift * CADENCE_US
            distances = {i: abs(int(sequences.timestamp_us[i] - wanted)) for i in candidates}
            nearest = min(candidates, key=lambda i: (distances[i], i), default=-1)
            expected = nearest if nearest >= 0 and 2 * distances[nearest] <= CADENCE_US else -1
            assert index == expected


def test_labels_hold_values_and_stop_at_the_bound() -> None:
    sequences = sequences_of({"a": [0, 100, 200, 500], "b": [0, 100]})
    nan = np.nan
    np.testing.assert_array_equal(sequences.labels(0, 3, [1, 2], [0])[:, 0], [[1, 2], [2, nan], [nan, nan]])
    np.testing.assert_array_equal(sequences.labels(0, 3, [1, 2], [0], until_us=200)[:, 0], [[1, nan]] + [[nan] * 2] * 2)


def test_the_past_holds_one_sensor_up_to_the_bound_without_copies() -> None:
    sequences = sequences_of({"a": [0, 100], "b": [0, 300, 400]})
    past = sequences.past(1, 6)
    assert past.sensors == ("b",)
    assert past.timestamp_us.tolist() == [0, 100, 200, 300]
    assert np.shares_memory(past.values, sequences.values)


def test_a_split_leaves_the_given_fractions() -> None:
    sequences = sequences_of({"a": list(range(0, 1_000, 100)), "b": list(range(0, 1_000, 100))})
    split = split_by_time(sequences, 0.2, 0.1)
    assert split == Split(train_end_us=700, validation_end_us=900)
    assert len(sequences.slice_time(None, split.train_end_us)) == 14
    assert len(sequences.slice_time(split.train_end_us, split.validation_end_us)) == 4


def test_too_few_readings_to_split_are_an_error() -> None:
    with pytest.raises(ValueError, match="too few to split"):
        split_by_time(sequences_of({"a": [0, 100]}), 0.1, 0.1)
    with pytest.raises(ValueError, match="too few different times"):
        split_by_time(sequences_of({f"s{n}": [0] for n in range(20)}), 0.1, 0.1)


def test_stretches_end_at_resets() -> None:
    sequences = sequences_of({"a": [0, 100, 200, 5_000, 5_100], "b": [0, 100]})
    assert sequences.stretches(0) == [(0, 3), (3, 5)]
    assert sequences.stretches(0, 5_100) == [(0, 3), (3, 4)]
    assert sequences.stretches(0, 5_000) == [(0, 3)]
    assert sequences.stretches(1) == [(5, 7)]
    assert sequences.stretches(1, 0) == []
