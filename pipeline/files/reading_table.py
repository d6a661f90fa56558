"""The readings in a user's files: the columns of time, sensor and features, and the order of the rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipeline.errors import DataFileError
from pipeline.files.datafile import (
    CSV_SUFFIXES,
    PARQUET_SUFFIXES,
    CellError,
    is_numeric,
    line_name,
    numbers,
    read_frame,
)
from pipeline.files.file_layout import FileLayout
from pipeline.files.file_times import find_time_columns, read_times
from pipeline.messages import LONGEST_SENSOR_ID_BYTES

SENSOR: Final = "sensor"
TIME: Final = "time"
# Share of rows with a repeated time; above it, a file without a sensor column holds several sensors.
MOST_REPEATED: Final = 0.5


@dataclass(frozen=True)
class ReadingTable:
    """n readings in the order of publication.

    ``sensor_codes`` (n,) index ``sensors``; ``values`` has one float array (n,) per feature, NaN where missing;
    ``notes`` are sentences for the user about ignored rows and columns.
    """

    sensors: tuple[str, ...]
    sensor_codes: NDArray[np.int64]
    timestamp_us: NDArray[np.int64]
    values: dict[str, NDArray[np.floating]]
    notes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.timestamp_us)


def read_readings(paths: Sequence[Path], layout: FileLayout, features: Sequence[str]) -> ReadingTable:
    """All readings of the files, sorted by time across sensors (``order="event"``) or in the files' order.

    Readings of the same time stay in the files' order. Rows without any of the features are left out.

    Raises:
        DataFileError: a file is malformed or does not fit the layout; names the file and the line or column.
    """
    if layout.columns_as_sensors and layout.sensor_column is not None:
        raise DataFileError("give either --sensor-column or --columns-as-sensors, not both")
    if layout.columns_as_sensors and len(features) != 1:
        raise DataFileError(
            f"with --columns-as-sensors a reading has one feature, and the settings name {len(features)}: "
            f"{', '.join(features)}; set features to one name of your choice"
        )
    notes: list[str] = []
    frames = [_read_file(path, layout, features, notes) for path in paths]
    frame = pl.concat(frames, how="diagonal_relaxed")
    found = [feature for feature in features if feature in frame.columns]
    absent = [feature for feature in features if feature not in found]
    if absent:
        notes.append(f"no file has a column for {', '.join(absent)}; missing in every reading")
    finite = [pl.when(pl.col(name).is_finite()).then(pl.col(name)).alias(name) for name in found]
    frame = frame.with_columns(finite)
    kept = frame.filter(reduce(lambda left, right: left | right, (pl.col(name).is_not_null() for name in found)))
    if kept.height < frame.height:
        notes.append(f"{frame.height - kept.height:,} rows without a value of any feature are left out")
    if layout.order == "event":
        kept = kept.sort(TIME, maintain_order=True)
    names = kept[SENSOR].unique(maintain_order=True)
    codes = kept[SENSOR].replace_strict(names, pl.arange(len(names), eager=True), return_dtype=pl.Int64)
    return ReadingTable(
        sensors=tuple(names),
        sensor_codes=codes.to_numpy(),
        timestamp_us=kept[TIME].to_numpy(),
        values={name: kept[name].fill_null(float("nan")).to_numpy() for name in found},
        notes=tuple(dict.fromkeys(notes)),  # several files may give the same note
    )


def _read_file(path: Path, layout: FileLayout, features: Sequence[str], notes: list[str]) -> pl.DataFrame:
    """Columns ``sensor``, ``time`` (microseconds UTC) and one per feature that the file has."""
    frame = read_frame(path)
    time_columns = find_time_columns(frame, path, layout.time_columns[0] if layout.time_columns else None)
    sensors = _sensors(frame, path, layout)
    try:
        times = read_times(frame, time_columns, path, layout.timezone, sensors)
    except CellError as error:
        raise DataFileError(f"{line_name(path, error.row)}: {error}") from error
    if layout.columns_as_sensors:
        return _columns_as_sensors(frame, path, time_columns, times, features[0], notes)
    found = [feature for feature in features if feature in frame.columns and feature not in time_columns]
    if not found:
        raise DataFileError(
            f"{path} has none of the features in the settings ({', '.join(features)}); its columns are: "
            f"{', '.join(frame.columns)}. Set features and targets to columns of the file"
        )
    taken = {*time_columns, *found, layout.sensor_column}
    if ignored := [column for column in frame.columns if column not in taken]:
        notes.append(f"ignored columns: {', '.join(ignored)}")
    columns = [numbers(frame, feature, path).alias(feature) for feature in found]
    readings = pl.DataFrame([sensors.alias(SENSOR), times.alias(TIME), *columns])
    _note_repeated(readings, frame, path, layout, notes)
    return readings


def _sensors(frame: pl.DataFrame, path: Path, layout: FileLayout) -> pl.Series:
    """Each row's sensor id."""
    name = layout.sensor_column
    if name is None:
        return pl.Series([_stem(path)]).new_from_index(0, frame.height)
    if name not in frame.columns:
        raise DataFileError(f"{path} has no column {name!r}; it has: {', '.join(frame.columns)}")
    sensors = frame[name].cast(pl.String)
    bad = sensors.is_null() | (sensors.str.len_bytes() == 0) | (sensors.str.len_bytes() > LONGEST_SENSOR_ID_BYTES)
    if bad.any():
        row = int(bad.arg_true()[0])
        raise DataFileError(
            f"{line_name(path, row)}: column {name} must hold a sensor id of 1 to {LONGEST_SENSOR_ID_BYTES} bytes"
        )
    return sensors


def _columns_as_sensors(
    frame: pl.DataFrame, path: Path, time_columns: tuple[str, ...], times: pl.Series, feature: str, notes: list[str]
) -> pl.DataFrame:
    """The values of the numeric columns, each as its own sensor, in the order of rows."""
    others = [column for column in frame.columns if column not in time_columns]
    found = [column for column in others if is_numeric(frame, column, path)]
    if not found:
        raise DataFileError(
            f"{path} has no numeric column besides the time; its columns are: {', '.join(frame.columns)}"
        )
    if ignored := [column for column in others if column not in found]:
        notes.append(f"ignored columns, not numeric: {', '.join(ignored)}")
    wide = pl.DataFrame([times.alias(TIME), *(numbers(frame, column, path).alias(column) for column in found)])
    row = "__row"  # to restore the order of rows: unpivot returns column after column
    tall = wide.with_row_index(row).unpivot(found, index=[row, TIME], variable_name=SENSOR, value_name=feature)
    return tall.sort(row, maintain_order=True).select(SENSOR, TIME, feature)


def _note_repeated(
    readings: pl.DataFrame, frame: pl.DataFrame, path: Path, layout: FileLayout, notes: list[str]
) -> None:
    """Note repeated times, which the stream counts as duplicates; raise if most rows repeat a time."""
    repeated = readings.height - readings.select(SENSOR, TIME).unique().height
    if not repeated:
        return
    if layout.sensor_column is None and repeated > MOST_REPEATED * readings.height:
        text = [name for name in frame.columns if frame[name].dtype == pl.String and name not in layout.time_columns]
        raise DataFileError(
            f"{path}: {repeated:,} of {readings.height:,} rows repeat a time, so the file holds several sensors; name "
            f"the column with their ids with --sensor-column (columns of text: {', '.join(text) or 'none'})"
        )
    notes.append(f"{path.name}: {repeated:,} rows repeat a time of their sensor; the stream counts them as duplicates")


def _stem(path: Path) -> str:
    name = path.name
    for suffix in (*CSV_SUFFIXES, *PARQUET_SUFFIXES):
        if name.lower().endswith(suffix) and len(name) > len(suffix):
            return name[: -len(suffix)]
    return name
