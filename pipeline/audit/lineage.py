"""Follows each sensor's state through its forecasts: where it began, and whether that is as far back as it must be.

A state begins at its sensor's first reading or behind a gap beyond the limit, and lives until the next such gap. Only
where a model version takes over (or a damaged state is rebuilt) does it begin later, with a replay that goes back as
far as the rules of replaying say. A state that begins later than that is one that was lost.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.acceptance import ACCEPTED, NEVER_US, bridge_gaps
from model.reorder_buffer import BUFFERED
from pipeline.audit.delivery import ForecastLog, ReadingLog, find_rows
from pipeline.settings import Settings

Mask = NDArray[np.bool_]
Indexes = NDArray[np.int64]


@dataclass(frozen=True)
class AcceptedLog:
    """The accepted readings, sensor by sensor ("stream": a sensor in a partition), each in the order of its steps."""

    streams: tuple[tuple[int, str], ...]  # partition and sensor
    starts: Indexes  # (streams + 1,) stream s is the places [starts[s], starts[s + 1])
    row: Indexes  # (n,) of the reading log
    stream: Indexes  # (n,)
    offset: Indexes  # (n,)
    may_anchor: NDArray[np.bool_]  # (n,) see ``model.reorder_buffer.ReleasedReading``
    timestamp_us: Indexes  # (n,)
    values: NDArray[np.float64]  # (n, F)
    state_start: (
        Indexes  # (n,) the place of the last reading, itself included, that a gap or the log's start made a first one
    )

    def __len__(self) -> int:
        return len(self.row)

    def places(self, readings: ReadingLog, partition: NDArray[np.int32], offset: Indexes) -> Indexes:
        """The place of the accepted reading at each position; -1 where there is none."""
        row, found = find_rows(readings, partition, offset)
        place_of_row = np.full(len(readings), -1)
        place_of_row[self.row] = np.arange(len(self.row))
        places = np.full(len(offset), -1)
        places[found] = place_of_row[row[found]]
        return places


def accepted_log(readings: ReadingLog, settings: Settings) -> AcceptedLog:
    """The accepted readings of a log, arranged for recomputing."""
    accepted = np.flatnonzero(readings.verdict == ACCEPTED)
    order = np.lexsort((readings.timestamp_us[accepted], readings.sensor[accepted], readings.partition[accepted]))
    row = accepted[order]
    partition, sensor = readings.partition[row], readings.sensor[row]
    fresh = np.ones(len(row), bool)
    fresh[1:] = (partition[1:] != partition[:-1]) | (sensor[1:] != sensor[:-1])
    starts = np.flatnonzero(fresh)
    timestamp_us = readings.timestamp_us[row]
    previous_us = np.full(len(row), NEVER_US)
    previous_us[1:] = np.where(fresh[1:], NEVER_US, timestamp_us[:-1])
    gaps = bridge_gaps(timestamp_us, previous_us, settings.cadence_us, settings.max_gap_steps)
    return AcceptedLog(
        streams=tuple(
            (int(partition[start]), readings.sensors[code])
            for start, code in zip(starts.tolist(), sensor[starts].tolist(), strict=True)
        ),
        starts=np.append(starts, len(row)),
        row=row,
        stream=np.cumsum(fresh) - 1,
        offset=readings.offset[row],
        may_anchor=_may_anchor(readings, row),
        timestamp_us=timestamp_us,
        values=readings.values[row],
        state_start=np.maximum.accumulate(np.where(gaps.reset, np.arange(len(row)), 0)) if len(row) else row,
    )


def _may_anchor(readings: ReadingLog, row: Indexes) -> NDArray[np.bool_]:
    """Whether all of its sensor that come after an accepted reading, or wait for that, have higher offsets."""
    later = np.concatenate([row, np.flatnonzero(readings.verdict == BUFFERED)])
    later = later[np.lexsort((readings.timestamp_us[later], readings.sensor[later], readings.partition[later]))]
    partition, sensor = readings.partition[later], readings.sensor[later]
    last = np.append((partition[1:] != partition[:-1]) | (sensor[1:] != sensor[:-1]), True)[: len(later)]
    stream = np.cumsum(last) - last
    # Streams lie one behind the other, and far apart: so one pass from the end serves all.
    apart = int(readings.offset.max(initial=0)) + 1
    lowest = np.minimum.accumulate((readings.offset[later] + stream * apart)[::-1])[::-1] - stream * apart
    found = np.zeros(len(readings), bool)
    found[later] = readings.offset[later] == lowest
    return found[row]


@dataclass(frozen=True)
class Lineage:
    """What is behind each of n forecasts; every array is (n,), places are those of the accepted log."""

    place: Indexes  # of the reading that the forecast follows; -1: of none that was accepted
    origin: Indexes  # of the first reading of its state; -1: that is no accepted reading of the sensor
    out_of_reach: Mask  # the origin lies before the beginning of the log
    begun_anew: Mask  # the state knows less than it must
    rebuilt: Mask  # the state was replayed since the sensor's forecast before, by the same version

    @property
    def recomputable(self) -> Mask:
        """Whether there is a stretch of readings to recompute the forecast from."""
        return (self.place >= 0) & (self.origin >= 0)


def trace_states(readings: ReadingLog, forecasts: ForecastLog, accepted: AcceptedLog, settings: Settings) -> Lineage:
    """The lineage of forecasts, whose origins must have been read."""
    assert forecasts.origin is not None
    partition = forecasts.input_partition
    place = accepted.places(readings, partition, forecasts.input_offset)
    origin = accepted.places(readings, partition, forecasts.origin)
    sound = (place >= 0) & (origin >= 0) & (origin <= place)
    sound[sound] = accepted.stream[place[sound]] == accepted.stream[origin[sound]]
    origin = np.where(sound, origin, -1)
    out_of_reach = forecasts.origin < log_starts(readings, int(partition.max(initial=0)))[partition]

    begun_anew, rebuilt = np.zeros(len(place), bool), np.zeros(len(place), bool)
    rows = np.flatnonzero(sound)
    rows = rows[np.lexsort((forecasts.offset[rows], place[rows]))]  # by sensor, in order
    if len(rows):
        at, since, version = place[rows], origin[rows], forecasts.version[rows]
        goes_on = np.zeros(len(rows), bool)  # as the forecast before it: same sensor, no gap between, same version
        goes_on[1:] = (accepted.state_start[at[1:]] == accepted.state_start[at[:-1]]) & (version[1:] == version[:-1])
        moved = np.ones(len(rows), bool)
        moved[1:] = since[1:] != since[:-1]
        begun_anew[rows] = moved & (since > _latest_origin(accepted, at, settings))
        rebuilt[rows] = moved & goes_on
    return Lineage(place, origin, out_of_reach, begun_anew, rebuilt)


def log_starts(readings: ReadingLog, highest_partition: int) -> Indexes:
    """The first offset there is in each partition."""
    starts = np.zeros(max(highest_partition, int(readings.partition.max(initial=0))) + 1, np.int64)
    partitions, first = np.unique(readings.partition, return_index=True)
    starts[partitions] = readings.offset[first]
    return starts


def _latest_origin(accepted: AcceptedLog, at: Indexes, settings: Settings) -> Indexes:
    """The place where states must have begun that the readings at these places were stepped into, or before it.

    It is so many readings back, or the first one from there on that a replay may begin with (``model.reorder_buffer``).
    Where a replay cannot go back to the sensor's beginning, it is the sensor's first reading within half of what it
    can: the other half may only teach it what is late. It may lie an anchor's spacing behind, being the next anchor's.
    """
    state_start = accepted.state_start[at]
    within = settings.forecaster.rewarm_max_readings
    near = accepted.offset[at] - accepted.offset[state_start] < within
    # A replay measures from where the stream is, which is ahead of a reading that waited.
    half = within // 2 - (settings.grace.offsets // 2 if settings.grace.is_on else 0)
    reached = np.where(near, state_start, _first_within(accepted, at, half) + settings.adaptation.anchor_spacing - 1)
    due = np.minimum(at, np.maximum(reached, at - settings.rewarm_steps + 1))
    may_begin = np.append(np.flatnonzero(accepted.may_anchor), len(accepted))
    latest: Indexes = np.minimum(at, may_begin[np.searchsorted(may_begin, due)])
    return latest


def _first_within(accepted: AcceptedLog, at: Indexes, offsets: int) -> Indexes:
    """The place of the first reading of the same sensor that lies at most so many offsets before each place.

    By offset: where readings waited for earlier ones, that may be a later step.
    """
    order = np.lexsort((accepted.offset, accepted.stream))
    apart = int(accepted.offset.max(initial=0)) + 1  # streams lie one behind the other, and do not overlap
    known = accepted.stream[order] * apart + accepted.offset[order]
    wanted = accepted.stream[at] * apart + np.maximum(accepted.offset[at] - max(offsets, 0), 0)
    first: Indexes = order[np.searchsorted(known, wanted)]
    return first
