"""Sequences from the history have the stream's steps, never mix sensors and never look ahead."""

import subprocess
import sys
from pathlib import Path
from random import Random

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.reorder_buffer import GracePeriod, reorder
from model.sequences import Sequences
from pipeline.errors import HistoryError
from pipeline.files.reading_table import ReadingTable
from pipeline.history.table import History
from pipeline.settings import Settings
from pipeline.settings.sections import TrainingSettings
from pipeline.windows import (
    load_sequences,
    load_training,
    odd_interval_us,
    sequences_from_readings,
    sequences_from_table,
    usual_interval_us,
)

CADENCE_US = 1_000
MAX_GAP_STEPS = 3
SENSORS = ("north", "south", "zoë")

Stream = list[tuple[int, int]]
# (sensor, timestamp); the sensor's index is its partition, and the place in the list is the offset
streams = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 20_000)), max_size=50)


def frame_of(stream: Stream) -> pl.DataFrame:
    """Two features: one holds the sensor's index and one the offset, so that a mix-up shows in the values."""
    sensors = [sensor for sensor, _ in stream]
    return pl.DataFrame(
        {
            "sensor_id": [SENSORS[sensor] for sensor in sensors],
            "timestamp": [moment for _, moment in stream],
            "sensor": [float(sensor) for sensor in sensors],
            "place": [float(place) for place in range(len(stream))],
            "partition": sensors,
            "offset": range(len(stream)),
        },
        schema_overrides={"timestamp": pl.Int64, "sensor_id": pl.String, "offset": pl.Int64},
    )


def load(frame: pl.DataFrame, wait_us: int = 0) -> Sequences:
    return sequences_from_readings(
        frame.lazy(), ["sensor", "place"], grace=GracePeriod(CADENCE_US, wait_us), max_gap_steps=MAX_GAP_STEPS
    )


def steps_of(sequences: Sequences, sensor_id: str) -> list[tuple[int, int, float, bool]]:
    if sensor_id not in sequences.sensors:
        return []
    lo, hi = sequences.span(sequences.sensors.index(sensor_id))
    columns = (sequences.timestamp_us, sequences.offset, sequences.elapsed, sequences.reset)
    return list(zip(*(column[lo:hi].tolist() for column in columns), strict=True))


def step_through(stream: Stream, wanted: int) -> list[tuple[int, int, float, bool]]:
    """(timestamp, offset, elapsed, reset) of each step, computed one reading after the other."""
    steps: list[tuple[int, int, float, bool]] = []
    last: int | None = None
    for offset, (sensor, moment) in enumerate(stream):
        if sensor != wanted or (last is not None and moment <= last):
            continue
        inserted = []
        point = last
        while point is not None and moment - point > 1.5 * CADENCE_US:
            point += CADENCE_US
            inserted.append((point, -1, 1.0, False))
        if point is None or len(inserted) > MAX_GAP_STEPS:
            steps.append((moment, offset, 0.0, True))
        else:
            steps += [*inserted, (moment, offset, float(np.float32((moment - point) / CADENCE_US)), False)]
        last = moment
    return steps


@given(streams, st.randoms())
def test_steps_equal_those_of_the_stream_for_any_order_of_rows(stream: Stream, random: Random) -> None:
    frame = frame_of(stream)
    order = list(range(len(stream)))
    random.shuffle(order)
    sequences = load(frame[order])
    for number, sensor_id in enumerate(SENSORS):
        assert steps_of(sequences, sensor_id) == step_through(stream, number)


@given(streams, st.randoms())
def test_steps_with_grace_follow_the_accepted_readings_in_order_of_time(stream: Stream, random: Random) -> None:
    frame = frame_of(stream)
    grace = GracePeriod(CADENCE_US, 3 * CADENCE_US)
    sequences = load(frame.sample(fraction=1, shuffle=True, seed=random.randrange(99)), grace.wait_us)
    codes, moments = (frame[name].to_numpy().astype(np.int64) for name in ("partition", "timestamp"))
    order = reorder(codes, moments, np.arange(len(stream)), grace).order.tolist()
    for number, sensor_id in enumerate(SENSORS):
        mine = [place for place in order if codes[place] == number]
        accepted = [stream[place] for place in mine]
        expected = [
            (moment, mine[place] if place >= 0 else -1, elapsed, reset)
            for moment, place, elapsed, reset in step_through(accepted, number)
        ]
        assert steps_of(sequences, sensor_id) == expected


@given(streams)
def test_no_window_mixes_sensors(stream: Stream) -> None:
    sequences = load(frame_of(stream))
    for number, sensor_id in enumerate(sequences.sensors):
        lo, hi = sequences.span(number)
        observed = sequences.observed[lo:hi]
        sensor, place = sequences.values[lo:hi].T
        assert set(sensor[observed]) == {float(SENSORS.index(sensor_id))}
        np.testing.assert_array_equal(place[observed], sequences.offset[lo:hi][observed])
        assert np.isnan(sequences.values[lo:hi][~observed]).all()


@given(streams, st.integers(0, 50))
def test_steps_do_not_depend_on_later_readings(stream: Stream, cut: int) -> None:
    whole, before = load(frame_of(stream)), load(frame_of(stream[:cut]))
    for sensor_id in before.sensors:
        known = steps_of(before, sensor_id)
        assert steps_of(whole, sensor_id)[: len(known)] == known


@pytest.mark.parametrize("wait_us", [0, 3_000])
@pytest.mark.parametrize(("first", "then"), [(0, 1), (1, 0)])
def test_a_sensor_that_moves_to_another_partition_keeps_its_past(first: int, then: int, wait_us: int) -> None:
    """If partitions are added, a sensor may move to a partition with a lower number."""
    moved = frame_of([(0, number * CADENCE_US) for number in range(100)]).with_columns(
        partition=pl.when(pl.col("offset") < 95).then(first).otherwise(then),
        offset=pl.when(pl.col("offset") < 95).then(pl.col("offset")).otherwise(pl.col("offset") - 95),
    )
    stayed = frame_of([(1, number * CADENCE_US) for number in range(100)])
    found = load(pl.concat([moved, stayed.select(moved.columns)], how="vertical_relaxed"), wait_us)
    expected = 100 if not wait_us else int(np.diff(load(stayed, wait_us).starts)[0])
    assert np.diff(found.starts).tolist() == [expected, expected]


def test_one_reading_with_a_wrong_clock_does_not_reorder_the_past_of_a_moved_sensor() -> None:
    """A restarted device may send a reading before it sets its clock."""
    stream = [(0, number * CADENCE_US) for number in range(100, 200)]
    before = frame_of(stream[:90])
    after = frame_of([(0, 0), *stream[90:]]).with_columns(partition=pl.lit(1, before.schema["partition"]))
    assert np.diff(load(pl.concat([before, after.select(before.columns)])).starts).tolist() == [100]


def test_a_frame_without_offsets_takes_row_numbers_as_offsets() -> None:
    frame = frame_of([(0, 5_000), (0, 6_000), (0, 6_000), (0, 5_500), (0, 7_000)]).drop("offset", "partition")
    assert [step[1] for step in steps_of(load(frame), "north")] == [0, 1, 4]


def test_null_and_nan_are_missing() -> None:
    frame = frame_of([(0, 0), (0, 1_000), (0, 2_000)]).with_columns(place=pl.Series([None, float("nan"), 2.0]))
    np.testing.assert_array_equal(load(frame).values[:, 1], [np.nan, np.nan, 2.0])


def test_readings_of_files_step_as_if_published_in_their_order(settings: Settings) -> None:
    table = ReadingTable(
        sensors=("zoë", "north"),
        sensor_codes=np.array([0, 1, 0, 0, 0]),
        timestamp_us=np.array([0, 500, 2_000, 1_000, 3_000]),
        values={"place": np.arange(5.0)},
        notes=(),
    )
    sequences = sequences_from_table(table, settings)
    assert sequences.sensors == ("north", "zoë")
    assert steps_of(sequences, "zoë") == [
        (0, 0, 0.0, True),
        (1_000, -1, 1.0, False),
        (2_000, 2, 1.0, False),
        (3_000, 4, 1.0, False),
    ]
    assert np.isnan(sequences.values[:, 0]).all()  # the files lack this feature


@pytest.fixture
def settings() -> Settings:
    return Settings(features=("sensor", "place"), targets=("place",), cadence_s=CADENCE_US / 1e6)


def test_the_history_is_read_at_the_given_version(tmp_path: Path, settings: Settings) -> None:
    history = History(tmp_path / "history", settings.features)
    history.create()
    stream = [(0, 0), (1, 500), (0, 1_000), (0, 1_000), (1, 1_500)]
    history.append(frame_of(stream[:3]), {0: 3, 1: 3}, "readings")
    version = history.version
    history.append(frame_of(stream), {0: 5, 1: 5}, "readings")
    assert load_sequences(history, settings, version).offset.tolist() == [0, 2, 1]
    assert load_sequences(history, settings).offset.tolist() == [0, 2, 1, 4]


def test_an_empty_history_and_a_missing_feature_are_named(tmp_path: Path, settings: Settings) -> None:
    history = History(tmp_path / "history", ["sensor"])
    history.create()
    with pytest.raises(HistoryError, match=r"has no feature place \(its features: sensor\)"):
        load_sequences(history, settings)
    with pytest.raises(HistoryError, match="holds no readings yet"):
        load_sequences(history, Settings(features=("sensor",), targets=("sensor",)))


LOAD_AND_MEASURE = """
import re, sys
from pathlib import Path
from pipeline.history.table import History
from pipeline.files.reading_table import ReadingTable
from pipeline.settings import Settings
from pipeline.windows import load_sequences

def peak_bytes():  # of this process alone; getrusage also counts the parent before the exec
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

settings = Settings(features=("a", "b", "c"), targets=("a",))
before = peak_bytes()
steps = len(load_sequences(History(Path(sys.argv[1]), settings.features), settings))
print(steps, peak_bytes() - before)
"""


def test_memory_stays_in_proportion_to_the_readings(tmp_path: Path) -> None:
    """The bound is 140 bytes a reading: 10 million readings need less than 1.5 GB. The sequences take 54 bytes."""
    readings, sensors = 2_000_000, 200
    number = np.arange(readings)
    frame = pl.DataFrame(
        {
            "sensor_id": pl.Series(number % sensors).cast(pl.String),
            "timestamp": number // sensors * 3_600_000_000,
            **{name: np.random.default_rng(0).normal(size=readings) for name in "abc"},
            "partition": np.zeros(readings, np.int32),
            "offset": number,
        }
    )
    history = History(tmp_path / "history", ["a", "b", "c"])
    history.create()
    for start in range(0, readings, 500_000):
        history.append(frame[start : start + 500_000], {0: start + 500_000}, "readings")
    command = [sys.executable, "-c", LOAD_AND_MEASURE, str(history.path)]
    found = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    steps, peak_bytes = map(int, found.stdout.split())
    assert steps == readings
    assert peak_bytes < 100_000_000 + 140 * readings


def read(codes: list[int], times: list[int]) -> ReadingTable:
    return ReadingTable(SENSORS, np.array(codes), np.array(times), {}, [])


def test_the_usual_interval_is_the_median_within_sensors() -> None:
    # One reading is repeated, and one interval is a gap.
    assert usual_interval_us(read([0, 1, 0, 1, 0, 0, 1], [0, 7, 60, 67, 60, 180, 127])) == 60
    assert usual_interval_us(read([0, 1], [0, 60])) is None


@pytest.mark.parametrize(
    ("every_us", "odd_us"), [(500, 500), (800, None), (1_250, None), (1_300, 1_300), (5_000, 5_000)]
)
def test_an_interval_that_differs_from_the_cadence_is_reported(every_us: int, odd_us: int | None) -> None:
    frame = frame_of([(1, number * every_us) for number in range(20)] + [(0, 5)])
    sequences = sequences_from_readings(
        frame.lazy(), ("sensor",), grace=GracePeriod(CADENCE_US, 0), max_gap_steps=MAX_GAP_STEPS
    )
    assert odd_interval_us(sequences) == odd_us


def test_a_backfill_behind_live_readings_is_counted_and_trained_on_if_the_settings_say_so(tmp_path: Path) -> None:
    settings = Settings(history=tmp_path / "history")
    history = History(settings.history_path, settings.features)
    history.create()
    hour_us, first_us = 3_600_000_000, 1_700_000_000_000_000
    hours = [*range(2_000, 2_010), *range(2_000), 5, 2_003]  # ten live readings, a backfill, two repeated times
    values = [float(place) for place in range(len(hours))]
    frame = pl.DataFrame(
        {
            "sensor_id": ["roof"] * len(hours),
            "timestamp": [first_us + hour * hour_us for hour in hours],
            "value": values,
            "partition": [0] * len(hours),
            "offset": range(len(hours)),
        }
    )
    history.append(frame, {0: len(hours)}, "readings")

    found = load_training(history, settings)
    assert found.late == {"roof": 2_002}
    assert found.trained is found.stream
    assert len(found.stream) == 10

    found = load_training(history, settings.model_copy(update={"training": TrainingSettings(late="train")}))
    assert len(found.stream) == 10
    assert len(found.trained) == 2_010
    assert (np.diff(found.trained.timestamp_us) == hour_us).all()
    # Of equal times the first in offset order is used.
    assert found.trained.values[[5, 2_003], 0].tolist() == [15.0, 3.0]
