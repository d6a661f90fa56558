"""The layout of a user's files: the meaning of their columns, and the form of their text."""

import re
from dataclasses import dataclass, fields
from typing import Any, Final, Literal, Self

from pipeline.files.time_column import RepeatedHour
from pipeline.settings.sections import FilesSettings

Order = Literal["event", "file"]
# Names for separators that are hard to type in a shell.
SEPARATOR_NAMES: Final = {"comma": ",", "semicolon": ";", "tab": "\t", "pipe": "|", "space": " "}
# A number with a decimal comma, or a list of two numbers.
_COMMA_NUMBER: Final = re.compile(r"[+-]?[0-9]*,[0-9]+")


@dataclass(frozen=True)
class FileLayout:
    """The layout of files, as options, settings or the files themselves give it; None leaves the choice to the reader.

    ``time_column`` is one column, or two for date and time; None is the only candidate. ``timezone`` is needed if times
    have no zone; ``repeated_hour`` is the reading of a local time that exists twice. The sensor is the value of
    ``sensor_column``, or each numeric column is a sensor (``columns_as_sensors``), or the whole file is one sensor with
    the name of the file.
    """

    time_column: str | tuple[str, ...] | None = None
    time_format: str | None = None
    timezone: str | None = None
    repeated_hour: RepeatedHour = "infer"
    sensor_column: str | None = None
    strip_ids: bool = False  # whether blanks around a sensor id are removed
    columns_as_sensors: bool = False
    encoding: str | None = None
    separator: str | None = None  # one character, or one of SEPARATOR_NAMES
    decimal: str | None = None
    thousands: str | None = None
    missing: tuple[str, ...] = ()  # texts and numbers that stand for a missing value, in addition to the usual words
    unclear_missing: tuple[str, ...] = ()  # texts that ``missing`` takes for lists, and that may be decimal commas
    skip_rows: int | None = None  # number of lines before the header
    unit_rows: int | None = None  # number of lines between the header and the readings
    comment: str | None = None  # lines that begin with it are ignored; empty for no comments
    header: bool | None = None  # whether the first line names the columns
    column_names: tuple[str, ...] = ()  # of a file without a header
    issued_column: str | None = None  # times of issue, in a file of outlooks; the times then repeat
    order: Order = "event"

    @classmethod
    def of(cls, settings: FilesSettings, **options: Any) -> Self:
        """The layout that the settings give, with the ``options`` that are neither None nor empty.

        An option ``missing`` has texts of comma-separated numbers and words. An option for the sensors replaces a
        setting for the sensors.
        """
        from_settings = {field.name: getattr(settings, field.name, None) for field in fields(cls)}
        merged = {name: value for name, value in from_settings.items() if value is not None}
        given = {name: value for name, value in options.items() if value is not None and value != ()}
        if lists := given.get("missing"):
            given["missing"] = tuple(part for text in lists for part in text.split(","))
            given["unclear_missing"] = tuple(text for text in lists if _COMMA_NUMBER.fullmatch(text.strip()))
        if given.keys() & {"sensor_column", "columns_as_sensors"}:
            merged = {name: merged[name] for name in merged.keys() - {"sensor_column", "columns_as_sensors"}}
        return cls(**merged | given)

    @property
    def time_columns(self) -> tuple[str, ...]:
        """The names given for the time columns; empty if they are to be found."""
        if self.time_column is None:
            return ()
        return (self.time_column,) if isinstance(self.time_column, str) else tuple(self.time_column)
