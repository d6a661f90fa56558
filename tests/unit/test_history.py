"""The history table stores readings and their offsets in one commit."""

import errno
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from deltalake import DeltaTable
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import HistoryError
from pipeline.history.columns import column_of, feature_of, is_internal
from pipeline.history.table import FRAGMENTED_FILES, History
from pipeline.reading_times import RECORD_TIMESTAMP
from pipeline.registry.training_set import TrainingSet
from pipeline.settings import Settings
from pipeline.windows import load_sequences

TOPIC = "readings"
HOUR_US = 3_600_000_000
LONG_AGO_S = 0.0


def readings(offsets: range, partition: int = 0, **features: float) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "sensor_id": [f"s{partition}"] * len(offsets),
            "timestamp": [offset * HOUR_US for offset in offsets],
            **{name: [value] * len(offsets) for name, value in (features or {"value": 1.0}).items()},
            "partition": [partition] * len(offsets),
            "offset": list(offsets),
        }
    )


@pytest.fixture
def history(tmp_path: Path) -> History:
    table = History(tmp_path / "history", ["value"])
    table.create()
    return table


def test_data_and_offsets_are_stored_by_one_commit(history: History) -> None:
    before = history.version
    both = pl.concat([readings(range(3)), readings(range(5, 7), partition=2)])
    assert history.append(both, {0: 3, 2: 9}, TOPIC) == 5
    assert history.version == before + 1
    assert history.next_offsets(TOPIC) == {0: 3, 2: 9}
    assert history.next_offsets("another") == {}
    stored = history.scan().sort("partition", "offset").collect()
    assert stored["offset"].to_list() == [0, 1, 2, 5, 6]
    assert stored.schema["timestamp"] == pl.Datetime("us", "UTC")


def test_a_range_appended_again_is_skipped_and_the_rest_of_a_longer_one_is_stored(history: History) -> None:
    history.append(readings(range(3)), {0: 3}, TOPIC)
    version = history.version
    assert history.append(readings(range(3)), {0: 3}, TOPIC) == 0
    assert history.version == version
    assert history.append(readings(range(1, 6)), {0: 6}, TOPIC) == 3
    assert sorted(history.scan().collect()["offset"]) == [0, 1, 2, 3, 4, 5]
    assert history.next_offsets(TOPIC) == {0: 6}


def test_offsets_advance_past_records_without_a_valid_reading(history: History) -> None:
    assert history.append(readings(range(0)), {0: 4, 1: 2}, TOPIC) == 0
    assert history.next_offsets(TOPIC) == {0: 4, 1: 2}


def test_the_time_of_the_last_readings_ignores_commits_of_offsets_alone(history: History) -> None:
    assert history.appended_at(LONG_AGO_S) is None
    history.append(readings(range(0)), {0: 4}, TOPIC)
    assert history.appended_at(LONG_AGO_S) is None
    history.append(readings(range(4, 6)), {0: 6}, TOPIC)
    came = history.appended_at(LONG_AGO_S)
    assert came is not None
    history.append(readings(range(0)), {0: 9}, TOPIC)
    assert history.appended_at(LONG_AGO_S) == came


def test_the_time_of_the_last_readings_is_found_behind_many_commits_of_offsets_alone(history: History) -> None:
    history.append(readings(range(1)), {0: 1}, TOPIC)
    came = history.appended_at(LONG_AGO_S)
    for end in range(2, 2 + FRAGMENTED_FILES):
        history.append(readings(range(0)), {0: end}, TOPIC)
    assert came is not None
    assert history.appended_at(LONG_AGO_S) == came


def test_the_search_for_the_last_readings_ends_at_the_given_time(history: History) -> None:
    history.append(readings(range(1)), {0: 1}, TOPIC)
    came = history.appended_at(LONG_AGO_S)
    for end in range(2, 2 + FRAGMENTED_FILES):
        history.append(readings(range(0)), {0: end}, TOPIC)
    now = datetime.now(UTC)
    since = history.appended_at(now.timestamp())
    assert came is not None
    assert since is not None
    assert came < since < now


def test_a_topic_is_recognised_by_its_id_once_the_id_is_stored(history: History) -> None:
    assert not history.is_of_another_topic(TOPIC, "new")
    history.append(readings(range(2)), {0: 2}, TOPIC)  # without a topic id, as in old tables
    assert not history.is_of_another_topic(TOPIC, "old")
    history.append(readings(range(2, 4)), {0: 4}, TOPIC, "old")
    history.append(readings(range(4, 6)), {0: 6}, TOPIC, "old")
    assert history.compact_if_fragmented(files=1)
    assert not history.is_of_another_topic(TOPIC, "old")
    assert history.is_of_another_topic(TOPIC, "new")
    assert history.next_offsets(TOPIC) == {0: 6}


def test_a_reading_beyond_the_next_offset_is_refused(history: History) -> None:
    with pytest.raises(ValueError, match="not below the next offsets"):
        history.append(readings(range(3)), {0: 2}, TOPIC)
    with pytest.raises(ValueError, match="not below the next offsets"):
        history.append(readings(range(3)), {1: 3}, TOPIC)


def test_missing_values_are_stored_as_null(history: History) -> None:
    history.append(readings(range(2), value=float("nan")), {0: 2}, TOPIC)
    assert history.scan().collect()["value"].null_count() == 2


def test_an_older_version_keeps_its_readings_and_offsets(history: History) -> None:
    history.append(readings(range(3)), {0: 3}, TOPIC)
    version = history.version
    history.append(readings(range(3, 5)), {0: 5}, TOPIC)
    assert len(history.scan(version).collect()) == 3
    assert history.next_offsets(TOPIC, version) == {0: 3}


def test_compaction_keeps_readings_offsets_and_older_versions(history: History) -> None:
    for offset in range(6):
        history.append(readings(range(offset, offset + 1)), {0: offset + 1}, TOPIC)
    version = history.version
    assert not history.compact_if_fragmented(files=6)
    assert history.compact_if_fragmented(files=3)
    assert len(DeltaTable(str(history.path)).file_uris()) == 1
    assert sorted(history.scan().collect()["offset"]) == list(range(6))
    assert history.next_offsets(TOPIC) == {0: 6}
    assert len(history.scan(version - 2).collect()) == 4


def test_compaction_rewrites_a_reading_only_a_few_times(history: History) -> None:
    """Merging all files into one each time would write eight times the appended bytes here."""
    random, appended = np.random.default_rng(0), 0
    for offset in range(0, 60_000, 1_000):
        before = disk_bytes(history)
        frame = readings(range(offset, offset + 1_000)).with_columns(value=random.normal(size=1_000))
        history.append(frame, {0: offset + 1_000}, TOPIC)
        appended += disk_bytes(history) - before
        history.compact_if_fragmented(files=4)
    assert disk_bytes(history) < 4 * appended
    assert len(DeltaTable(str(history.path)).file_uris()) < 16
    assert sorted(history.scan().collect()["offset"]) == list(range(60_000))
    assert history.next_offsets(TOPIC) == {0: 60_000}


def disk_bytes(history: History) -> int:
    return sum(path.stat().st_size for path in history.path.glob("*.parquet"))


def test_a_commit_is_synced_to_the_disk_before_the_next_one_builds_on_it(
    history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    monkeypatch.setattr(
        "os.fsync", lambda descriptor: synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
    )
    log = history.path / "_delta_log"
    History(history.path.with_name("another"), ["value"]).create()
    assert str(history.path.with_name("another") / "_delta_log" / f"{0:020}.json") in synced
    # Delta Lake writes a checkpoint at every hundredth version by default.
    DeltaTable(str(history.path)).alter.set_table_properties({"delta.checkpointInterval": "10"})
    for offset in range(11):
        synced.clear()
        before = history.version
        if offset == 5:  # a commit of another process, killed before it synced
            monkeypatch.setattr(History, "_sync", lambda self, first, last: None)
            history.append(readings(range(0), partition=1), {1: 1}, TOPIC)
            monkeypatch.undo()
            monkeypatch.setattr("os.fsync", lambda fd: synced.append(str(Path(f"/proc/self/fd/{fd}").readlink())))
        history.append(readings(range(offset, offset + 1)), {0: offset + 1}, TOPIC)
        commits = [log / f"{version:020}" for version in range(before, history.version + 1)]
        checkpoints = log.glob(f"{commits[-1].name}.checkpoint*")
        wanted = {history.path, log, *(commit.with_suffix(".json") for commit in commits[1:]), *checkpoints}
        assert {str(path) for path in wanted} <= set(synced)
        assert any(name.endswith(".parquet") and "checkpoint" not in name for name in synced)
    assert list(log.glob("*.checkpoint*"))


def test_a_file_that_cannot_be_synced_is_an_error_and_a_folder_is_not(
    history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(which: Callable[[Path], bool]) -> Callable[[int], None]:
        def fsync(descriptor: int) -> None:
            if which(Path(f"/proc/self/fd/{descriptor}").resolve()):
                raise OSError(errno.EINVAL, "Invalid argument")

        return fsync

    monkeypatch.setattr("os.fsync", refuse(Path.is_dir))
    assert history.append(readings(range(3)), {0: 3}, TOPIC) == 3
    monkeypatch.setattr("os.fsync", refuse(Path.is_file))
    with pytest.raises(HistoryError, match=r"but may not be on its disk yet: .*Invalid argument"):
        history.append(readings(range(3, 5)), {0: 5}, TOPIC)
    assert history.next_offsets(TOPIC) == {0: 5}


@pytest.mark.parametrize("harm", ["removed", "cut off"])
def test_an_append_to_a_version_torn_by_a_power_cut_is_refused(history: History, harm: str) -> None:
    history.append(readings(range(3)), {0: 3}, TOPIC)
    before = set(history.path.glob("*.parquet"))
    history.append(readings(range(3, 5)), {0: 5}, TOPIC)
    [newest] = set(history.path.glob("*.parquet")) - before
    if harm == "removed":
        newest.unlink()
    else:
        newest.write_bytes(b"")
    with pytest.raises(HistoryError, match=r"is torn, as after a power cut: .*Remove .*0002\.json") as raised:
        history.append(readings(range(5, 7)), {0: 7}, TOPIC)
    Path(str(raised.value).split("Remove ")[1].split(" (and")[0]).unlink()
    assert history.next_offsets(TOPIC) == {0: 3}
    history.append(readings(range(3, 7)), {0: 7}, TOPIC)
    assert sorted(history.scan().collect()["offset"]) == list(range(7))


def test_an_older_version_is_read_though_the_newest_is_torn(history: History) -> None:
    history.append(readings(range(3)), {0: 3}, TOPIC)
    history.append(readings(range(3, 5)), {0: 5}, TOPIC)
    commit = history.path / "_delta_log" / f"{history.version:020}.json"
    commit.write_bytes(b"\0" * commit.stat().st_size)
    assert sorted(history.scan(1).collect()["offset"]) == [0, 1, 2]


@pytest.mark.parametrize("harm", ["removed", "cut off", "empty"])
def test_a_damaged_file_of_readings_is_reported_with_its_table_and_version(history: History, harm: str) -> None:
    history.append(readings(range(100)), {0: 100}, TOPIC)
    [path] = history.path.glob("*.parquet")
    if harm == "removed":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:500] if harm == "cut off" else b"")
    settings = Settings(history=history.path, features=("value",), targets=("value",))
    with pytest.raises(HistoryError, match=r"history table .* cannot be read at version 1: .*--history-version"):
        load_sequences(history, settings)


def test_features_whose_names_differ_in_case_only_are_refused(history: History) -> None:
    """Delta Lake would raise a bare Exception in the middle of an append."""
    with pytest.raises(HistoryError, match=r"has a feature value, and cannot have Value"):
        History(history.path, ["Value"]).create()
    with pytest.raises(HistoryError, match="differ in case only: Temp, temp"):
        History(history.path, ["Temp", "temp"])
    with pytest.raises(HistoryError, match="differ in case only: Offset, offset"):
        History(history.path, ["Offset", "offset"])


def test_a_new_feature_becomes_a_column_and_a_dropped_one_stays(history: History) -> None:
    history.append(readings(range(2), value=1.0), {0: 2}, TOPIC)
    changed = History(history.path, ["level", "PM2.5 a,b;{}()="])
    changed.create()
    changed.append(readings(range(2, 3), **{"level": 2.0, "PM2.5 a,b;{}()=": 3.0}), {0: 3}, TOPIC)
    assert changed.columns() == ("value", "level", "PM2.5 a,b;{}()=")
    stored = changed.scan().sort("offset").collect()
    assert stored["value"].to_list() == [1.0, 1.0, None]
    assert stored["level"].to_list() == [None, None, 2.0]


@pytest.mark.parametrize("folder", ["My Projects", "a b ü#(1)?", "50% {x}", " *~'\"<>&;=+@:,!$`", "日本"])
def test_a_table_is_read_from_a_folder_with_an_unusual_name(tmp_path: Path, folder: str) -> None:
    history = History(tmp_path / folder / "history", ["value"])
    history.create()
    empty = history.version
    columns = ["sensor_id", "timestamp", "value", "partition", "offset", RECORD_TIMESTAMP]
    assert history.scan().collect().columns == columns
    history.append(readings(range(3)), {0: 3}, TOPIC)
    version = history.version
    wider = History(history.path, ["level", "value"])
    wider.append(readings(range(3, 5), level=1.0, value=2.0), {0: 5}, TOPIC)
    assert wider.scan().sort("offset").collect()["level"].to_list() == [None, None, None, 1.0, 1.0]
    assert history.scan(version).collect().columns == columns
    assert len(history.scan(empty).collect()) == 0
    assert wider.compact_if_fragmented(files=1)
    assert sorted(wider.scan().collect()["offset"]) == list(range(5))

    from pipeline.registry.history_source import HistorySource  # imports MLflow, which takes seconds

    source = HistorySource(TrainingSet(str(history.path), version, TOPIC, {"0": 3}, readings=3, sensors=1))
    assert sorted(source.load().collect()["offset"]) == [0, 1, 2]


@pytest.mark.parametrize("folder", ["a[1]", "b%20c", "d|e", "f^g", "h\\i", "j\tk"])
def test_a_path_that_delta_lake_does_not_take_is_refused_with_the_setting_to_change(
    tmp_path: Path, folder: str
) -> None:
    (tmp_path / folder).mkdir()
    (tmp_path / "link").symlink_to(tmp_path / folder)
    for path in (tmp_path / folder, tmp_path / "link"):
        history = History(path / "history", ["value"])
        with pytest.raises(HistoryError, match=r"does not accept .*point `history` in the settings at another folder"):
            history.create()
        with pytest.raises(HistoryError, match="does not accept"):
            history.scan()


def test_a_table_without_the_history_columns_is_refused(tmp_path: Path) -> None:
    pl.DataFrame({"value": [1.0]}).write_delta(tmp_path / "other")
    with pytest.raises(HistoryError, match="not a history: it has no column sensor_id"):
        History(tmp_path / "other", ["value"]).create()


def test_a_feature_of_another_type_is_named(history: History) -> None:
    readings(range(1)).with_columns(
        pl.col("timestamp").cast(pl.Datetime("us", "UTC")), pl.col("partition").cast(pl.Int32), kind=pl.lit("text")
    ).write_delta(history.path, mode="append", delta_write_options={"schema_mode": "merge"})
    with pytest.raises(HistoryError, match="column kind of a type other than double"):
        History(history.path, ["kind"]).create()


@pytest.mark.parametrize(
    "name",
    ["sensor", "time", "offset", "partition", "timestamp", "sensor_id", "Offset", "streamgru:sent", "*", "^a$", "^.*$"],
)
def test_a_feature_may_have_any_name(tmp_path: Path, name: str) -> None:
    """Names of internal columns, and names that polars takes as patterns for other columns."""
    features = [name, "a", "feature:offset"]
    history = History(tmp_path / "history", features)
    history.create()
    frame = readings(range(3), **{column_of(name): 1.0, "a": 2.0, column_of("feature:offset"): 3.0})
    assert history.append(frame, {0: 3}, TOPIC) == 3
    assert History(history.path, [*features, "b"]).columns() == tuple(features)
    stored = history.scan().collect()
    assert stored["offset"].to_list() == [0, 1, 2]
    settings = Settings(history=history.path, features=tuple(features), targets=(name,))
    sequences = load_sequences(history, settings)
    assert sequences.sensors == ("s0",)
    assert sequences.timestamp_us.tolist() == [0, HOUR_US, 2 * HOUR_US]
    assert sequences.values.tolist() == [[1.0, 2.0, 3.0]] * 3


@given(names=st.lists(st.text(), max_size=4), prefixes=st.integers(0, 3))
def test_columns_of_features_are_unique_and_can_be_read_back(names: list[str], prefixes: int) -> None:
    features = list(dict.fromkeys([*names, "feature:" * prefixes + "offset", "Feature:offset", "offset", "*"]))
    columns = [column_of(name) for name in features]
    assert len({column.lower() for column in columns}) == len({name.lower() for name in features})
    assert [feature_of(column) for column in columns] == features
    assert not any(map(is_internal, columns))


def test_a_missing_or_damaged_table_is_an_error_with_the_next_step(tmp_path: Path, history: History) -> None:
    with pytest.raises(HistoryError, match=r"no history table at .*streamgru ingest"):
        History(tmp_path / "nothing", ["value"]).scan()
    for number in (99, 2**63, 2**64):  # Delta Lake takes minutes to search for a large number, or fails
        with pytest.raises(HistoryError, match=f"has no version {number}: its newest is 0"):
            history.scan(number)
    (history.path / "_delta_log" / "00000000000000000000.json").write_text("garbage")
    with pytest.raises(HistoryError, match="could not be opened") as raised:
        history.scan()
    assert "\n" not in str(raised.value)


def test_an_append_from_an_outdated_view_is_refused(history: History, monkeypatch: pytest.MonkeyPatch) -> None:
    outdated = DeltaTable(str(history.path))
    history.append(readings(range(3)), {0: 3}, TOPIC)
    outdated_writer = History(history.path, ["value"])
    monkeypatch.setattr(outdated_writer, "_open", lambda: outdated)
    with pytest.raises(HistoryError, match="another ingest at the same time"):
        outdated_writer.append(readings(range(3)), {0: 3}, TOPIC)
    assert len(history.scan().collect()) == 3


def test_two_concurrent_writers_store_each_reading_once(history: History) -> None:
    start = threading.Barrier(2)
    refused: list[str] = []

    def write() -> None:
        table = History(history.path, ["value"])
        start.wait()
        for end in range(10, 110, 10):
            try:
                table.append(readings(range(end)), {0: end}, TOPIC)
            except HistoryError as error:
                refused.append(str(error))

    writers = [threading.Thread(target=write) for _ in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    offsets = history.scan().collect()["offset"].to_list()
    assert sorted(offsets) == list(range(history.next_offsets(TOPIC)[0]))
    assert all("another ingest" in message for message in refused)
