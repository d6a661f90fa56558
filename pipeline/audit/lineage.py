"""Follows each sensor's state through its forecasts: did it begin as early as the rules require?

A state begins at its sensor's first reading, or after a gap beyond ``max_gap_steps``. It may begin later if it was
rebuilt, for a new model version or after damage: the replay then goes back as far as the settings say. A state that
begins even later was lost.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.acceptance import ACCEPTED, NEVER_US, bridge_gaps, lowest_from_here
from model.reorder_buffer import BUFFERED
from pipeline.audit.delivery import ForecastLog, ReadingLog, find_rows, reorder_log
from pipeline.audit.outlook_log import StreamOutlooks
from pipeline.settings import Settings

Mask = NDArray[np.bool_]
Indexes = NDArray[np.int64]


@dataclass(frozen=True)
class AcceptedLog:
    """The accepted readings by stream (a sensor in a partition), in the order of their steps.

    A place is an index into these n readings.
    """

    streams: tuple[tuple[int, str], ...]  # partition and sensor
    starts: Indexes  # (streams + 1,) stream s has the places [starts[s], starts[s + 1])
    row: Indexes  # (n,) row in the reading log
    stream: Indexes  # (n,)
    offset: Indexes  # (n,)
    may_anchor: NDArray[np.bool_]  # (n,) see ``model.reorder_buffer.ReleasedReading``
    timestamp_us: Indexes  # (n,)
    values: NDArray[np.float64]  # (n, F)
    state_start: Indexes  # (n,) place of the first reading after the latest reset, at or before this reading
    released: Indexes  # (n,) offset of the record that made the reading accepted; the reading's own without outlooks
    outlooks: StreamOutlooks

    def __len__(self) -> int:
        return len(self.row)

    def places(self, readings: ReadingLog, partition: NDArray[np.int32], offset: Indexes) -> Indexes:
        """The place of the accepted reading at each position; -1 if there is no accepted reading."""
        row, found = find_rows(readings, partition, offset)
        place_of_row = np.full(len(readings), -1)
        place_of_row[self.row] = np.arange(len(self.row))
        places = np.full(len(offset), -1)
        places[found] = place_of_row[row[found]]
        return places


def accepted_log(readings: ReadingLog, settings: Settings) -> AcceptedLog:
    """The accepted readings of a log, by stream."""
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
    released = _released(readings, settings)
    may_anchor = _may_anchor(readings, row)
    if settings.grace.has_outlooks:
        may_anchor &= released[row] == readings.offset[row]
    streams = tuple((int(partition[start]), readings.sensors[sensor[start]]) for start in starts)
    return AcceptedLog(
        streams=streams,
        starts=np.append(starts, len(row)),
        row=row,
        stream=np.cumsum(fresh) - 1,
        offset=readings.offset[row],
        may_anchor=may_anchor,
        timestamp_us=timestamp_us,
        values=readings.values[row],
        state_start=np.maximum.accumulate(np.where(gaps.reset, np.arange(len(row)), 0)) if len(row) else row,
        released=released[row],
        outlooks=StreamOutlooks.of(readings.outlooks, streams),
    )


def _released(readings: ReadingLog, settings: Settings) -> Indexes:
    """By row of the log, the offset of the record that made the reading accepted."""
    released, grace = readings.offset.copy(), settings.grace
    if grace.is_on and grace.has_outlooks:
        partitions = np.unique(readings.partition).tolist()
        last = {number: int(readings.offset[readings.partition == number].max()) for number in partitions}
        ends = {number: offset + 1 + grace.offsets for number, offset in last.items()}
        for rows, found in reorder_log(readings, grace, ends):
            released[rows[found.order]] = found.as_of
    return released


def _may_anchor(readings: ReadingLog, row: Indexes) -> NDArray[np.bool_]:
    """(n,) whether all later readings of the sensor, accepted or buffered, have higher offsets than this one."""
    later = np.concatenate([row, np.flatnonzero(readings.verdict == BUFFERED)])
    later = later[np.lexsort((readings.timestamp_us[later], readings.sensor[later], readings.partition[later]))]
    partition, sensor = readings.partition[later], readings.sensor[later]
    last = np.append((partition[1:] != partition[:-1]) | (sensor[1:] != sensor[:-1]), True)[: len(later)]
    offset = readings.offset[later]
    found = np.zeros(len(readings), bool)
    found[later] = offset == lowest_from_here(np.cumsum(last) - last, offset)
    return found[row]


@dataclass(frozen=True)
class Lineage:
    """The readings and states of n forecasts; every array is (n,), and a place is an index into the accepted log."""

    place: Indexes  # place of the forecast's reading; -1 if it was not accepted
    origin: Indexes  # place of the first reading in the state; -1 if it is not an accepted reading of the sensor
    out_of_reach: Mask  # whether the origin lies before the beginning of the log
    begun_anew: Mask  # whether the state begins later than the rules allow
    rebuilt: Mask  # whether the state was rebuilt after the sensor's previous forecast, for the same version

    @property
    def recomputable(self) -> Mask:
        """Whether all readings of the forecast's state are in the log."""
        return (self.place >= 0) & (self.origin >= 0)


def trace_states(readings: ReadingLog, forecasts: ForecastLog, accepted: AcceptedLog, settings: Settings) -> Lineage:
    """The lineage of forecasts, whose ``origin`` must not be None."""
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
        continues = np.zeros(len(rows), bool)  # same sensor, reset and version as the forecast before
        continues[1:] = (accepted.state_start[at[1:]] == accepted.state_start[at[:-1]]) & (version[1:] == version[:-1])
        moved = np.diff(since, prepend=-1) != 0
        begun_anew[rows] = moved & (since > _latest_origin(accepted, at, settings))
        rebuilt[rows] = moved & continues
    return Lineage(place, origin, out_of_reach, begun_anew, rebuilt)


def log_starts(readings: ReadingLog, highest_partition: int) -> Indexes:
    """(partitions,) the first offset of each partition in the log; 0 without readings."""
    starts = np.zeros(max(highest_partition, int(readings.partition.max(initial=0))) + 1, np.int64)
    partitions, first = np.unique(readings.partition, return_index=True)
    starts[partitions] = readings.offset[first]
    return starts


def _latest_origin(accepted: AcceptedLog, at: Indexes, settings: Settings) -> Indexes:
    """For the reading at each place, the latest place at which its state may begin.

    A replay must step ``rewarm_steps`` readings, or begin where the state began. It reads ``rewarm_max_readings``
    offsets. If these do not reach the beginning of the state, the replay may begin later: one anchor spacing after the
    sensor's first reading in the second half of these offsets. Its first half may serve only to find late readings. A
    replay begins only at a reading with ``may_anchor``.
    """
    state_start = accepted.state_start[at]
    within = settings.forecaster.rewarm_max_readings
    near = accepted.offset[at] - accepted.offset[state_start] < within
    # A replay counts back from the last processed offset, which is higher than the offsets of buffered readings.
    half = within // 2 - (settings.grace.offsets // 2 if settings.grace.is_on else 0)
    reached = np.where(near, state_start, _first_within(accepted, at, half) + settings.adaptation.anchor_spacing - 1)
    due = np.minimum(at, np.maximum(reached, at - settings.rewarm_steps + 1))
    may_begin = np.append(np.flatnonzero(accepted.may_anchor), len(accepted))
    latest: Indexes = np.minimum(at, may_begin[np.searchsorted(may_begin, due)])
    return latest


def _first_within(accepted: AcceptedLog, at: Indexes, offsets: int) -> Indexes:
    """For each place, the place of the same sensor's first reading in the log at most ``offsets`` before it.

    With a reorder buffer, that reading may be stepped after the one at the given place.
    """
    order = np.lexsort((accepted.offset, accepted.stream))
    apart = int(accepted.offset.max(initial=0)) + 1  # shift between streams, so that they do not overlap
    known = accepted.stream[order] * apart + accepted.offset[order]
    wanted = accepted.stream[at] * apart + np.maximum(accepted.offset[at] - max(offsets, 0), 0)
    first: Indexes = order[np.searchsorted(known, wanted)]
    return first
