"""Outlooks are rows of the history beside its readings, and a step sees the outlook that the stream would show it."""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from model.outlooks import NO_OUTLOOK
from model.sequences import Sequences
from pipeline.files.file_layout import FileLayout
from pipeline.files.outlook_table import OutlookRecord, read_outlooks
from pipeline.files.reading_table import ReadingTable
from pipeline.history.outlook_join import StepPositions
from pipeline.history.reading_chunk import ReadingChunk
from pipeline.history.table import History
from pipeline.messages import Rejected
from pipeline.outlook_messages import Outlook, make_outlook_decoder
from pipeline.reading_times import time_rules_from
from pipeline.remarks.outlooks import outlook_remarks
from pipeline.settings import Settings
from pipeline.settings.outlooks import OutlookSettings
from pipeline.settings.sections import TrainingSettings
from pipeline.windows import load_sequences, load_training, sequences_from_table
from tests.outlook_streams import GROUP, HOUR_US, SETTINGS, START_US, Event, Stream, events, outlook_of, seen_by_hand

TOPIC = "readings"


def stored(folder: Path, stream: Stream, made: Settings = SETTINGS, commits: int = 1) -> History:
    """The history of the stream's records, appended in some commits."""
    history = History(folder / "history", made.features)
    history.create()
    chunk = ReadingChunk(made)
    for part in range(commits):
        ends = {}
        for partition, records in stream.records.items():
            cuts = [len(records) * number // commits for number in (part, part + 1)]
            chunk.add(partition, records[slice(*cuts)])
            ends[partition] = cuts[1]
        history.append(chunk.take(), ends, TOPIC)
    return history


def decoded(key: bytes, value: bytes) -> Outlook:
    """The outlook in a record."""
    decoder = make_outlook_decoder(SETTINGS)
    assert decoder is not None
    outlook = decoder.decode(key, value, (), Rejected("malformed"))
    assert outlook is not None
    return outlook


def record_of(event: Event) -> OutlookRecord:
    """The outlook of an event, with its record."""
    key, value = outlook_of(event)
    return OutlookRecord(decoded(key, value), key, value)


def issue_hours(sequences: Sequences) -> dict[tuple[str, int], int | None]:
    """Sensor and hour of each reading -> hour of issue of the outlook that it sees."""
    assert sequences.outlooks is not None
    assert sequences.outlook is not None
    found: dict[tuple[str, int], int | None] = {}
    for sensor, name in enumerate(sequences.sensors):
        for step in range(*sequences.span(sensor)):
            if sequences.observed[step]:
                row = int(sequences.outlook[step])
                issued = None if row == NO_OUTLOOK else hour(int(sequences.outlooks.issued_us[row]))
                found[name, hour(int(sequences.timestamp_us[step]))] = issued
    return found


def hour(timestamp_us: int) -> int:
    return (timestamp_us - START_US) // HOUR_US


EXAMPLE: Sequence[Event] = (
    Event("s0", 1, True),  # before the first reading
    Event("s0", 2, False),
    Event("s0", 2, True),
    Event("s0", 3, False),
    Event("city", 3, True),
    Event("s2", 4, False),  # on the other partition; its state is newer than the group's outlook
    Event("s0", 5, False),
    Event("s0", 1, True),  # late
    Event("s0", 12, False),  # after a reset
    Event("s0", 13, False),
)


def test_readings_and_outlooks_are_stored_in_one_table_and_read_apart(tmp_path: Path) -> None:
    stream = Stream.of(EXAMPLE)
    history = stored(tmp_path, stream)
    readings = history.scan().collect()
    assert len(readings) == 6
    assert not any("outlook" in name for name in readings.columns)
    outlooks = history.scan_outlooks().sort("partition", "offset").collect()
    assert outlooks["sensor_id"].to_list() == ["s0", "s0", "city", "s0", "city"]
    assert outlooks["streamgru:outlook_group"].to_list() == [False, False, True, False, True]
    assert outlooks["streamgru:outlook_covariates"][0].to_list() == ["TEMP", "WSPM"]
    assert len(outlooks["streamgru:outlook_values"][0]) == 8
    assert history.columns() == ("value",)
    assert issue_hours(load_sequences(history, SETTINGS)) == {
        ("s0", 2): None,
        ("s0", 3): 2,
        ("s0", 5): 3,
        ("s0", 12): None,
        ("s0", 13): None,
        ("s2", 4): None,
    }


def test_an_outlook_appended_again_is_skipped_and_counts_as_no_reading(tmp_path: Path) -> None:
    stream = Stream.of(EXAMPLE)
    history = stored(tmp_path, stream)
    chunk = ReadingChunk(SETTINGS)
    chunk.add(0, stream.records[0])
    assert chunk.outlooks == 4
    assert history.append(chunk.take(), {0: len(stream.records[0])}, TOPIC) == 0
    chunk.add(0, [record._replace(offset=record.offset + 100) for record in stream.records[0][:2]])
    assert history.append(chunk.take(), {0: 102}, TOPIC) == 1
    assert len(history.scan_outlooks().collect()) == 6


def test_the_time_of_the_last_readings_ignores_commits_of_outlooks_alone(tmp_path: Path) -> None:
    stream = Stream.of(EXAMPLE)
    history = stored(tmp_path, stream)
    came = history.appended_at(0.0)
    chunk = ReadingChunk(SETTINGS)
    chunk.add(0, [stream.records[0][0]._replace(offset=100)])
    assert chunk.outlooks == 1
    assert history.append(chunk.take(), {0: 101}, TOPIC) == 0
    assert len(history.scan_outlooks().collect()) == 6
    assert came is not None
    assert history.appended_at(0.0) == came


def test_a_table_without_outlooks_has_none(tmp_path: Path) -> None:
    history = stored(tmp_path, Stream.of([event for event in EXAMPLE if not event.is_outlook]))
    assert not any("outlook" in name for name in pl.Schema(history._open().schema()).names())
    assert history.scan_outlooks().collect().is_empty()
    assert set(issue_hours(load_sequences(history, SETTINGS)).values()) == {None}
    plain = SETTINGS.model_copy(update={"outlooks": OutlookSettings()})
    assert load_sequences(history, plain).outlooks is None


def test_later_settings_read_the_covariates_by_name(tmp_path: Path) -> None:
    history = stored(tmp_path, Stream.of(EXAMPLE))
    later = OutlookSettings(covariates=("WSPM", "RAIN"), steps=4, groups=SETTINGS.outlooks.groups)
    sequences = load_sequences(history, SETTINGS.model_copy(update={"outlooks": later}))
    assert sequences.outlooks is not None
    values = sequences.outlooks.values
    assert np.isnan(values[:, :, 1]).all()
    np.testing.assert_array_equal(values[0, :, 0], np.array([np.nan, 1, np.nan, 2], np.float32))


@settings(deadline=None, max_examples=30)
@given(events, st.integers(1, 3))
def test_every_step_sees_the_newest_outlook_that_came_before_its_record(
    given_events: list[Event], commits: int
) -> None:
    expected = seen_by_hand(given_events)
    with TemporaryDirectory() as folder:
        history = stored(Path(folder), Stream.of(given_events), commits=commits)
        if expected:
            assert issue_hours(load_sequences(history, SETTINGS)) == expected


def test_a_late_reading_that_is_trained_on_sees_no_outlook_newer_than_the_next_step_does(tmp_path: Path) -> None:
    late = [
        Event("s0", 0, False),
        Event("s0", 1, True),
        Event("s0", 2, False),
        Event("s0", 3, True),
        Event("s0", 4, False),
        Event("s0", 1, False),  # comes after the outlook of hour 3
    ]
    history = stored(tmp_path, Stream.of(late))
    made = SETTINGS.model_copy(update={"training": TrainingSettings(late="train")})
    trained = load_training(history, made).trained
    assert issue_hours(trained) == {("s0", 0): None, ("s0", 1): 1, ("s0", 2): 1, ("s0", 4): 3}


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 1), st.integers(0, 50)), min_size=1, max_size=30))
def test_steps_in_order_of_time_are_released_in_this_order(places: list[tuple[int, int, int]]) -> None:
    sensor, partition, released = np.array(sorted(places, key=lambda place: place[0]), np.int64).T
    found = StepPositions(sensor, partition, released).in_order().released
    for place in range(len(found)):
        later = [
            other
            for other in range(place, len(found))
            if (sensor[other], partition[other]) == (sensor[place], partition[place])
        ]
        assert found[place] == min(released[other] for other in later)


def test_outlooks_of_a_future_issue_are_left_out_like_readings(tmp_path: Path) -> None:
    stream = Stream.of([Event("s0", 0, False), Event("s0", 500, True), Event("s0", 1, True), Event("s0", 2, False)])
    history = History(tmp_path / "history", SETTINGS.features)
    history.create()
    chunk = ReadingChunk(SETTINGS)
    chunk.add(0, stream.records[0])
    history.append(chunk.take(), {0: 4}, TOPIC, time_rules={0: time_rules_from((), SETTINGS, 0)})
    assert issue_hours(load_sequences(history, SETTINGS)) == {("s0", 0): None, ("s0", 2): 1}


@pytest.mark.parametrize("grace_steps", [0.0, 3.0])
def test_a_moved_sensor_sees_the_outlooks_of_its_present_partition(tmp_path: Path, grace_steps: float) -> None:
    made = SETTINGS.model_copy(update={"grace_steps": grace_steps})
    first = Stream.of([Event("s0", 0, False), Event("s0", 0, True), Event("s0", 1, False)])
    moved = Stream.of([Event("s0", 2, False), Event("s0", 3, False), Event("s0", 3, True), Event("s0", 4, False)])
    stream = Stream({0: first.records[0], 1: moved.records[0]})
    assert issue_hours(load_sequences(stored(tmp_path, stream, made), made)) == {
        ("s0", 0): None,
        ("s0", 1): 0,
        ("s0", 2): None,
        ("s0", 3): None,
        ("s0", 4): 3,
    }


@given(events)
@settings(deadline=None, max_examples=30)
@example([Event("city", 2, True), Event("s0", 1, False), Event("s0", 2, False), Event("s1", 2, False)])
def test_outlooks_of_files_are_seen_as_if_they_were_published_between_the_readings(made: list[Event]) -> None:
    """`publish --outlooks` sends an outlook before the first reading with its time of issue or a later time."""
    made = sorted(dict.fromkeys(made), key=lambda event: (event.hour, not event.is_outlook, event.name))
    readings = [event for event in made if not event.is_outlook]
    if not readings:
        return
    sensors = tuple(dict.fromkeys(event.name for event in readings))
    table = ReadingTable(
        sensors,
        np.array([sensors.index(event.name) for event in readings]),
        np.array([START_US + event.hour * HOUR_US for event in readings]),
        {"value": np.zeros(len(readings))},
        (),
    )
    outlooks = [record_of(event) for event in made if event.is_outlook]
    for grace_steps in (0, 2):
        chosen = SETTINGS.model_copy(update={"grace_steps": grace_steps})
        with TemporaryDirectory() as folder:
            published = load_sequences(stored(Path(folder), Stream.of(made), chosen), chosen)
        assert issue_hours(sequences_from_table(table, chosen, outlooks)) == issue_hours(published)


@pytest.mark.parametrize("columns", [["TEMP", "WSPM"], ["WSPM"]])
def test_outlooks_of_files_equal_the_decoded_ones_of_their_records(tmp_path: Path, columns: list[str]) -> None:
    draw = np.random.default_rng(0)
    names = [name for name in ("s0", GROUP) for _ in range(12)]
    issued = [f"2016-03-0{1 + row % 3}T00:00:00Z" for row in range(len(names))]
    ahead = [f"2016-03-0{1 + row % 3}T0{row // 3}:00:00.000001Z" for row in range(len(names))]
    values = {name: [None, *draw.normal(0, 1e3, len(names) - 1)] for name in columns}
    rows = {"site": names, "issued_at": issued, "time": ahead, **values}
    pl.DataFrame(rows).write_csv(tmp_path / "outlooks.csv")
    layout = FileLayout(time_column="time", sensor_column="site", issued_column="issued_at")
    records = read_outlooks([tmp_path / "outlooks.csv"], layout, SETTINGS).records
    assert len(records) == 6
    for record in records:
        expected = decoded(record.key, record.value)
        for field, value in vars(expected).items():
            np.testing.assert_array_equal(getattr(record.outlook, field), value, err_msg=field, strict=True)


def test_outlooks_that_end_before_the_forecast_are_pointed_out() -> None:
    assert outlook_remarks(Settings()) == []
    assert outlook_remarks(SETTINGS) == []
    (remark,) = outlook_remarks(SETTINGS.model_copy(update={"horizon_steps": 12}))
    assert "outlooks.steps keeps 4 cadences of an outlook" in remark
    assert "set it to horizon_steps (12) or more" in remark
