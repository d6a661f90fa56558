"""The audit finds every missing, repeated, unexpected and out-of-order forecast."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.acceptance import ACCEPTED, DUPLICATE, LATE
from pipeline.audit.delivery import REJECTED, DeliveryCounts, ForecastLog, ReadingLog, count_deliveries

SENSORS = ("a", "b", "c")
# (partition, offset, sensor, timestamp_us, verdict)
READINGS = [
    (0, 0, 0, 100, ACCEPTED),
    (0, 1, 1, 100, ACCEPTED),
    (0, 2, 0, 200, ACCEPTED),
    (0, 3, 0, 200, DUPLICATE),
    (0, 4, 0, 150, LATE),
    (0, 6, 1, 300, ACCEPTED),  # offset 5 is a transaction's marker
    (1, 0, 2, 100, ACCEPTED),
    (1, 1, -1, 0, REJECTED),
    (1, 2, 2, 200, ACCEPTED),
]
# (partition, offset, sensor, issued_us, input partition, input offset), as a correct forecaster writes them
FORECASTS = [
    (0, 0, 0, 100, 0, 0),
    (0, 1, 1, 100, 0, 1),
    (0, 3, 0, 200, 0, 2),
    (0, 4, 1, 300, 0, 6),
    (1, 0, 2, 100, 1, 0),
    (1, 1, 2, 200, 1, 2),
]
Row = tuple[int, int, int, int, int, int]


def reading_log() -> ReadingLog:
    table = np.array(READINGS, dtype=np.int64)
    return ReadingLog(
        sensors=SENSORS,
        partition=table[:, 0].astype(np.int32),
        offset=table[:, 1],
        sensor=table[:, 2],
        timestamp_us=table[:, 3],
        values=np.zeros((len(table), 1)),
        sent_ms=np.zeros(len(table), dtype=np.int64),
        verdict=table[:, 4].astype(np.int8),
        reasons={"malformed": 1},
    )


def forecast_log(rows: list[Row], sensors: tuple[str, ...] = SENSORS) -> ForecastLog:
    table = np.array(rows, dtype=np.int64).reshape(-1, 6)
    return ForecastLog(
        sensors=sensors,
        partition=table[:, 0].astype(np.int32),
        offset=table[:, 1],
        sensor=table[:, 2],
        issued_us=table[:, 3],
        input_partition=table[:, 4].astype(np.int32),
        input_offset=table[:, 5],
        version=np.ones(len(table), dtype=np.int64),
        warm=np.ones(len(table), dtype=np.bool_),
        sent_ms=np.zeros(len(table), dtype=np.int64),
    )


def run(rows: list[Row], starts: dict[int, int] | None = None) -> DeliveryCounts:
    return count_deliveries(reading_log(), forecast_log(rows), starts or {})


def test_a_correct_run_is_exactly_once() -> None:
    result = run(FORECASTS)
    assert result.exactly_once
    assert result.examples == {}
    counts = (result.readings, result.accepted, result.duplicates, result.late, result.rejected, result.forecasts)
    assert counts == (9, 6, 1, 1, 1, 6)


def test_sensors_may_have_other_numbers_in_the_forecasts() -> None:
    renumbered = [(p, o, (2, 0, 1)[s], t, ip, io) for p, o, s, t, ip, io in FORECASTS]
    assert count_deliveries(reading_log(), forecast_log(renumbered, ("b", "c", "a")), {}).exactly_once


@pytest.mark.parametrize("missing", range(len(FORECASTS)))
def test_a_missing_forecast_is_counted_as_lost_and_named(missing: int) -> None:
    result = run(FORECASTS[:missing] + FORECASTS[missing + 1 :])
    assert (result.lost, result.twice, result.unexpected) == (1, 0, 0)
    _, _, _, _, partition, offset = FORECASTS[missing]
    assert result.examples == {"lost": [f"partition {partition} offset {offset}"]}


def test_a_repeated_forecast_is_counted_each_time() -> None:
    result = run([*FORECASTS, (1, 2, 2, 200, 1, 2), (1, 3, 2, 200, 1, 2)])
    assert (result.lost, result.twice, result.out_of_order) == (0, 2, 0)
    assert not result.exactly_once


def test_order_is_per_sensor_not_per_partition() -> None:
    a, b, a_again, b_again, *others = FORECASTS
    across_sensors = [(0, 0, *b[2:]), (0, 1, *a[2:]), (0, 2, *b_again[2:]), (0, 3, *a_again[2:]), *others]
    assert run(across_sensors).exactly_once
    swapped = [(0, 0, *a_again[2:]), (0, 1, *b[2:]), (0, 2, *a[2:]), b_again, *others]
    result = run(swapped)
    assert (result.lost, result.twice, result.out_of_order) == (0, 0, 1)
    assert result.examples == {"out of order": ["partition 0 offset 0"]}


@pytest.mark.parametrize(
    "stray",
    [
        pytest.param((0, 9, 0, 200, 0, 3), id="of a duplicate"),
        pytest.param((0, 9, 0, 150, 0, 4), id="of a late reading"),
        pytest.param((1, 9, 2, 100, 1, 1), id="of a rejected reading"),
        pytest.param((0, 9, 0, 100, 0, 5), id="of an offset that holds no reading"),
        pytest.param((0, 9, 1, 200, 0, 2), id="of another sensor"),
        pytest.param((0, 9, 0, 999, 0, 2), id="of another time"),
        pytest.param((1, 9, 0, 200, 0, 2), id="in another partition"),
    ],
)
def test_a_forecast_without_its_accepted_reading_is_unexpected(stray: Row) -> None:
    result = run([*FORECASTS, stray])
    assert (result.lost, result.twice, result.unexpected) == (0, 0, 1)


def test_only_readings_and_forecasts_from_the_start_on_count() -> None:
    starts = {0: 2, 1: 2}
    result = run([row for row in FORECASTS if row[5] >= 2], starts)
    assert result.exactly_once
    assert (result.readings, result.accepted, result.forecasts) == (5, 3, 3)
    assert run(FORECASTS, starts).exactly_once, "forecasts before the start are ignored"
    assert run([], starts).lost == 3


def test_empty_topics_are_exactly_once() -> None:
    nothing = forecast_log([])
    empty = ReadingLog(
        (), *(np.zeros(0, dtype=np.int64) for _ in range(4)), np.zeros((0, 1)), nothing.offset, nothing.offset
    )
    assert count_deliveries(empty, nothing, {}).exactly_once
    assert count_deliveries(empty, forecast_log(FORECASTS), {}).unexpected == len(FORECASTS)


@given(st.lists(st.integers(0, 3), min_size=len(FORECASTS), max_size=len(FORECASTS)))
def test_lost_and_repeated_forecasts_add_up_for_any_copies(copies: list[int]) -> None:
    rows: list[Row] = []
    for row, count in zip(FORECASTS, copies, strict=True):
        rows += [(row[0], len(rows), *row[2:]) for _ in range(count)]
    result = run(rows)
    assert result.lost == sum(count == 0 for count in copies)
    assert result.twice == sum(count - 1 for count in copies if count > 1)
    assert result.forecasts == result.accepted - result.lost + result.twice
    assert result.unexpected == result.out_of_order == 0
