"""The name, the cells and the lines of a time column, for messages."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipeline.errors import DataFileError
from pipeline.files.guesses import Guesses
from pipeline.messages import EARLIEST_TIMESTAMP_US, LATEST_TIMESTAMP_US

RepeatedHour = Literal["infer", "earlier", "later"]

_LONGEST_SHOWN: Final = 60


@dataclass(frozen=True)
class TimeOptions:
    """The user's word on a time column; None leaves the choice to the reader.

    ``time_format`` is a strptime pattern or one of ``time_formats.WORDS``. ``timezone`` is the zone of times that have
    none; where its clocks are set back, ``repeated_hour`` is the reading of a local time that exists twice. ``now_us``
    is the clock, in microseconds: a guess that gives times in the far future is refused.
    """

    timezone: str | None = None
    time_format: str | None = None
    repeated_hour: RepeatedHour = "infer"
    now_us: int = field(default_factory=lambda: time.time_ns() // 1_000)


@dataclass(frozen=True)
class TimeColumn:
    """A column of times as it stands in the file.

    ``file`` is its path. ``place`` names a row (from 0): ``data.csv, line 17``. ``guesses`` collects
    properties that were recognised, and ``notes`` collects other sentences for the user.
    """

    name: str
    file: str
    cells: pl.Series
    place: Callable[[int], str]
    guesses: Guesses = field(default_factory=Guesses)
    notes: list[str] = field(default_factory=list)

    def error(self, row: int, problem: str) -> DataFileError:
        """An error that names the line."""
        return DataFileError(f"{self.place(row)}: {problem}")

    def cell_error(self, row: int, problem: str) -> DataFileError:
        """An error that names the line, the cell and the column; ``problem`` is a predicate: "is not a date"."""
        return self.error(row, f"{self.show(row)} in column {self.name} {problem}")

    def show(self, row: int) -> str:
        """The cell as text for a message, shortened."""
        cell, kind = self.cells[row : row + 1], self.cells.dtype
        if isinstance(kind, pl.Datetime | pl.Date):
            # numpy writes years that make polars panic.
            unit = kind.time_unit if isinstance(kind, pl.Datetime) else "D"
            shown = (
                str(cell.to_physical().cast(pl.Int64).to_numpy().astype(f"datetime64[{unit}]")[0])
                .replace("T0", " 0")
                .replace("T1", " 1")
                .replace("T2", " 2")
            )
        else:
            shown = repr(cell[0]) if kind == pl.String else str(cell[0])
        return shown if len(shown) <= _LONGEST_SHOWN else f"{shown[:_LONGEST_SHOWN]}…"

    def check_range(self, us: NDArray[np.int64]) -> None:
        """Raise the error for the first of n times, in microseconds, that the stream rejects."""
        bad = (us < EARLIEST_TIMESTAMP_US) | (us >= LATEST_TIMESTAMP_US)
        if bad.any():
            row = int(bad.argmax())
            raise self.cell_error(row, "lies outside the years 1900 to 2199; the stream rejects such a reading")

    def line(self, row: int) -> str:
        """The row's line without the file."""
        return self.place(row).rsplit(", ", 1)[-1]


class Times(NamedTuple):
    """n times in microseconds, each (n,): UTC, or local times without a zone."""

    us: NDArray[np.int64]
    is_local: bool
    leap: NDArray[np.bool_] | None = None  # times of a second 60; ``us`` is the second before
