"""Outlooks lie on a grid, and a step sees the newest accepted one whose record came before its own."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.ahead_inputs import AheadInputs, fit_standard
from model.config import ModelConfig
from model.known_ahead import CalendarCovariate, OutlookConfig
from model.outlooks import (
    ACCEPTED,
    NO_ISSUE_US,
    NO_OUTLOOK,
    OUTDATED,
    WITHOUT_STATE,
    AsOf,
    Outlooks,
    Records,
    as_of,
    lay_on_grid,
)
from tests.series import CONFIG, HOUR_US, joined

WEATHER = OutlookConfig(("TEMP", "WSPM"), 4)
NAN = np.nan


def hours(*numbers: float) -> np.ndarray:
    return (np.array(numbers) * HOUR_US).astype(np.int64)


# --- the grid ---------------------------------------------------------------------------------------------------------


def test_each_entry_of_an_outlook_lies_in_the_nearest_cell() -> None:
    grid = lay_on_grid(WEATHER, HOUR_US, hours(10, 11.4, 12.6), np.array([[1.0, NAN], [2.0, 20.0], [3.0, 30.0]]))
    assert grid.first_us == 10 * HOUR_US
    assert grid.dropped == 0
    np.testing.assert_array_equal(grid.values, np.array([[1, NAN], [2, 20], [NAN, NAN], [3, 30]], np.float32))


def test_the_last_of_several_entries_for_a_cell_stays() -> None:
    grid = lay_on_grid(WEATHER, HOUR_US, hours(10, 11, 11.25, 10.25), np.array([[1, 1], [2, 2], [3, NAN], [4, 4]]))
    np.testing.assert_array_equal(grid.values[:2], np.array([[4, 4], [3, NAN]], np.float32))


def test_entries_beyond_the_last_cell_are_dropped_and_counted() -> None:
    grid = lay_on_grid(WEATHER, HOUR_US, hours(14, 10, 13.4, 13.5), np.arange(8.0).reshape(4, 2))
    assert grid.first_us == 10 * HOUR_US
    assert grid.dropped == 2
    np.testing.assert_array_equal(grid.values[[0, 3]], np.array([[2, 3], [4, 5]], np.float32))


def test_a_step_sees_the_cells_from_its_own_time_on() -> None:
    config = replace(CONFIG, outlook=WEATHER, horizon_steps=2)
    cells = np.arange(8, dtype=np.float32).reshape(1, 4, 2)
    cells[0, 3, 1] = NAN
    standard = np.array([[0.0, 1.0], [1.0, 2.0]])
    times = hours(8, 9, 10, 11.4, 12, 13, 14, 10)
    row = np.array([0, 0, 0, 0, 0, 0, 0, NO_OUTLOOK], np.int32)
    inputs = AheadInputs(config, standard, torch.device("cpu"))
    found = inputs.of_arrays(times, Outlooks(hours(9), hours(10), cells), row).numpy()
    values, masks, age = found[:, :6].reshape(8, 3, 2), found[:, 6:12].reshape(8, 3, 2), found[:, 12]
    first = [[0, 0, 0], [0, 0, 2], [0, 2, 4], [2, 4, 6], [4, 6, 0], [6, 0, 0], [0, 0, 0], [0, 0, 0]]
    np.testing.assert_array_equal(values[:, :, 0], first)
    seen = [[0, 0, 1], [0, 1, 1], [1, 1, 1], [1, 1, 1], [1, 1, 0], [1, 0, 0], [0, 0, 0], [0, 0, 0]]
    np.testing.assert_array_equal(masks[:, :, 0], seen)
    np.testing.assert_array_equal(values[2, :, 1], [0, 1, 2])
    np.testing.assert_array_equal(masks[3, :, 1], [1, 1, 0])  # the missing value
    np.testing.assert_allclose(age, [0, 0, 1 / 3, 2.4 / 4.4, 3 / 5, 4 / 6, 5 / 7, 1], rtol=1e-6)


def test_a_state_without_an_outlook_sees_none() -> None:
    config = replace(CONFIG, outlook=WEATHER)
    inputs = AheadInputs(config, np.array([[0.0, 0.0], [1.0, 1.0]]), torch.device("cpu"))
    blank = Outlooks(np.array([NO_ISSUE_US]), np.zeros(1, np.int64), np.ones((1, 4, 2), np.float32))
    for outlooks in (blank, Outlooks.none(WEATHER), None):
        row = np.zeros(1, np.int32) if outlooks is blank else np.full(1, NO_OUTLOOK, np.int32)
        found = inputs.of_arrays(hours(0), outlooks, row)
        assert found.tolist() == [[0.0] * (4 * (config.horizon_steps + 1)) + [1.0]]


def test_values_are_standardised_by_the_outlooks_of_the_training_part() -> None:
    sequences = joined([hours(0, 1, 2, 3)], [np.ones((4, 2))], CONFIG.features, HOUR_US, max_gap_steps=24)
    cells = np.full((3, 4, 2), NAN, np.float32)
    cells[:, :2, 0] = [[1, 3], [5, 7], [99, 99]]
    cells[:, 0, 1] = 4.0
    seen = AsOf(np.array([-1, 0, 1, 2], np.int32), np.zeros(3, np.int8), np.array([2], np.int32))
    known = sequences.with_outlooks(Outlooks(hours(0, 1, 2), hours(1, 2, 3), cells), seen)
    standard = fit_standard(WEATHER, known, 3 * HOUR_US)
    np.testing.assert_allclose(standard, [[4.0, 4.0], [np.std([1, 3, 5, 7]), 1.0]])
    np.testing.assert_array_equal(fit_standard(WEATHER, sequences, 3 * HOUR_US), [[0, 0], [1, 1]])


# --- which outlook a step sees ----------------------------------------------------------------------------------------


def joined_in_turn(
    readings: Records, reset: np.ndarray, outlooks: Records, issued_us: np.ndarray, exists: np.ndarray
) -> AsOf:
    """The rule of ``as_of``, one record after the other."""
    row, verdict = np.full(len(reset), NO_OUTLOOK), np.zeros(len(issued_us))
    carried = np.full(len(exists), NO_OUTLOOK)
    alive = exists.copy()
    events = [(int(p), 1, i) for i, p in enumerate(readings.position)]
    events += [(int(p), 0, i) for i, p in enumerate(outlooks.position)]
    for _, is_reading, i in sorted(events):
        if is_reading:
            sensor = readings.sensor[i]
            if reset[i]:
                carried[sensor] = NO_OUTLOOK
            alive[sensor] = True
            row[i] = carried[sensor]
            continue
        sensor = outlooks.sensor[i]
        newer = carried[sensor] == NO_OUTLOOK or issued_us[i] > issued_us[carried[sensor]]
        verdict[i] = WITHOUT_STATE if not alive[sensor] else ACCEPTED if newer else OUTDATED
        if verdict[i] == ACCEPTED:
            carried[sensor] = i
    return AsOf(row.astype(np.int32), verdict.astype(np.int8), carried.astype(np.int32))


@st.composite
def records(draw: st.DrawFn) -> tuple[Records, np.ndarray, Records, np.ndarray, np.ndarray]:
    count = draw(st.integers(1, 3))
    exists = np.array(draw(st.lists(st.booleans(), min_size=count, max_size=count)))
    kinds = draw(st.lists(st.tuples(st.booleans(), st.integers(0, count - 1), st.booleans()), max_size=30))
    of_readings = [(sensor, at, reset) for at, (reads, sensor, reset) in enumerate(kinds) if reads]
    of_outlooks = [(sensor, at) for at, (reads, sensor, _) in enumerate(kinds) if not reads]
    seen = {sensor for sensor in range(count) if exists[sensor]}
    resets = []
    for sensor, _, reset in of_readings:
        resets.append(reset or sensor not in seen)
        seen.add(sensor)
    issued = draw(st.lists(st.integers(0, 6), min_size=len(of_outlooks), max_size=len(of_outlooks)))
    return (
        Records(np.array([s for s, _, _ in of_readings], int), np.array([p for _, p, _ in of_readings], np.int64)),
        np.array(resets, bool),
        Records(np.array([s for s, _ in of_outlooks], int), np.array([p for _, p in of_outlooks], np.int64)),
        np.array(issued, np.int64),
        exists,
    )


@given(given_records=records())
def test_a_step_sees_the_newest_accepted_outlook_before_it(given_records: Any) -> None:
    found, expected = as_of(*given_records), joined_in_turn(*given_records)
    np.testing.assert_array_equal(found.row, expected.row)
    np.testing.assert_array_equal(found.verdict, expected.verdict)
    np.testing.assert_array_equal(found.last, expected.last)


def test_readings_released_by_one_record_see_the_same_outlook() -> None:
    readings = Records(np.zeros(4, int), np.array([3, 9, 9, 9]))
    found = as_of(
        readings, np.array([True, False, False, False]), Records(np.zeros(2, int), np.array([5, 10])), hours(1, 2),
        np.zeros(1, bool),
    )  # fmt: skip
    assert found.row.tolist() == [NO_OUTLOOK, 0, 0, 0]
    assert found.last.tolist() == [1]


def test_inserted_steps_have_the_outlook_of_their_reading_and_a_later_beginning_forgets_it() -> None:
    sequences = joined([hours(0, 3, 4, 5), hours(1, 2)], [np.ones((4, 2)), np.ones((2, 2))], CONFIG.features, HOUR_US,
                       max_gap_steps=24)  # fmt: skip
    cells = np.zeros((3, 4, 2), np.float32)
    seen = AsOf(np.array([-1, 0, 0, 1, -1, 2], np.int32), np.zeros(3, np.int8), np.array([1, 2], np.int32))
    known = sequences.with_outlooks(Outlooks(hours(0, 1, 2), hours(0, 1, 2), cells), seen)
    assert known.outlook is not None
    assert known.outlook.tolist() == [-1, 0, 0, 0, 0, 1, -1, 2]
    later = known.slice_time(4 * HOUR_US)
    assert later.outlook is not None
    assert later.outlook.tolist() == [-1, 1]
    past = known.past(0, 5)
    assert past.outlook is not None
    assert past.outlook.tolist() == [-1, 0, 0, 0, 0]


def test_an_inserted_step_has_no_outlook_that_was_issued_after_it() -> None:
    sequences = joined([hours(0, 4)], [np.ones((2, 2))], CONFIG.features, HOUR_US, max_gap_steps=24)
    seen = AsOf(np.array([-1, 0], np.int32), np.zeros(1, np.int8), np.zeros(1, np.int32))
    for issued, expected in ((2, [-1, -1, 0, 0, 0]), (2.5, [-1, -1, -1, 0, 0]), (9, [-1, -1, -1, -1, 0])):
        outlooks = Outlooks(hours(issued), hours(3), np.zeros((1, 4, 2), np.float32))
        known = sequences.with_outlooks(outlooks, seen)
        assert known.outlook is not None
        assert known.outlook.tolist() == expected


# --- the configuration ------------------------------------------------------------------------------------------------

NEW_YEAR = CalendarCovariate("holiday", (1_483_228_800, 1_483_315_200, 1_514_764_800, 1_514_851_200))


def test_a_calendar_covariate_is_1_between_the_changes_of_each_pair() -> None:
    times = np.array([0, 1_483_228_799, 1_483_228_800, 1_483_315_199, 1_483_315_200, 1_514_764_800, 2**33]) * 1_000_000
    np.testing.assert_array_equal(NEW_YEAR.at(times), np.array([0, 0, 1, 1, 0, 1, 0], np.float32))


def test_a_configuration_keeps_its_covariates_and_names_none_without_them() -> None:
    groups = (("city", ("s0", "s1")),)
    config = replace(CONFIG, calendar=(NEW_YEAR,), outlook=replace(WEATHER, groups=groups))
    assert ModelConfig.from_dict(json.loads(config.to_json())) == config
    assert not {"calendar", "outlook"} & json.loads(CONFIG.to_json()).keys()
    assert config.knows_ahead
    assert not CONFIG.knows_ahead


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"calendar": [{"name": "a", "changes_s": [1, 2, 3]}]}, "in pairs"),
        ({"calendar": [{"name": "a", "changes_s": [2, 1]}]}, "must ascend"),
        ({"calendar": [{"name": "a", "changes_s": [1, 1e9]}]}, "whole numbers"),
        ({"calendar": [{"name": "a", "changes_s": [1, 2**60]}]}, "Unix times"),
        ({"calendar": [{"name": "", "changes_s": []}]}, "needs a name"),
        ({"calendar": [{"name": "a", "changes_s": []}] * 2}, "each covariate once"),
        ({"calendar": [{"name": "a"}]}, "not a model configuration"),
        ({"calendar": 5}, "not a model configuration"),
        ({"calendar": ["a"]}, "not a model configuration"),
        ({"outlook": {"covariates": [], "steps": 2}}, "at least one name"),
        ({"outlook": {"covariates": ["a", "a"], "steps": 2}}, "each name once"),
        ({"outlook": {"covariates": ["a"], "steps": 0}}, "at least 1"),
        ({"outlook": {"covariates": ["a"], "steps": 2.5}}, "whole number"),
        ({"outlook": {"covariates": ["a"], "steps": 2, "groups": [["g", []]]}}, "at least one sensor"),
        ({"outlook": {"covariates": ["a"], "steps": 2, "groups": [["g", ["s"]], ["g", ["t"]]]}}, "different names"),
        ({"outlook": {"covariates": ["a"]}}, "not a model configuration"),
        ({"outlook": "a"}, "not a model configuration"),
    ],
)
def test_invalid_covariates_are_refused_by_name(change: dict[str, Any], message: str) -> None:
    content = json.loads(CONFIG.to_json()) | change
    with pytest.raises(ValueError, match=message):
        ModelConfig.from_dict(content)
