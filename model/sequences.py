"""What a model is trained and scored on: each sensor's steps in order of time, the same that the stream would take.

Letters: S sensors, N steps, F features, K targets, h horizon steps.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from .acceptance import NEVER_US, bridge_gaps


@dataclass(frozen=True)
class Sequences:
    """Steps of many sensors, one sensor after the other, contiguous in memory.

    Sensor i's steps are ``starts[i]`` up to but not including ``starts[i + 1]``, their timestamps strictly ascending,
    the first and the last of them accepted readings.
    """

    sensors: tuple[str, ...]  # S ids
    starts: NDArray[np.int64]  # (S+1,)
    timestamp_us: NDArray[np.int64]  # (N,)
    values: NDArray[np.float64]  # (N, F), NaN where missing: the whole row in an inserted step
    elapsed: NDArray[np.float32]  # (N,) cadences since the step before; 0 at a reset
    reset: NDArray[np.bool_]  # (N,) the state begins anew with this step: a sensor's first, or after a long gap
    observed: NDArray[np.bool_]  # (N,) an accepted reading; else a step inserted for a skipped cadence point
    offset: NDArray[np.int64]  # (N,) of the reading in its partition; -1 for an inserted step
    features: tuple[str, ...]
    cadence_us: int

    def __len__(self) -> int:
        """The number of steps of all sensors."""
        return len(self.timestamp_us)

    def span(self, sensor: int, start_us: int | None = None, end_us: int | None = None) -> tuple[int, int]:
        """Bounds ``lo, hi`` of a sensor's steps taken at ``start_us`` or later and before ``end_us``."""
        first, last = int(self.starts[sensor]), int(self.starts[sensor + 1])
        moments = self.timestamp_us[first:last]
        lo = first if start_us is None else first + int(np.searchsorted(moments, start_us))
        hi = last if end_us is None else first + int(np.searchsorted(moments, end_us))
        return lo, max(lo, hi)

    def stretches(self, sensor: int, end_us: int | None = None) -> list[tuple[int, int]]:
        """A sensor's steps before ``end_us``, cut at every reset, over which no state is carried."""
        lo, hi = self.span(sensor, None, end_us)
        cuts = lo + np.flatnonzero(self.reset[lo:hi])
        edges = [lo, *cuts[cuts > lo].tolist(), hi]
        return list(itertools.pairwise(edges)) if hi > lo else []

    def columns(self, targets: Sequence[str]) -> list[int]:
        """Where the targets stand among the features."""
        return [self.features.index(target) for target in targets]

    def slice_time(self, start_us: int | None = None, end_us: int | None = None) -> "Sequences":
        """The steps from ``start_us`` up to but not including ``end_us``, as if only their readings existed.

        Every sensor stays, if with no steps. Its first step is a reset, and steps inserted at the edges go: what is
        left equals ``build_sequences`` over the accepted readings in the range.
        """
        spans = [self._trimmed(*self.span(sensor, start_us, end_us)) for sensor in range(len(self.sensors))]
        counts = np.array([hi - lo for lo, hi in spans], np.int64)
        starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
        kept = np.zeros(len(self), bool)
        for lo, hi in spans:
            kept[lo:hi] = True
        elapsed, reset = self.elapsed[kept], self.reset[kept]
        firsts = starts[:-1][counts > 0]
        elapsed[firsts] = 0.0
        reset[firsts] = True
        return replace(
            self,
            starts=starts,
            timestamp_us=self.timestamp_us[kept],
            values=self.values[kept],
            elapsed=elapsed,
            reset=reset,
            observed=self.observed[kept],
            offset=self.offset[kept],
        )

    def past(self, sensor: int, hi: int) -> "Sequences":
        """One sensor's steps before ``hi``, and nothing else: views, no copies."""
        first = int(self.starts[sensor])
        return Sequences(
            sensors=self.sensors[sensor : sensor + 1],
            starts=np.array([0, hi - first], np.int64),
            timestamp_us=self.timestamp_us[first:hi],
            values=self.values[first:hi],
            elapsed=self.elapsed[first:hi],
            reset=self.reset[first:hi],
            observed=self.observed[first:hi],
            offset=self.offset[first:hi],
            features=self.features,
            cadence_us=self.cadence_us,
        )

    def nearest_step(self, lo: int, hi: int, shifts: Sequence[int] | NDArray[np.integer]) -> NDArray[np.int64]:
        """(hi-lo, len(shifts)): the reading that stands for each step's time plus ``shift`` cadences; -1 for none.

        It is the accepted reading of the same sensor nearest to that time, at most half a cadence away, the earlier one
        of two that are equally near. ``lo`` and ``hi`` bound steps of one sensor; with positive shifts the answers are
        the labels of the forecasts made there.
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
            # In a regular stretch the answer lies `shift` steps away; only what is not so is searched for.
            guess = np.clip(np.arange(lo - first, hi - first) + int(shift), 0, last - first - 1)
            exact = (moments[guess] == wanted) & observed[guess]
            found[exact, column] = guess[exact] + first
            rest = np.flatnonzero(~exact)
            if len(rest):
                readings = np.flatnonzero(observed) if readings is None else readings
                found[rest, column] = _nearest(moments, readings, wanted[rest], self.cadence_us, first)
        return found

    def label_index(
        self, lo: int, hi: int, horizons: Sequence[int] | NDArray[np.integer], until_us: int | None = None
    ) -> NDArray[np.int64]:
        """(hi-lo, len(horizons)): the step that is the label of each step's forecast ``k`` cadences ahead; -1 for none.

        A label that was taken at ``until_us`` or later counts as none: at the end of a training part it belongs to
        what is held out.
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
        """(hi-lo, K, len(horizons)): the values that came true, NaN where there is no label or its value is missing."""
        return self.values_at(self.label_index(lo, hi, horizons, until_us), columns)

    def values_at(self, index: NDArray[np.int64], columns: Sequence[int]) -> NDArray[np.float64]:
        """(n, K, m): values of the features ``columns`` at the steps ``index`` (n, m); NaN where that is -1."""
        values = self.values[index[:, None, :], np.asarray(columns, np.intp)[None, :, None]]
        values[np.broadcast_to(index[:, None, :] < 0, values.shape)] = np.nan
        return values

    def _trimmed(self, lo: int, hi: int) -> tuple[int, int]:
        """The bounds without the inserted steps at both edges."""
        readings = np.flatnonzero(self.observed[lo:hi])
        return (lo + int(readings[0]), lo + int(readings[-1]) + 1) if len(readings) else (lo, lo)


def _nearest(
    moments: NDArray[np.int64],
    readings: NDArray[np.intp],
    wanted: NDArray[np.int64],
    cadence_us: int,
    first: int,
) -> NDArray[np.int64]:
    """Of ``readings`` (indexes into ``moments``) the nearest to each time wanted, plus ``first``; -1 beyond half."""
    if not len(readings):
        return np.full(len(wanted), -1, np.int64)
    after = np.searchsorted(moments, wanted)  # first step at or after; its rank among the readings follows from it
    rank = np.searchsorted(readings, after)
    left = readings[np.maximum(rank - 1, 0)]
    right = readings[np.minimum(rank, len(readings) - 1)]
    distance_left, distance_right = np.abs(wanted - moments[left]), np.abs(moments[right] - wanted)
    nearest = np.where(distance_left <= distance_right, left, right)
    # doubled, so that half an odd cadence is no matter of rounding
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
    """The steps for accepted readings: one each, and missing ones by the gap rule between them.

    Args:
        sensors: S ids; sensor i's readings are ``starts[i]`` up to ``starts[i + 1]``, timestamps strictly ascending.
        timestamp_us: (n,); values: (n, F), NaN where missing; offset: (n,) of each reading in its partition.

    Arrays are taken over without a copy where nothing has to be inserted.
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
        offset=offset,
        features=tuple(features),
        cadence_us=cadence_us,
    )
    return _insert_missing(steps, gaps.missing, inserted) if inserted else steps


def _insert_missing(readings: Sequences, missing: NDArray[np.int64], inserted: int) -> Sequences:
    """The steps of ``readings`` with ``missing[i]`` steps, a cadence apart, before reading i."""
    place = np.cumsum(missing + 1) - 1  # where each reading goes
    count = len(readings) + inserted
    observed = np.zeros(count, bool)
    observed[place] = True
    timestamp_us = np.full(count, readings.cadence_us, np.int64)
    values = np.full((count, len(readings.features)), np.nan)
    elapsed = np.ones(count, np.float32)
    reset = np.zeros(count, bool)
    offset = np.full(count, -1, np.int64)
    values[place], elapsed[place], reset[place] = readings.values, readings.elapsed, readings.reset
    offset[place] = readings.offset
    # Summing up from the reading before gives inserted steps their time: each adds a cadence, a reading what is left.
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
    """Bounds in time: training before ``train_end_us``, then validation before ``validation_end_us``, then test."""

    train_end_us: int
    validation_end_us: int


def split_by_time(sequences: Sequences, validation_fraction: float, test_fraction: float) -> Split:
    """Bounds that leave these fractions of the accepted readings, of all sensors, to validation and test.

    Raises:
        ValueError: one of the three parts would be empty.
    """
    moments = sequences.timestamp_us[sequences.observed]
    count = len(moments)
    test = count - round(count * test_fraction)
    validation = test - round(count * validation_fraction)
    if not 0 < validation < test < count:
        raise ValueError(f"{count} readings are too few to split: {_parts(validation_fraction, test_fraction)}")
    moments.partition([validation, test])
    split = Split(int(moments[validation]), int(moments[test]))
    if not int(moments[:validation].min()) < split.train_end_us < split.validation_end_us:
        raise ValueError(f"too few different times to split: {_parts(validation_fraction, test_fraction)}")
    return split


def _parts(validation_fraction: float, test_fraction: float) -> str:
    return f"validation is to get {validation_fraction:.0%} of them, test {test_fraction:.0%}"
