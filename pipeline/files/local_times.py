"""Local times become UTC; the hour that clocks repeat in autumn is resolved by the order of the rows.

Where clocks are set back, a local time exists twice. A sensor's rows run forward (or backward, newest first), so a step
against their direction within the repeated hour shows where its second pass begins, if the two passes then lack few
rows: a swapped or repeated row in a single pass is a step back, too. Without this step, the pass is taken that leaves
no gap beside its neighbours. If neither decides, the file is refused: a wrong guess would move readings by an hour, and
a file without any repeated hour often has the same UTC offset all year.
"""

import zoneinfo
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipeline.errors import DataFileError
from pipeline.files.time_column import RepeatedHour, TimeColumn
from pipeline.files.time_fields import Flags, Integers
from pipeline.iso_times import DAY_US

Rows = NDArray[np.intp]

# A step of more than this many median steps is a gap.
_GAP: Final = 1.5
# Rows on either side of a repeated hour that show the direction and the cadence of its sensor.
_NEIGHBOURS: Final = 50
# Share of steps against the direction; above it, the order of the rows says nothing about time.
_MOST_BACKWARD: Final = 0.05
# Share of the rows that two passes may lack. A single pass with a swapped or repeated row lacks nearly half of them.
_MOST_MISSING: Final = 1 / 6
# Longer steps than this share of a sensor's steps are gaps, even if its steps are irregular.
_USUAL_STEPS: Final = 0.95


def check_zone(timezone: str) -> None:
    """Check that a time zone exists.

    Raises:
        DataFileError: there is no such zone.
    """
    if timezone not in zoneinfo.available_timezones():
        raise DataFileError(f"unknown time zone {timezone!r}; use a name such as UTC, Europe/Berlin or Asia/Shanghai")


@dataclass(frozen=True)
class _LocalTimes:
    """n local times and both of their readings in UTC, all (n,) microseconds."""

    local: Integers
    earlier: Integers
    later: Integers

    def take(self, rows: Rows) -> "_LocalTimes":
        return _LocalTimes(self.local[rows], self.earlier[rows], self.later[rows])

    @property
    def doubled(self) -> Flags:
        """(n,) whether the local time exists twice."""
        different: Flags = self.earlier != self.later
        return different


def localise(
    local_us: Integers, sensors: pl.Series, column: TimeColumn, timezone: str, repeated_hour: RepeatedHour
) -> Integers:
    """Microseconds UTC (n,) of n local times of ``timezone``, in the file's order; ``sensors`` is each row's sensor.

    Raises:
        DataFileError: the zone is unknown, a local time does not exist, or the order of the rows does not show which
            pass of a repeated hour it belongs to.
    """
    check_zone(timezone)
    times = _both_readings(local_us, column, timezone)
    if repeated_hour == "later":
        return times.later
    if repeated_hour == "earlier" or not times.doubled.any():
        return times.earlier
    return _infer(times, sensors, column, timezone)


def _both_readings(local_us: Integers, column: TimeColumn, timezone: str) -> _LocalTimes:
    naive = pl.Series(local_us).cast(pl.Datetime("us"))
    found = []
    for ambiguous in ("earliest", "latest"):
        moments = naive.dt.replace_time_zone(timezone, ambiguous=ambiguous, non_existent="null")
        if moments.null_count():
            row = int(moments.is_null().arg_true()[0])
            raise column.error(
                row,
                f"{naive[row]} does not exist in {timezone}, where clocks were set forward; if the file has the same "
                "UTC offset all year, name that: --timezone Etc/GMT-1 is UTC+1",
            )
        found.append(moments.dt.convert_time_zone("UTC").to_physical().to_numpy())
    return _LocalTimes(local_us, found[0], found[1])


def _infer(times: _LocalTimes, sensors: pl.Series, column: TimeColumn, timezone: str) -> Integers:
    """The times, each repeated hour of each sensor resolved."""
    utc = times.earlier.copy()
    undecided, coarse = [], False
    for rows in _rows_by_sensor(times.doubled, sensors):
        of_sensor = times.take(rows)
        for start, stop in _runs(of_sensor):
            run = _Run(of_sensor, start, stop)
            second_pass = run.second_pass()
            if second_pass is None:
                undecided.append(rows[start:stop])
                continue
            utc[rows[start:stop]] = np.where(second_pass, of_sensor.later[start:stop], of_sensor.earlier[start:stop])
            coarse |= run.fits_twice
    if undecided:
        undecided = _infer_together(utc, times, undecided)
    if undecided:
        row = int(min(run[0] for run in undecided))
        local = pl.Series([times.local[row]]).cast(pl.Datetime("us"))[0]
        raise column.error(
            row,
            f"{local} exists twice in {timezone}, where clocks were set back, and the order of the rows does not show "
            "which of the two it is. If the file has the same UTC offset all year, name that: --timezone Etc/GMT-1 is "
            "UTC+1. Otherwise write the UTC offset behind the times (2024-10-27 02:30:00+01:00), or take one "
            "of the two for all: --repeated-hour earlier or --repeated-hour later",
        )
    if coarse:
        column.guesses.add(
            f"a local time that exists twice in {timezone} is the earlier of the two", "--repeated-hour", "earlier"
        )
    return utc


def _rows_by_sensor(doubled: Flags, sensors: pl.Series) -> Iterator[Rows]:
    """The rows of each sensor that has a time in a repeated hour."""
    frame = pl.DataFrame({"sensor": sensors, "doubled": doubled}).with_row_index("row")
    affected = frame.filter("doubled")["sensor"].unique()
    kept = frame.filter(pl.col("sensor").is_in(affected.implode()))
    for rows in kept.group_by("sensor", maintain_order=True).agg("row")["row"]:
        yield rows.to_numpy().astype(np.intp)


def _runs(times: _LocalTimes) -> list[tuple[int, int]]:
    """Start and stop of each stretch of rows within one repeated hour."""
    places = np.flatnonzero(times.doubled)
    if not len(places):
        return []
    breaks = np.flatnonzero((np.diff(places) > 1) | (np.abs(np.diff(times.local[places])) > DAY_US)) + 1
    return [(int(part[0]), int(part[-1]) + 1) for part in np.split(places, breaks)]


class _Run:
    """Neighbouring rows of one sensor within a repeated hour, from ``start`` to ``stop``."""

    def __init__(self, times: _LocalTimes, start: int, stop: int) -> None:
        first, last = max(0, start - _NEIGHBOURS), stop + _NEIGHBOURS
        window = times.take(np.arange(first, min(last, len(times.local))))
        self.fits_twice = False  # both passes fit, because the sensor's steps are long
        self._start, self._stop = start - first, stop - first
        steps = np.diff(window.local)
        usual = ~(window.doubled[1:] & window.doubled[:-1])  # steps that touch a time that exists once
        direction = int(np.sign(steps[usual]).sum()) or int(np.sign(steps).sum())
        self._backward = direction < 0
        if self._backward:
            window = window.take(np.arange(len(window.local))[::-1])
            self._start, self._stop = len(window.local) - self._stop, len(window.local) - self._start
            steps, usual = -steps[::-1], usual[::-1]
        self._window = window
        self._ordered = direction != 0 and (steps[usual] < 0).sum() <= _MOST_BACKWARD * len(steps)
        self._repeats = bool((steps[usual] == 0).any())

    def second_pass(self, *, of_one_sensor: bool = True) -> Flags | None:
        """(stop - start,) whether each row is in the second pass, in the file's order; None if undecided."""
        found = self._by_order(of_one_sensor) if self._ordered else None
        if found is None and self._ordered and of_one_sensor:
            found = self._by_gaps()
        return found[::-1] if found is not None and self._backward else found

    def _by_order(self, of_one_sensor: bool) -> Flags | None:
        """A single step back, or a single repeated time, begins the second pass, unless the passes lack many rows."""
        steps = np.diff(self._window.local[self._start : self._stop])
        back = np.flatnonzero(steps < 0)
        if not len(back) and of_one_sensor and not self._repeats:
            back = np.flatnonzero(steps == 0)
        if len(back) != 1:
            return None
        second: Flags = np.arange(self._stop - self._start) > back[0]
        is_cut = not self._start or self._stop == len(self._window.local)  # then, the file holds few rows of the passes
        return second if self._missing_share(second) <= (0 if is_cut else _MOST_MISSING) else None

    def _missing_share(self, second: Flags) -> float:
        """The share of the rows that gaps leave out, from the row before the run to the row after it."""
        window, start, stop = self._window, self._start, self._stop
        utc = window.earlier.copy()
        utc[start:stop] = np.where(second, window.later[start:stop], window.earlier[start:stop])
        around = np.diff(utc[max(0, start - 1) : stop + 1])
        steps = self._usual_steps()
        if not len(steps):
            steps = around[around > 0]
        step = float(np.median(steps))
        gaps = around[around > max(_GAP * step, float(np.quantile(steps, _USUAL_STEPS)))]
        missing = float((gaps / step - 1).sum())
        return missing / (missing + np.count_nonzero(around > 0) - 1 or 1)

    def _usual_steps(self) -> Integers:
        """The steps of the window between times that exist once."""
        steps = np.diff(self._window.earlier)
        usual: Integers = steps[(steps > 0) & ~self._window.doubled[1:] & ~self._window.doubled[:-1]]
        return usual

    def _by_gaps(self) -> Flags | None:
        """The only pass that leaves no gap to its neighbours; the first if the steps are too long to tell."""
        window, start, stop = self._window, self._start, self._stop
        if (np.diff(window.local[start:stop]) <= 0).any():
            return None
        steps = self._usual_steps()
        if not len(steps):
            return None
        longest = _GAP * float(np.median(steps))
        fits = []
        for reading in (window.earlier, window.later):
            around = reading[max(0, start - 1) : stop + 1]  # neighbours have one reading
            fits.append(bool((np.diff(around) <= longest).all()))
        if not any(fits):
            return None
        self.fits_twice = all(fits)
        return np.full(stop - start, not fits[0])


def _infer_together(utc: Integers, times: _LocalTimes, undecided: list[Rows]) -> list[Rows]:
    """Resolve runs by the order of all rows, in a file whose sensors alternate; return the runs that stay undecided."""
    everything = dict(_runs(times))
    resolved: dict[int, Flags | None] = {}
    starts = np.array(list(everything))
    left = []
    for rows in undecided:
        start = int(starts[np.searchsorted(starts, rows[0], side="right") - 1])
        if start not in resolved:
            resolved[start] = _Run(times, start, everything[start]).second_pass(of_one_sensor=False)
        second_pass = resolved[start]
        if second_pass is None or rows[-1] >= everything[start]:
            left.append(rows)
        else:
            utc[rows] = np.where(second_pass[rows - start], times.later[rows], times.earlier[rows])
    return left
