"""The readings in a user's files: the columns of time, sensor and features, and the order of the rows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipeline.errors import DataFileError
from pipeline.files.cell_forms import is_time
from pipeline.files.datafile import CellError, DataTable, read_table
from pipeline.files.file_layout import FileLayout
from pipeline.files.file_times import find_time_columns, read_times
from pipeline.files.guesses import Guesses, guess_notes
from pipeline.files.missing_values import extreme_note
from pipeline.files.number_columns import read_numbers, why_not_numeric
from pipeline.files.reading_encoder import ReadingEncoder
from pipeline.files.reading_limits import check_sensor_ids, check_values, may_exceed, too_large
from pipeline.files.sensor_names import sensor_names
from pipeline.files.sources import Source, find_sources

# Columns of the frame of all files; the values of feature 0 are in the column "value 0". A feature may have any name.
_SENSOR: Final = "sensor"
_TIME: Final = "time"
_ISSUED: Final = "issued"
_FILE: Final = "file"
_PLACE: Final = "place"
_CHECKED_ROWS: Final = 8_192  # encoded at once
# Share of rows with a repeated time; above it, a file without a sensor column holds several sensors.
MOST_REPEATED: Final = 0.5
_REPEATED: Final = (
    "of equal times, the stream takes the first reading; it counts the other readings as duplicates, or as late if a "
    "later reading of the sensor came between"
)
_TIME_OF_DAY: Final = r"^\d{1,2}[:.]\d{2}([:.]\d{2}([.,]\d+)?)?( ?[AaPp]\.?[Mm]\.?)?$"


@dataclass(frozen=True)
class ReadingTable:
    """n readings in the order of publication.

    ``sensor_codes`` (n,) index ``sensors``; ``values`` has one float array (n,) per feature, NaN where missing;
    ``notes`` are sentences for the user about ignored rows and columns. ``origin`` names the file and line of a row.
    In a table of outlooks each row is an entry of the outlook issued at ``issued_us`` (n,).
    """

    sensors: tuple[str, ...]
    sensor_codes: NDArray[np.int64]
    timestamp_us: NDArray[np.int64]
    values: dict[str, NDArray[np.floating]]
    notes: tuple[str, ...]
    origin: Callable[[int], str] | None = None
    issued_us: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.timestamp_us)


def read_readings(
    paths: Sequence[Path], layout: FileLayout, features: Sequence[str], max_reading_bytes: int | None = None
) -> ReadingTable:
    """All readings of the files, sorted by time across sensors (``order="event"``) or in the files' order.

    With ``layout.issued_column`` the rows are entries of outlooks, sorted by their time of issue.

    Paths may be patterns, zip archives and folders of Parquet files. Readings of the same time stay in the files'
    order. Rows without any of the features are left out. The decoder of the stream accepts every reading, and a record
    has at most ``max_reading_bytes``.

    Raises:
        DataFileError: a file is malformed, does not fit the layout, or holds a reading that the stream rejects; names
            the file and the line or column.
    """
    if layout.columns_as_sensors and layout.sensor_column is not None:
        raise DataFileError("give either --sensor-column or --columns-as-sensors, not both")
    if layout.columns_as_sensors and len(features) != 1:
        raise DataFileError(
            f"with --columns-as-sensors a reading has one feature, and the settings name {len(features)}: "
            f"{', '.join(features)}; set features to one name of your choice"
        )
    sources, notes = find_sources(paths)
    is_named_by_file = not layout.columns_as_sensors and layout.sensor_column is None
    names = sensor_names(sources, notes) if is_named_by_file else [""] * len(sources)
    guesses = [Guesses() for _ in sources]
    files = []
    for number, (source, name, guessed) in enumerate(zip(sources, names, guesses, strict=True)):
        table = read_table(source, layout, guessed, notes)
        reader = _FileReader(table, layout, features, guessed, notes)
        files.append(reader.read(name).with_columns(pl.lit(number, pl.UInt32).alias(_FILE)))
    frame = pl.concat(files, how="diagonal_relaxed")
    columns = {_value(i): feature for i, feature in enumerate(features) if _value(i) in frame.columns}
    absent = [feature for feature in features if feature not in columns.values()]
    if absent:
        notes.append(f"no file has a column for {', '.join(absent)}; missing in every reading")
    kept = frame.filter(reduce(lambda left, right: left | right, (pl.col(name).is_not_null() for name in columns)))
    if kept.height < frame.height:
        notes.append(f"{frame.height - kept.height:,} rows without a value of any feature are left out")
    if not layout.columns_as_sensors:
        notes += [note for name, feature in columns.items() if (note := extreme_note(feature, kept[name]))]
    if len(sources) > 1 and layout.issued_column is None:
        _note_repeated_over_files(kept, sources, notes)
    if layout.order == "event":
        kept = kept.sort(_TIME if layout.issued_column is None else _ISSUED, maintain_order=True)
    ids = kept[_SENSOR].unique(maintain_order=True)
    codes = kept[_SENSOR].replace_strict(ids, pl.arange(len(ids), eager=True), return_dtype=pl.Int64)
    notes = [*guess_notes([source.name for source in sources], guesses), *notes]
    places = kept.select(_FILE, _PLACE)
    found = ReadingTable(
        sensors=tuple(ids),
        sensor_codes=codes.to_numpy().astype(np.int64, copy=False),
        timestamp_us=kept[_TIME].to_numpy(),
        values={feature: kept[name].fill_null(float("nan")).to_numpy() for name, feature in columns.items()},
        notes=tuple(dict.fromkeys(notes)),  # several files may give the same note
        origin=lambda row: _where(places, row, sources),
        issued_us=kept[_ISSUED].to_numpy() if _ISSUED in kept.columns else None,
    )
    if max_reading_bytes is not None:
        _check_sizes(found, max_reading_bytes)
    return found


@dataclass
class _FileReader:
    """Reads the readings of one file."""

    table: DataTable
    layout: FileLayout
    features: Sequence[str]
    guesses: Guesses
    notes: list[str]

    def read(self, name: str) -> pl.DataFrame:
        """Columns of sensor, time (microseconds UTC), place, and one per feature that the file has."""
        table, frame = self.table, self.table.frame
        issued_column = self._issued_column()
        time_columns = self._time_columns()
        sensors = self._sensors(name)
        times = self._times(time_columns, sensors)
        if self.layout.columns_as_sensors:
            return self._columns_as_sensors(time_columns, times)
        found = {i: column for i, name in enumerate(self.features) if (column := table.column(name)) is not None}
        found = {i: column for i, column in found.items() if column not in (*time_columns, issued_column)}
        if not found:
            what, remedy = (
                ("features", "features and targets") if issued_column is None else ("covariates", "outlooks.covariates")
            )
            raise DataFileError(
                f"{table.source.name} has none of the {what} in the settings ({', '.join(self.features)}); its "
                f"columns are: {', '.join(frame.columns)}. Set {remedy} to columns of the file"
            )
        taken = {*time_columns, *found.values(), self._sensor_column, issued_column}
        if ignored := [column for column in frame.columns if column not in taken]:
            self.notes.append(f"ignored columns: {', '.join(ignored)}")
        columns = self._numbers(list(found.values()))
        readings = pl.DataFrame(
            [
                sensors.alias(_SENSOR),
                times.alias(_TIME),
                pl.Series(_PLACE, table.places, pl.UInt32),
                *(series.alias(_value(i)) for i, series in zip(found, columns, strict=True)),
            ]
        )
        if issued_column is not None:
            return readings.with_columns(self._times((issued_column,), sensors).alias(_ISSUED))
        self._note_repeated(readings, time_columns)
        return readings

    def _times(self, columns: tuple[str, ...], sensors: pl.Series) -> pl.Series:
        """Microseconds UTC of each row."""
        layout = self.layout
        return read_times(
            self.table.frame,
            columns,
            Path(self.table.source.name),
            layout.timezone,
            sensors,
            time_format=layout.time_format,
            repeated_hour=layout.repeated_hour,
            place=self.table.where,
            guesses=self.guesses,
            notes=self.notes,
        )

    def _issued_column(self) -> str | None:
        """The column of the times of issue."""
        given = self.layout.issued_column
        if given is None:
            return None
        column = self.table.column(given)
        if column is None:
            raise DataFileError(
                f"{self.table.source.name} has no column {given!r} of times of issue; it has: "
                f"{', '.join(self.table.frame.columns)}. Name the column with --issued-column"
            )
        return column

    @property
    def _sensor_column(self) -> str | None:
        name = self.layout.sensor_column
        return None if name is None else self.table.column(name)

    def _time_columns(self) -> tuple[str, ...]:
        """The columns that the layout names, date and time columns that belong together, or the only candidate."""
        table, name = self.table, self.table.source.name
        given = self.layout.time_columns
        if len(given) == 1 and table.column(given[0]) is None:
            given = tuple(given[0].split(","))
        if len(given) > 1:
            columns = [(name, table.column(name)) for name in given]
            missing = [repr(name) for name, column in columns if column is None]
            if missing:
                raise DataFileError(
                    f"{name} has no column {', '.join(missing)}; it has: {', '.join(table.frame.columns)}"
                )
            return tuple(column for _, column in columns if column is not None)
        if not given and (pair := self._date_and_time()):
            self.guesses.add(f"{' and '.join(pair)} together hold the time", "--time-column", ",".join(pair))
            return pair
        if given:
            return find_time_columns(table.frame, Path(name), table.column(given[0]) or given[0])
        try:
            return find_time_columns(table.frame, Path(name), None)
        except DataFileError:
            # A feature called "timestamp" is not the time, if another column can be.
            others = [column for column in table.frame.columns if column not in self.features]
            try:
                return find_time_columns(table.frame.select(others), Path(name), None)
            except DataFileError:
                pass
            raise

    def _date_and_time(self) -> tuple[str, str] | None:
        """A column of dates and one of times of day, by their names and cells."""
        by_lower = {name.lower(): name for name in self.table.frame.columns}
        if "date" not in by_lower or "time" not in by_lower:
            return None
        date, time = by_lower["date"], by_lower["time"]
        dates, times = (self.table.frame[name].drop_nulls() for name in (date, time))
        if dates.dtype == pl.Date and times.dtype == pl.Time:
            return date, time
        if dates.dtype != pl.String or times.dtype != pl.String or not len(dates) or not len(times):
            return None
        is_pair = is_time(dates[0]) and ":" not in dates[0] and times.str.strip_chars().str.contains(_TIME_OF_DAY).all()
        return (date, time) if is_pair else None

    def _sensors(self, name: str) -> pl.Series:
        """Each row's sensor id; ``name`` is the name of a file that is one sensor."""
        table, given = self.table, self.layout.sensor_column
        if given is None:
            sensors = pl.Series([name]).new_from_index(0, table.frame.height)
            if not self.layout.columns_as_sensors:
                check_sensor_ids(sensors[:1], f"(the name of the file {table.source.name})")
            return sensors
        column = self._sensor_column
        if column is None:
            raise DataFileError(
                f"{table.source.name} has no column {given!r}; it has: {', '.join(table.frame.columns)}"
            )
        try:
            sensors = table.frame[column].cast(pl.String)
        except pl.exceptions.PolarsError as error:
            kind = table.frame[column].dtype
            raise DataFileError(f"{table.source.name}: column {column} holds {kind}, not sensor ids") from error
        stripped = sensors.str.strip_chars()
        padded = sensors.filter(stripped != sensors).unique(maintain_order=True)
        if len(padded) and self.layout.strip_ids:
            sensors = stripped
        elif len(padded):
            self.notes.append(
                f"column {column}: blanks are part of {len(padded):,} sensor ids, such as {padded[0]!r}, as they are "
                "in the stream; to remove them, add --strip-ids"
            )
        try:
            check_sensor_ids(sensors, column)
        except CellError as error:
            raise table.named(error) from error
        return sensors

    def _numbers(self, columns: Sequence[str]) -> list[pl.Series]:
        """The columns as floats within the limits of the stream, null where missing."""
        found = read_numbers(self.table, columns, self.layout, self.guesses, self.notes)
        for column, values in zip(columns, found, strict=True):
            try:
                check_values(values, self.table.frame[column], column)
            except CellError as error:
                raise self.table.named(error) from error
        return found

    def _columns_as_sensors(self, time_columns: tuple[str, ...], times: pl.Series) -> pl.DataFrame:
        """The values of the numeric columns, each as its own sensor, in the order of rows."""
        table = self.table
        others = [column for column in table.frame.columns if column not in time_columns]
        reasons = {column: why_not_numeric(table, column, self.layout) for column in others}
        found = [column for column, reason in reasons.items() if reason is None]
        if not found:
            raise DataFileError(
                f"{table.source.name} has no numeric column besides the time; its columns are: "
                f"{', '.join(table.frame.columns)}"
            )
        if ignored := [column for column in others if column not in found]:
            self.notes.append(f"ignored columns, not numeric: {', '.join(ignored)} ({reasons[ignored[0]]})")
        columns = self._numbers(found)
        self.notes += [note for column in columns if (note := extreme_note(column.name, column))]
        check_sensor_ids(pl.Series(found), f"(a name in the header of {table.source.name})")
        n, count = table.frame.height, len(found)
        values = np.stack([column.fill_null(float("nan")).to_numpy() for column in columns], axis=1)
        return pl.DataFrame(
            [
                pl.Series(_SENSOR, np.tile(np.arange(count), n)).replace_strict(
                    range(count), found, return_dtype=pl.String
                ),
                pl.Series(_TIME, np.repeat(times.to_numpy(), count)),
                pl.Series(_PLACE, np.repeat(table.places, count), pl.UInt32),
                pl.Series(_value(0), values.ravel()).fill_nan(None),
            ]
        )

    def _note_repeated(self, readings: pl.DataFrame, time_columns: Sequence[str]) -> None:
        """Note repeated times, which get no second forecast; raise if most rows repeat a time."""
        repeated = readings.height - readings.select(_SENSOR, _TIME).unique().height
        if not repeated:
            return
        frame, source = self.table.frame, self.table.source
        if self.layout.sensor_column is None and repeated > MOST_REPEATED * readings.height:
            text = [name for name in frame.columns if frame[name].dtype == pl.String and name not in time_columns]
            raise DataFileError(
                f"{source.name}: {repeated:,} of {readings.height:,} rows repeat a time, so the file holds several "
                "sensors; name the column with their ids with --sensor-column (columns of text: "
                f"{', '.join(text) or 'none'})"
            )
        self.notes.append(f"{source.path.name}: {repeated:,} rows repeat a time of their sensor; {_REPEATED}")


def _value(feature: int) -> str:
    return f"value {feature}"


def _where(frame: pl.DataFrame, row: int, sources: Sequence[Source]) -> str:
    return sources[int(frame[_FILE][row])].place(int(frame[_PLACE][row]))


def _note_repeated_over_files(readings: pl.DataFrame, sources: Sequence[Source], notes: list[str]) -> None:
    """Note readings with the sensor and time of a reading in another file, which get no second forecast."""
    key = [_SENSOR, _TIME]
    within = readings.height - readings.select(*key, _FILE).unique().height
    repeated = readings.height - readings.select(key).unique().height - within
    if not repeated:
        return
    of_key = pl.col(_FILE).n_unique().over(key)
    first = readings.with_row_index("row").filter(of_key > 1).sort(key, maintain_order=True).head(1)
    same = readings.with_row_index("row").filter(
        (pl.col(_SENSOR) == first[_SENSOR][0]) & (pl.col(_TIME) == first[_TIME][0])
    )
    other = same.filter(pl.col(_FILE) != same[_FILE][0])
    places = [_where(readings, int(rows["row"][0]), sources) for rows in (same, other)]
    notes.append(
        f"{repeated:,} rows repeat the sensor and time of a row in another file, such as sensor "
        f"{first[_SENSOR][0]} in {places[0]}, and {places[1]}; {_REPEATED}"
    )


def _check_sizes(table: ReadingTable, max_reading_bytes: int) -> None:
    """Raise for a reading that is larger than the topic accepts.

    Raises:
        DataFileError: names the reading's line.
    """
    longest = max((len(sensor.encode()) for sensor in table.sensors), default=0)
    if not may_exceed(longest, tuple(table.values), max_reading_bytes):
        return
    encoder = ReadingEncoder(table)
    for start in range(0, len(table), _CHECKED_ROWS):
        rows = np.arange(start, min(start + _CHECKED_ROWS, len(table)))
        bad = too_large(*encoder.encode(rows), max_reading_bytes)
        if len(bad):
            where = "" if table.origin is None else f"{table.origin(start + int(bad[0]))}: "
            raise DataFileError(
                f"{where}as a reading this row is larger than {max_reading_bytes:,} bytes, and "
                "the topic refuses it; raise kafka.max_reading_bytes and the topic's limit (`streamgru topics create "
                "--alter`), or name fewer features"
            )
