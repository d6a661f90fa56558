"""Outlooks: values of covariates for times ahead, as they were known when a forecast was made.

An accepted outlook lies on a grid of cells, a cadence apart, from its smallest time on. A step sees the newest accepted
outlook of its sensor whose record came before the record that made its reading accepted. All rules go by the order of
records within a partition, so the stream, the history and the audit agree.

Letters: n readings, m outlooks, S sensors, C covariates of outlooks, h horizon steps.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from .acceptance import NEVER_US, running_maximum
from .known_ahead import OutlookConfig

if TYPE_CHECKING:  # PyTorch takes seconds to load, and commands without a model do without it
    from torch import Tensor

Indexes = NDArray[np.int64]
Times = TypeVar("Times", Indexes, "Tensor")  # microseconds, as an array or on a device

NO_OUTLOOK: Final = -1  # the row of a step whose sensor has no outlook
NO_ISSUE_US: Final = NEVER_US  # the time of issue that stands for "no outlook"

ACCEPTED: Final = 0
OUTDATED: Final = 1  # issued no later than the outlook accepted before: a duplicate or a late outlook
WITHOUT_STATE: Final = 2  # its sensor had no reading yet


@dataclass(frozen=True)
class Outlooks:
    """m outlooks on their grids. An outlook of a group lies here once, and its sensors' steps point to it."""

    issued_us: Indexes  # (m,)
    first_us: Indexes  # (m,) time of the first cell
    values: NDArray[np.float32]  # (m, steps, C), NaN where missing

    def __len__(self) -> int:
        """m: the number of outlooks."""
        return len(self.issued_us)

    @classmethod
    def none(cls, config: OutlookConfig) -> "Outlooks":
        """No outlooks."""
        no_time = np.empty(0, np.int64)
        return cls(no_time, no_time, np.empty((0, config.steps, config.covariate_count), np.float32))

    def followed_by(self, later: "Outlooks") -> "Outlooks":
        """These outlooks, then the ``later`` ones."""
        return Outlooks(
            np.concatenate([self.issued_us, later.issued_us]),
            np.concatenate([self.first_us, later.first_us]),
            np.concatenate([self.values, later.values]),
        )


@dataclass(frozen=True)
class Grid:
    """The values of one outlook on its cells."""

    first_us: int  # time of the first cell
    values: NDArray[np.float32]  # (steps, C), NaN where missing
    dropped: int  # entries beyond the last cell


def lay_on_grid(config: OutlookConfig, cadence_us: int, timestamp_us: Indexes, values: NDArray[np.floating]) -> Grid:
    """The entries of an outlook on its cells. Each lies in the nearest cell; of several, the last one given stays.

    Args:
        timestamp_us: (n,) at least one time, in any order.
        values: (n, C), NaN where missing.
    """
    first_us = int(timestamp_us.min())
    cell = nearest_cell(timestamp_us - first_us, cadence_us)
    kept = np.flatnonzero(cell < config.steps)
    cells = np.full((config.steps, config.covariate_count), np.nan, np.float32)
    # One entry after the other would be slow; of repeated indexes, numpy assigns the last.
    cells[cell[kept]] = values[kept]
    return Grid(first_us, cells, len(cell) - len(kept))


def lay_all(
    config: OutlookConfig,
    cadence_us: int,
    issued_us: Indexes,
    entries: Iterable[tuple[Indexes, NDArray[np.floating]]],
) -> Outlooks:
    """The outlooks with these times of issue (m,), each from its times (n,) and values (n, C) by ``lay_on_grid``."""
    first_us = np.empty(len(issued_us), np.int64)
    values = np.empty((len(issued_us), config.steps, config.covariate_count), np.float32)
    for place, (timestamp_us, given) in enumerate(entries):
        grid = lay_on_grid(config, cadence_us, timestamp_us, given)
        first_us[place], values[place] = grid.first_us, grid.values
    return Outlooks(issued_us, first_us, values)


def nearest_cell(since_us: Times, cadence_us: int) -> Times:
    """(...,) the cell nearest to each time since the first cell; half a cadence belongs to the later cell."""
    cell: Times = (2 * since_us + cadence_us) // (2 * cadence_us)
    return cell


@dataclass(frozen=True)
class Records:
    """Readings or outlooks in their partitions' order."""

    sensor: NDArray[np.integer]  # (n,) below S
    position: Indexes  # (n,) ascends with the offset; for a reading that of the record that made it accepted


@dataclass(frozen=True)
class AsOf:
    """Which outlook each reading's step sees."""

    row: NDArray[np.int32]  # (n,) index among the outlooks, or ``NO_OUTLOOK``
    verdict: NDArray[np.int8]  # (m,) ``ACCEPTED``, ``OUTDATED`` or ``WITHOUT_STATE``
    last: NDArray[np.int32]  # (S,) the outlook that each sensor's state carries after all records


def as_of(
    readings: Records,
    reset: NDArray[np.bool_],
    outlooks: Records,
    issued_us: Indexes,
    exists: NDArray[np.bool_],
) -> AsOf:
    """The newest accepted outlook before each accepted reading.

    An outlook is accepted if its sensor's state exists and if it was issued later than the outlook carried by the
    state. A reset clears the state's outlook.

    Args:
        readings: n accepted readings. Those of one sensor with equal positions are in the order of their steps.
        reset: (n,) whether the state is reset before the reading; a sensor's first reading is a reset.
        outlooks: m outlooks, an entry for each sensor of a group. A state's own outlook may be given as an entry before
            all other positions.
        issued_us: (m,) of the outlooks; ``NO_ISSUE_US`` is never accepted.
        exists: (S,) whether the sensor's state exists before these records.
    """
    n, m, S = len(readings.sensor), len(outlooks.sensor), len(exists)
    # A beginning for each sensor, then outlooks and readings in order. No outlook has the position of a reading.
    sensor = np.concatenate([np.arange(S), outlooks.sensor, readings.sensor])
    position = np.concatenate([np.full(S, np.iinfo(np.int64).min), outlooks.position, readings.position])
    order = np.lexsort((np.arange(len(sensor)), position, sensor))
    issue = np.concatenate([np.full(S, NO_ISSUE_US), issued_us, np.full(n, NO_ISSUE_US)])[order]
    begins = np.concatenate([np.ones(S, bool), np.zeros(m, bool), reset])[order]
    has_state = np.concatenate([exists, np.zeros(m, bool), np.ones(n, bool)])[order]
    stretch = np.cumsum(begins) - 1  # between resets
    has_state = has_state[np.flatnonzero(begins)][stretch]
    newest = running_maximum(stretch, issue)
    newer = np.ones(len(issue), bool)
    newer[1:] = (stretch[1:] != stretch[:-1]) | (newest[1:] > newest[:-1])
    accepted = newer & has_state & (issue != NO_ISSUE_US)
    marks = np.where(accepted | begins, np.arange(len(order)), 0)
    at = np.maximum.accumulate(marks) if len(marks) else marks
    row = np.where(accepted, order - S, NO_OUTLOOK)[at]
    unsorted = np.empty(len(order), np.int32)
    unsorted[order] = row
    last = np.full(S, NO_OUTLOOK, np.int32)
    last[sensor[order]] = row  # of a sensor's records, numpy assigns the last
    verdict = np.empty(len(order), np.int8)
    verdict[order] = np.where(accepted, ACCEPTED, np.where(has_state, OUTDATED, WITHOUT_STATE))
    return AsOf(unsorted[S + m :], verdict[S : S + m], last)


@dataclass(frozen=True)
class Arrivals:
    """Outlooks that come to sensors between their readings, for ``stepper.Stepper.step``."""

    slots: Indexes  # (m,) index of the sensor's state; an outlook of a group has an entry for each sensor
    position: Indexes  # (m,) offset of the outlook's record
    row: Indexes  # (m,) index in ``outlooks``
    outlooks: Outlooks
    known_at: Indexes  # (n,) offset of the record that made each reading accepted


@dataclass(frozen=True)
class StepOutlooks:
    """The outlooks that readings see, and those that states carry afterwards."""

    outlooks: Outlooks
    row: NDArray[np.int32]  # (n,) of each reading; ``NO_OUTLOOK`` for none
    verdict: NDArray[np.int8]  # (m,) of the arrivals
    slots: Indexes  # (a,) the states with a reading or an arrival
    last: NDArray[np.int32]  # (a,) the outlook that each of them carries afterwards; ``NO_OUTLOOK`` for none
    counts_from: Indexes  # (a,) lowest offset of an outlook that may still count for each of them

    @property
    def issued_us(self) -> Indexes:
        """(n,) time of issue of the outlook that each reading sees; ``NO_ISSUE_US`` for none."""
        return np.where(self.row >= 0, np.append(self.outlooks.issued_us, NO_ISSUE_US)[self.row], NO_ISSUE_US)


def step_outlooks(
    states: NDArray[Any], slots: Indexes, reset: NDArray[np.bool_], offsets: Indexes, arrivals: Arrivals | None
) -> StepOutlooks:
    """The outlooks of n readings from the states' own and the arriving ones; the states stay as they are.

    An arriving outlook that the state has counted already is outdated, so a replay of records changes nothing.

    Args:
        states: (B,) records of ``state.state_dtype``.
        slots, offsets: (n,) of the readings; reset: (n,) whether the state is reset before each.
    """
    arrived_slots = arrivals.slots if arrivals is not None else np.empty(0, np.int64)
    every, sensor = np.unique(np.concatenate([slots, arrived_slots]), return_inverse=True)
    n, count = len(slots), len(every)
    own = states[every]
    outlooks = Outlooks(own["outlook_issued_us"], own["outlook_first_us"], own["outlook"])
    entry = np.arange(count)  # the row of each entry: a state's own outlook comes before all arrivals
    offset = np.full(count, -1)
    known_at = offsets
    is_counted = np.zeros(count, bool)
    if arrivals is not None:
        outlooks = outlooks.followed_by(arrivals.outlooks)
        entry = np.concatenate([entry, count + arrivals.row])
        offset = np.concatenate([offset, arrivals.position])
        known_at = arrivals.known_at
        is_counted = np.append(is_counted, arrivals.position < own["outlook_from"][sensor[n:]])
    # A reading that waited may be released at the offset of an outlook, and does not see it.
    found = as_of(
        Records(sensor[:n], 2 * known_at),
        reset,
        Records(np.concatenate([np.arange(count), sensor[n:]]), 2 * offset + 1),
        np.where(is_counted, NO_ISSUE_US, outlooks.issued_us[entry]),
        own["last_us"] != NEVER_US,
    )
    counts_from = own["outlook_from"].copy()
    np.maximum.at(counts_from, sensor[:n][reset], known_at[reset])
    is_new = found.last >= count
    counts_from[is_new] = offset[found.last[is_new]] + 1
    row, last = (np.where(each >= 0, entry[each], NO_OUTLOOK).astype(np.int32) for each in (found.row, found.last))
    return StepOutlooks(outlooks, row, found.verdict[count:], every, last, counts_from)


def store_outlooks(states: NDArray[Any], seen: StepOutlooks) -> None:
    """Put the outlooks that the states carry after ``step_outlooks`` into the states."""
    has_one = seen.last >= 0
    row = np.where(has_one, seen.last, 0)
    states["outlook_from"][seen.slots] = seen.counts_from
    states["outlook_issued_us"][seen.slots] = np.where(has_one, seen.outlooks.issued_us[row], NO_ISSUE_US)
    states["outlook_first_us"][seen.slots] = np.where(has_one, seen.outlooks.first_us[row], 0)
    cells = seen.outlooks.values[row]
    cells[~has_one] = 0.0  # as in a blank state
    states["outlook"][seen.slots] = cells
