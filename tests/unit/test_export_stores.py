"""Exported tables hold each row once, also after an interrupted append."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import polars as pl
import pytest

from pipeline.errors import ExportError
from pipeline.export.forecast_rows import ForecastChunk
from pipeline.export.stores import DeltaStore, ExportStore, ParquetStore
from pipeline.kafka.topic_reader import LoggedRecord
from pipeline.messages import Forecast, InputPosition, ModelId, StateAge

TOPIC, TOPIC_ID = "forecasts", "id-1"
STORES = pytest.mark.parametrize("make", [DeltaStore, ParquetStore])


def rows(partition: int, offsets: range, **more: float) -> pl.DataFrame:
    return pl.DataFrame(
        {"partition": [partition] * len(offsets), "offset": list(offsets)}
        | {name: [value] * len(offsets) for name, value in more.items()},
        schema_overrides={"partition": pl.Int32, "offset": pl.Int64},
    )


def read(store: ExportStore, path: Path) -> list[tuple[int, int]]:
    frame = pl.read_delta(str(path)) if isinstance(store, DeltaStore) else pl.read_parquet(path / "*.parquet")
    return sorted(frame.select("partition", "offset").rows())


@STORES
def test_a_new_store_object_continues_at_the_stored_offsets(make: type, tmp_path: Path) -> None:
    path = tmp_path / "table"
    assert not make(path).has_offsets()
    assert make(path).next_offsets(TOPIC) == {}
    make(path).append(pl.concat([rows(0, range(3)), rows(1, range(5, 7))]), {0: 3, 1: 9, 2: 4}, TOPIC, TOPIC_ID)
    assert make(path).next_offsets(TOPIC) == {0: 3, 1: 9, 2: 4}
    make(path).append(rows(0, range(3, 6)), {0: 6}, TOPIC, TOPIC_ID)
    store = make(path)
    assert store.next_offsets(TOPIC) == {0: 6, 1: 9, 2: 4}
    assert read(store, path) == [(0, offset) for offset in range(6)] + [(1, 5), (1, 6)]


@STORES
def test_a_recreated_topic_is_noticed_by_its_id(make: type, tmp_path: Path) -> None:
    store = make(tmp_path / "table")
    store.append(rows(0, range(3)), {0: 3}, TOPIC, TOPIC_ID)
    assert not store.is_of_another_topic(TOPIC, TOPIC_ID)
    assert store.is_of_another_topic(TOPIC, "id-2")
    assert store.has_offsets()
    assert store.next_offsets("other") == {}


@STORES
def test_a_quantile_that_is_added_later_is_a_new_column(make: type, tmp_path: Path) -> None:
    path = tmp_path / "table"
    make(path).append(rows(0, range(2), q50=1.0), {0: 2}, TOPIC, TOPIC_ID)
    make(path).append(rows(0, range(2, 4), q50=1.0, q95=2.0), {0: 4}, TOPIC, TOPIC_ID)
    found = (
        pl.read_delta(str(path))
        if make is DeltaStore
        else pl.scan_parquet(path / "*.parquet", missing_columns="insert", extra_columns="ignore").collect()
    )
    assert len(found) == 4
    assert "q50" in found.columns


def test_an_interrupted_parquet_append_leaves_no_visible_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "table"
    store = ParquetStore(path)
    store.append(rows(0, range(3)), {0: 3}, TOPIC, TOPIC_ID)

    def fail(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", fail)
        with pytest.raises(ExportError, match="No space left on device"):
            store.append(rows(0, range(3, 6)), {0: 6}, TOPIC, TOPIC_ID)
    assert store.next_offsets(TOPIC) == {0: 3}
    store.append(rows(0, range(3, 6)), {0: 6}, TOPIC, TOPIC_ID)
    assert read(store, path) == [(0, offset) for offset in range(6)]


def test_a_damaged_topic_file_is_refused_with_its_path(tmp_path: Path) -> None:
    store = ParquetStore(tmp_path / "table")
    store.append(rows(0, range(3)), {0: 3}, TOPIC, TOPIC_ID)
    (tmp_path / "table" / ParquetStore.TOPIC_FILE).write_text("{")
    with pytest.raises(ExportError, match=r"_topic\.json is damaged"):
        store.next_offsets(TOPIC)


def forecast(levels: tuple[str, ...], horizon: int, offset: int) -> LoggedRecord:
    made = Forecast(
        sensor_id="a",
        issued_at=datetime(2026, 3, 1, tzinfo=UTC),
        cadence_s=900.0,
        quantiles={
            target: {level: [float(level) + step for step in range(horizon)] for level in levels}
            for target in ("x", "y")
        },
        model=ModelId("streamgru", 2),
        settings="0f6c2d1e5a7b",
        input=InputPosition("readings", 1, 40 + offset),
        state=StateAge(0, 5, warm=False),
    )
    return LoggedRecord(TOPIC, 1, b"a", msgspec.json.encode(made), offset, [], 0)


def test_forecasts_of_different_settings_become_rows_of_one_frame() -> None:
    chunk = ForecastChunk()
    records = [forecast(("0.1", "0.5"), 2, 0), forecast(("0.5",), 3, 1), LoggedRecord(TOPIC, 1, b"a", b"{", 2, [], 0)]
    assert chunk.add(1, records) == 2 * 2 + 2 * 3
    frame = chunk.take()
    assert len(chunk) == 0
    assert chunk.left_out == {"not a forecast": 1}
    assert frame.select("offset", "target", "step", "q10", "q50", "input_offset").rows() == [
        (0, "x", 1, 0.1, 0.5, 40),
        (0, "x", 2, 1.1, 1.5, 40),
        (0, "y", 1, 0.1, 0.5, 40),
        (0, "y", 2, 1.1, 1.5, 40),
        *((1, target, step, None, step - 0.5, 41) for target in ("x", "y") for step in (1, 2, 3)),
    ]
    assert str(frame["forecast_for"][1]) == "2026-03-01 00:30:00+00:00"
    assert len(chunk.take()) == 0


@pytest.mark.parametrize(
    "change",
    [
        {"quantiles": {"x": {"p50": [1.0]}}},
        {"quantiles": {"x": {"0.1": [1.0, 2.0], "0.5": [1.0]}}},
        {"quantiles": {"x": {"0.5": []}}},
        {"quantiles": {"x": {"0.5": [1.0], "0.50": [1.0]}}},
        {"cadence_s": 1e300},
        {"cadence_s": -1.0},
        {"model": ModelId("streamgru", 2**40)},
    ],
)
def test_a_record_that_only_looks_like_a_forecast_is_counted(change: dict[str, Any]) -> None:
    good = msgspec.json.decode(forecast(("0.5",), 1, 0).value or b"", type=Forecast)
    value = msgspec.json.encode(msgspec.structs.replace(good, **change))
    chunk = ForecastChunk()
    assert chunk.add(1, [LoggedRecord(TOPIC, 1, b"a", value, 0, [], 0)]) == 0
    assert chunk.left_out == {"not a forecast": 1}
    assert len(chunk.take()) == 0


def test_columns_that_differ_only_in_case_are_refused_by_delta(tmp_path: Path) -> None:
    store = DeltaStore(tmp_path / "table")
    store.append(rows(0, range(2), temp=1.0), {0: 2}, TOPIC, TOPIC_ID)
    with pytest.raises(ExportError, match="has a column temp and cannot have Temp"):
        store.append(rows(0, range(2, 4), Temp=1.0), {0: 4}, TOPIC, TOPIC_ID)
    assert store.next_offsets(TOPIC) == {0: 2}
