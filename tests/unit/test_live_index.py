"""The live index: rows of sensors, places of records, live scores."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.live.delays import DelayCounts
from pipeline.live.forecast_head import ForecastHead
from pipeline.live.index import LiveIndex
from pipeline.live.rates import STEP_S, STEPS, RateSeries
from pipeline.live.record_log import NO_ENTRY, ForecastPlaces, RecentReadings
from pipeline.live.scores import BUCKETS, Judged, ScoreSeries
from pipeline.live.sensor_table import SensorTable

CADENCE_US = 60_000_000
ids = st.text(min_size=1, max_size=6).map(lambda text: text.encode(errors="replace"))


# --- sensors ----------------------------------------------------------------------------------------------------------


@given(st.lists(ids, max_size=200))
def test_each_sensor_has_one_row_in_order_of_arrival(sensors: list[bytes]) -> None:
    table, expected = SensorTable(), list(dict.fromkeys(sensors))
    for sensor in sensors:
        assert table.find_or_add(sensor) == expected.index(sensor)
    assert [table.id_of(row) for row in range(len(table))] == expected
    assert all(table.find(sensor) == row for row, sensor in enumerate(expected))
    assert table.find(b"never seen, and longer") is None
    order = [expected[row] for row in np.argsort(table.copy_ids().ranks())]
    assert order == sorted(expected)


@given(st.lists(ids, max_size=50, unique=True), st.binary(max_size=3))
def test_a_search_finds_the_ids_that_contain_the_text(sensors: list[bytes], text: bytes) -> None:
    table = SensorTable()
    for sensor in sensors:
        table.find_or_add(sensor)
    expected = [row for row, sensor in enumerate(sensors) if text.lower() in sensor.lower()]
    assert table.copy_ids().search(text).tolist() == expected


def test_the_table_grows_beyond_its_first_slots() -> None:
    table = SensorTable()
    names = [f"sensor-{number}".encode() for number in range(5_000)]
    for name in names:
        table.find_or_add(name)
    assert [table.find(name) for name in names] == list(range(5_000))


# --- places -----------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 3), max_size=60), st.integers(1, 20))
def test_places_lead_back_to_the_latest_entries_of_the_same_sensor(sensors: list[int], entries: int) -> None:
    places, newest = ForecastPlaces(entries), dict.fromkeys(range(4), NO_ENTRY)
    for offset, sensor in enumerate(sensors):
        one = np.array([offset])
        (newest[sensor],) = places.append(one * 0 + sensor, one, one + 100, np.array([newest[sensor]])).tolist()
    kept = list(enumerate(sensors))[-entries:]
    for sensor in range(4):
        found = places.walk_back(newest[sensor], 1_000)
        assert [(place.partition, place.offset) for place in found] == [
            (sensor, offset) for offset, of in reversed(kept) if of == sensor
        ]
        assert all(place.reading_offset == place.offset + 100 for place in found)


def test_a_reading_is_found_until_a_later_one_takes_its_place() -> None:
    readings = RecentReadings(2, 8, 1)
    for offset in range(6):
        readings.add(1, offset, 1_000 + offset, (float(offset),))
    values, sent_ms = readings.find(np.array([1, 1, 0]), np.array([5, 1, 5]))
    assert values[0] == 5.0
    assert sent_ms.tolist() == [1_005, -1, -1]
    assert np.isnan(values[1:]).all()


# --- rows -------------------------------------------------------------------------------------------------------------


def index() -> LiveIndex:
    return LiveIndex(targets=1, partitions=2, cadence_us=CADENCE_US, places=100, readings=100)


def head(sensor: str, step: int, offset: int, low: float = 0.0, high: float = 10.0, partition: int = 0) -> ForecastHead:
    return ForecastHead(
        sensor.encode(), partition, offset, 5_000, step * CADENCE_US, 1, True, partition, offset, (low, 5.0, high)
    )


NEVER_LIVE = np.array([1_000, 1_000])


def test_a_reading_is_judged_by_the_forecast_of_the_step_before() -> None:
    rows = index()
    rows.readings.add(0, 0, 1_000, (4.0,))
    rows.readings.add(0, 1, 2_000, (15.0,))
    rows.add([head("a", 1, 0)], 9_000, np.zeros(2, np.int64))
    found = rows.add([head("a", 2, 1)], 9_000, np.zeros(2, np.int64))
    assert found.surprise.tolist() == [0.5]
    assert (found.low[0], found.median[0], found.high[0], found.value[0]) == (0.0, 5.0, 10.0, 15.0)
    assert found.delay_ms.tolist() == [3_000]  # the forecast was sent at 5,000 ms
    row = rows.rows[0]
    assert (row["surprise"], row["count"], row["error"], row["persistence_error"]) == (0.5, 2, 10.0, 11.0)


def test_the_delay_ends_with_the_arrival_unless_this_process_is_behind() -> None:
    for arrived_ms, delay_ms in ((5_200, 4_200), (60_000, 4_000)):
        rows = index()
        rows.readings.add(0, 0, 1_000, (4.0,))
        assert rows.add([head("a", 1, 0)], arrived_ms, np.zeros(2, np.int64)).delay_ms.tolist() == [delay_ms]


def test_after_a_gap_the_surprise_is_unknown() -> None:
    rows = index()
    rows.readings.add(0, 1, 2_000, (15.0,))
    rows.add([head("a", 1, 0)], 9_000, NEVER_LIVE)
    assert np.isnan(rows.add([head("a", 4, 1)], 9_000, NEVER_LIVE).surprise).all()


def test_forecasts_of_the_look_back_have_no_delay() -> None:
    rows = index()
    rows.readings.add(0, 0, 1_000, (4.0,))
    assert np.isnan(rows.add([head("a", 1, 0)], 9_000, NEVER_LIVE).delay_ms).all()


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=40), st.lists(st.integers(1, 5), max_size=20))
def test_any_cut_into_polls_gives_the_same_rows(sensors: list[str], cuts: list[int]) -> None:
    whole, cut = index(), index()
    heads, steps = [], dict.fromkeys("abc", 0)
    for offset, sensor in enumerate(sensors):
        steps[sensor] += 1
        heads.append(head(sensor, steps[sensor], offset, low=-offset, high=offset + 1.0))
        for rows in (whole, cut):
            rows.readings.add(0, offset, 0, (offset * 1.5,))
    expected = whole.add(heads, 1, NEVER_LIVE)
    surprises, begin = [], 0
    for size in [*cuts, len(heads)]:
        if part := heads[begin : begin + size]:
            surprises += cut.add(part, 1, NEVER_LIVE).surprise.tolist()
        begin += size
    np.testing.assert_array_equal(surprises, expected.surprise)
    for name in set(whole.rows.dtype.names or ()) - {"entry"}:
        np.testing.assert_array_equal(cut.rows[name], whole.rows[name])
    for row in range(len(whole.rows)):
        assert cut.places(row, 99) == whole.places(row, 99)


def test_a_sensor_takes_at_most_200_bytes_with_four_targets() -> None:
    rows = LiveIndex(targets=4, partitions=8, cadence_us=CADENCE_US, places=1_000, readings=1_000)
    sensors = 20_000
    for begin in range(0, sensors, 1_000):
        heads = [
            head(f"plant-7/line-{number:05d}", 1, number)._replace(first_step=(0.0,) * 12)
            for number in range(begin, begin + 1_000)
        ]
        rows.add(heads, 1, np.full(8, 10**9))
    rows.sensors.ranks = rows.sensors.copy_ids().ranks()
    assert rows.sensor_bytes / sensors <= 200


# --- scores, delays, rates --------------------------------------------------------------------------------------------


def column(*values: float) -> np.ndarray:
    return np.array(values, np.float32)[:, None]


def test_scores_compare_the_same_values_with_persistence() -> None:
    series = ScoreSeries(1, 60.0)
    nan = float("nan")
    judged = Judged(column(1, 5, 3), column(0, 0, nan), column(2, 2, 2), column(2, 2, 2), column(1, 4, nan))
    series.add(30.0, judged)
    total = series.total
    assert (total.coverage(0), total.mae(0), total.persistence_mae(0)) == (0.5, 2.0, 0.5)
    for minute in range(1, 2 * BUCKETS):
        series.add(60.0 * minute, judged)
    assert len(series.buckets) == BUCKETS
    assert ScoreSeries(1, 60.0).total.coverage(0) is None


@given(st.lists(st.floats(0, 1e8), min_size=1, max_size=100), st.sampled_from([0.5, 0.99]))
def test_quantiles_of_delays_are_five_percent_too_large_at_most(delays: list[float], level: float) -> None:
    counts = DelayCounts()
    counts.add([*delays, float("nan")])
    true = float(np.quantile(delays, level, method="inverted_cdf"))
    found = counts.quantile_ms(level)
    assert found is not None
    assert true <= found * 1.0001 or true > 1e8
    assert found <= max(1.0, true) * 1.0501


def test_rates_have_steps_without_gaps_and_forget_old_ones() -> None:
    series = RateSeries()
    series.count(100.0, readings=50, forecasts=40, delays_ms=[10.0])
    assert series.rates(100.0 + 2 * STEP_S) == (5.0, 4.0)
    assert [step.readings for step in series.finished(100.0 + 3 * STEP_S)] == [50, 0, 0]
    assert series.delays(110.0).quantile_ms(0.5) == pytest.approx(10, rel=0.06)
    assert len(series.finished(100.0 + STEP_S * STEPS)) == STEPS
    assert series.finished(10_000.0) == []
    series.count(5_000.0, readings=10)  # the clock was set back
    assert series.rates(5_000.0 + 2 * STEP_S) == (1.0, 0.0)
