"""Data to train and score models on: each sensor's steps in order of time, as the stream takes them.

Letters: S sensors, N or n steps, F features, K targets, m time shifts, h horizon steps.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from .acceptance import NEVER_US, bridge_gaps
from .outlooks import NO_OUTLOOK, AsOf, Outlooks


@dataclass(frozen=True)
class Sequences:
    """Steps of many sensors, one sensor after the other.

    Sensor i's steps are ``starts[i]`` up to but not including ``starts[i + 1]``. Their timestamps ascend strictly. The
    first and the last of them are accepted readings.
    """

    sensors: tuple[str, ...]  # S ids
    starts: NDArray[np.int64]  # (S+1,)
    timestamp_us: NDArray[np.int64]  # (N,)
    values: NDArray[np.float64]  # (N, F), NaN where missing; an inserted step is NaN in all features
    elapsed: NDArray[np.float32]  # (N,) cadences since the step before; 0 at a reset
    reset: NDArray[np.bool_]  # (N,) whether the state is reset before the step: a sensor's first, or after a long gap
    observed: NDArray[np.bool_]  # (N,) True for an accepted reading, False for a step inserted at a skipped point
    offset: NDArray[np.integer]  # (N,) of the reading in its partition, int32 if all fit; -1 for an inserted step
    features: tuple[str, ...]
    cadence_us: int
    outlooks: Outlooks | None = None  # of all sensors; None if the model uses no outlooks
    outlook: NDArray[np.int32] | None = None  # (N,) each step's outlook in ``outlooks``; ``NO_OUTLOOK`` for none

    def __len__(self) -> int:
        """N: the steps of all sensors."""
        return len(self.timestamp_us)

    def span(self, sensor: int, start_us: int | None = None, end_us: int | None = None) -> tuple[int, int]:
        """Bounds ``lo, hi`` of a sensor's steps at ``start_us`` or later, and before ``end_us``."""
        first, last = int(self.starts[sensor]), int(self.starts[sensor + 1])
        moments = self.timestamp_us[first:last]
        lo = first if start_us is None else first + int(np.searchsorted(moments, start_us))
        hi = last if end_us is None else first + int(np.searchsorted(moments, end_us))
        return lo, max(lo, hi)

    def stretches(self, sensor: int, end_us: int | None = None) -> list[tuple[int, int]]:
        """Bounds of the stretches between resets in a sensor's steps before ``end_us``."""
        lo, hi = self.span(sensor, None, end_us)
        cuts = lo + np.flatnonzero(self.reset[lo:hi])
        edges = [lo, *cuts[cuts > lo].tolist(), hi]
        return list(itertools.pairwise(edges)) if hi > lo else []

    def columns(self, targets: Sequence[str]) -> list[int]:
        """(K,) the index of each target among the features."""
        return [self.features.index(target) for target in targets]

    def slice_time(self, start_us: int | None = None, end_us: int | None = None) -> "Sequences":
        """The steps from ``start_us`` up to but not including ``end_us``, as if only their readings existed.

        The result equals ``build_sequences`` of the accepted readings in the range: each sensor's first step is a
        reset, and no inserted step lies at the edges. All sensors stay, those without a step too.
        """
        spans = [self._trimmed(*self.span(sensor, start_us, end_us)) for sensor in range(len(self.sensors))]
        counts = np.array([hi - lo for lo, hi in spans], np.int64)
        starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
        kept = np.zeros(len(self), bool)
        for lo, hi in spans:
            kept[lo:hi] = True
        return self.select(np.flatnonzero(kept), starts, self.sensors)

    def select(self, index: NDArray[np.integer], starts: NDArray[np.int64], sensors: tuple[str, ...]) -> "Sequences":
        """A copy of the steps ``index``, cut into sensors at ``starts``, each from a reset."""
        chosen = self._indexed(index, starts, sensors)
        firsts = starts[:-1][np.diff(starts) > 0]
        chosen.elapsed[firsts] = 0.0
        chosen.reset[firsts] = True
        if chosen.outlook is not None:
            # A state that begins here has not seen the outlook that came before its first reading.
            before = np.repeat(chosen.outlook[firsts], np.diff(starts)[np.diff(starts) > 0])
            chosen.outlook[chosen.outlook == before] = NO_OUTLOOK
        return chosen

    def with_outlooks(self, outlooks: Outlooks, seen: AsOf) -> "Sequences":
        """The same steps with the outlook of each.

        Args:
            seen: by accepted reading, in the order of the steps. A step inserted before a reading has its outlook, or
                none if that was issued after the step.
        """
        reading: NDArray[np.int64] = np.cumsum(self.observed) - self.observed  # of each step: its own, or the next one
        row = seen.row[reading]
        inserted = np.flatnonzero(~self.observed & (row != NO_OUTLOOK))
        later = outlooks.issued_us[row[inserted]] > self.timestamp_us[inserted]
        row[inserted[later]] = NO_OUTLOOK
        return replace(self, outlooks=outlooks, outlook=row)

    def past(self, sensor: int, hi: int) -> "Sequences":
        """The steps of one sensor before ``hi``: views, no copies."""
        first = int(self.starts[sensor])
        return self._indexed(slice(first, hi), np.array([0, hi - first], np.int64), (self.sensors[sensor],))

    def _indexed(self, index: Any, starts: NDArray[np.int64], sensors: tuple[str, ...]) -> "Sequences":
        arrays: dict[str, Any] = {name: getattr(self, name)[index] for name in _BY_STEP}
        if self.outlook is not None:
            arrays["outlook"] = self.outlook[index]
        return replace(self, sensors=sensors, starts=starts, **arrays)

    def nearest_step(self, lo: int, hi: int, shifts: Sequence[int] | NDArray[np.integer]) -> NDArray[np.int64]:
        """(hi-lo, m): the reading nearest to each step's time plus each shift (cadences); -1 if none is near.

        The reading is accepted, of the same sensor, and at most half a cadence away; of two equally near readings it is
        the earlier one. ``lo`` and ``hi`` bound steps of one sensor. Positive shifts give the labels of forecasts.
        """
        found = np.full((hi - lo, len(shifts)), -1, np.int64)
        if hi <= lo:
            return found
        sensor = int(np.searchsorted(self.starts, lo, side="right")) - 1
        first, last = int(self.starts[sensor]), int(self.starts[sensor + 1])
        moments, observed = self.timestamp_us[first:last], self.observed[first:last]
        readings: NDArray[np.intp] | None = None
        for column, shift in enumerate(shifts):
            wanted = moments[lo - first : hi - first] + int(shift) * self.cadence_us
            # In a regular stretch the reading lies `shift` steps away; search only for the other ones.
            guess = np.clip(np.arange(lo - first, hi - first) + int(shift), 0, last - first - 1)
            exact = (moments[guess] == wanted) & observed[guess]
            found[exact, column] = guess[exact] + first
            rest = np.flatnonzero(~exact)
            if len(rest):
                readings = np.flatnonzero(observed) if readings is None else readings
                found[rest, column] = _nearest(moments, readings, wanted[rest], self.cadence_us, first)
        return found

    def label_index(
        self, lo: int, hi: int, horizons: Sequence[int] | NDArray[np.integer], until_us: int | None
    ) -> NDArray[np.int64]:
        """(hi-lo, m): the steps that label each step's forecasts ``horizons`` cadences ahead; -1 for no label.

        A reading at ``until_us`` or later does not count: after the training part, it belongs to the validation part.
        """
        labels = self.nearest_step(lo, hi, horizons)
        if until_us is not None:
            labels[(labels >= 0) & (self.timestamp_us[labels] >= until_us)] = -1
        return labels

    def labels(
        self,
        lo: int,
        hi: int,
        horizons: Sequence[int] | NDArray[np.integer],
        columns: Sequence[int],
        until_us: int | None = None,
    ) -> NDArray[np.float64]:
        """(hi-lo, K, m): the values of the steps in ``label_index``; NaN without a label or its value."""
        return self.values_at(self.label_index(lo, hi, horizons, until_us), columns)

    def values_at(self, index: NDArray[np.int64], columns: Sequence[int]) -> NDArray[np.float64]:
        """(n, K, m): values of the features ``columns`` at the steps ``index`` (n, m); NaN for an index of -1."""
        values = self.values[index[:, None, :], np.asarray(columns, np.intp)[None, :, None]]
        values[np.broadcast_to(index[:, None, :] < 0, values.shape)] = np.nan
        return values

    def _trimmed(self, lo: int, hi: int) -> tuple[int, int]:
        """The bounds ``lo, hi`` without inserted steps at the edges."""
        readings = np.flatnonzero(self.observed[lo:hi])
        return (lo + int(readings[0]), lo + int(readings[-1]) + 1) if len(readings) else (lo, lo)


# The fields of ``Sequences`` that have an entry for each step.
_BY_STEP: Final = ("timestamp_us", "values", "elapsed", "reset", "observed", "offset")


def _nearest(
    moments: NDArray[np.int64], readings: NDArray[np.intp], wanted: NDArray[np.int64], cadence_us: int, first: int
) -> NDArray[np.int64]:
    """(n,) ``first`` plus the index of the reading nearest to each time; -1 beyond half a cadence."""
    if not len(readings):
        return np.full(len(wanted), -1, np.int64)
    after = np.searchsorted(moments, wanted)  # the first step at or after each time
    rank = np.searchsorted(readings, after)
    left = readings[np.maximum(rank - 1, 0)]
    right = readings[np.minimum(rank, len(readings) - 1)]
    distance_left, distance_right = np.abs(wanted - moments[left]), np.abs(moments[right] - wanted)
    nearest = np.where(distance_left <= distance_right, left, right)
    # Both sides are doubled, because half of an odd cadence would be rounded.
    within = 2 * np.minimum(distance_left, distance_right) <= cadence_us
    return np.where(within, nearest + first, -1)


def build_sequences(
    sensors: Sequence[str],
    starts: NDArray[np.int64],
    timestamp_us: NDArray[np.int64],
    values: NDArray[np.float64],
    offset: NDArray[np.int64],
    *,
    features: Sequence[str],
    cadence_us: int,
    max_gap_steps: int,
) -> Sequences:
    """The steps of n accepted readings, with missing steps between them by the gap rule.

    If no step is missing, the result shares the arrays given, except the offsets.

    Args:
        sensors: S ids; sensor i's readings are ``starts[i]`` up to ``starts[i + 1]``, timestamps strictly ascending.
        timestamp_us: (n,); values: (n, F), NaN where missing; offset: (n,) of each reading in its partition.
    """
    previous_us = np.empty_like(timestamp_us)
    previous_us[1:] = timestamp_us[:-1]
    previous_us[starts[:-1][np.diff(starts) > 0]] = NEVER_US
    gaps = bridge_gaps(timestamp_us, previous_us, cadence_us, max_gap_steps)
    del previous_us
    inserted = int(gaps.missing.sum())
    steps = Sequences(
        sensors=tuple(sensors),
        starts=np.asarray(starts, np.int64),
        timestamp_us=timestamp_us,
        values=values,
        elapsed=gaps.elapsed,
        reset=gaps.reset,
        observed=np.ones(len(timestamp_us), bool),
        offset=_narrow(offset),
        features=tuple(features),
        cadence_us=cadence_us,
    )
    return _insert_missing(steps, gaps.missing, inserted) if inserted else steps


def _narrow(offset: NDArray[np.int64]) -> NDArray[np.integer]:
    """The offsets with 4 bytes each if all of them fit."""
    return offset.astype(np.int32) if not len(offset) or offset.max() < 2**31 else offset


def _insert_missing(readings: Sequences, missing: NDArray[np.int64], inserted: int) -> Sequences:
    """``readings`` with ``missing[i]`` more steps, a cadence apart, before reading i."""
    place = np.cumsum(missing + 1) - 1  # the new index of each reading
    count = len(readings) + inserted
    observed = np.zeros(count, bool)
    observed[place] = True
    timestamp_us = np.full(count, readings.cadence_us, np.int64)
    values = np.full((count, len(readings.features)), np.nan)
    elapsed = np.ones(count, np.float32)
    reset = np.zeros(count, bool)
    offset = np.full(count, -1, readings.offset.dtype)
    values[place], elapsed[place], reset[place] = readings.values, readings.elapsed, readings.reset
    offset[place] = readings.offset
    # The sum gives the times: an inserted step adds a cadence, a reading adds the remainder of its gap.
    timestamp_us[place[1:]] = np.diff(readings.timestamp_us) - missing[1:] * readings.cadence_us
    timestamp_us[place[0]] = readings.timestamp_us[0]
    np.cumsum(timestamp_us, out=timestamp_us)
    starts = np.concatenate([np.zeros(1, np.int64), place + 1])[readings.starts]
    return replace(
        readings,
        starts=starts,
        timestamp_us=timestamp_us,
        values=values,
        elapsed=elapsed,
        reset=reset,
        observed=observed,
        offset=offset,
    )


@dataclass(frozen=True)
class Split:
    """Bounds in time: training before ``train_end_us``, validation before ``validation_end_us``, then test."""

    train_end_us: int
    validation_end_us: int


def split_by_time(sequences: Sequences, validation_fraction: float, test_fraction: float) -> Split:
    """Bounds that leave these fractions of all sensors' accepted readings to validation and test.

    Raises:
        ValueError: one of the three parts would be empty.
    """
    moments = sequences.timestamp_us[sequences.observed]
    count = len(moments)
    wanted = f" into training, {validation_fraction:.0%} for validation, {test_fraction:.0%} for the test; add readings"
    test = count - round(count * test_fraction)
    validation = test - round(count * validation_fraction)
    if not 0 < validation < test < count:
        raise ValueError(f"{count} readings are too few to split{wanted}")
    moments.partition([validation, test])
    split = Split(int(moments[validation]), int(moments[test]))
    if not int(moments[:validation].min()) < split.train_end_us < split.validation_end_us:
        raise ValueError(f"the readings have too few different times to split{wanted}")
    return split
