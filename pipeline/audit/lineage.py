"""Follows each sensor's state through its forecasts: where it began, and whether that is as far back as it must be.

A state begins at its sensor's first reading or behind a gap beyond the limit, and lives until the next such gap. Only
where a model version takes over (or a damaged state is rebuilt) does it begin later, with a replay that goes back as
far as the rules of replaying say. A state that begins later than that is one that was lost.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.audit.findings import ForecastLog, ReadingLog
from pipeline.audit.recompute import AcceptedLog
from pipeline.settings import Settings

Mask = NDArray[np.bool_]
Indexes = NDArray[np.int64]


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
        goes_on[1:] = (accepted.begun[at[1:]] == accepted.begun[at[:-1]]) & (version[1:] == version[:-1])
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

    It is so many readings back, or the first one from there on that a replay may begin with (``model.grace``). Where a
    replay cannot go back to the sensor's beginning, it is the sensor's first reading within half of what it can: the
    other half may only teach it what is late. It may lie an anchor's spacing behind, being the next anchor's.
    """
    begun = accepted.begun[at]
    within = settings.forecaster.rewarm_max_readings
    near = accepted.offset[at] - accepted.offset[begun] < within
    # A replay measures from where the stream is, which is ahead of a reading that waited.
    half = within // 2 - (settings.grace.offsets // 2 if settings.grace.is_on else 0)
    reached = np.where(near, begun, _first_within(accepted, at, half) + settings.adaptation.anchor_spacing - 1)
    due = np.minimum(at, np.maximum(reached, at - settings.rewarm_steps + 1))
    may_begin = np.append(np.flatnonzero(accepted.begins), len(accepted))
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
