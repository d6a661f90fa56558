"""Recomputes what a model version made of a stretch of one sensor's readings, from a blank state on.

A forecast's state is a function of the model version and of the sensor's accepted readings from the state's origin to
the forecast's input, so each such stretch is recomputed by itself, with nothing but the readings topic and the model.
Stretches are stepped side by side, one reading of each at a time: ``model.stepper`` gives the same bits as one alone.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from model.forecaster import Forecaster
from model.grace import HELD
from model.rules import ACCEPTED, NEVER_US, bridge_gaps
from model.state import States, blank_states
from model.stepper import Forecasts, Stepper
from pipeline.audit.findings import ReadingLog, find
from pipeline.settings import Settings

Indexes = NDArray[np.int64]

_SIDE_BY_SIDE: Final = 256  # stretches; as many rows as fill a core's cache
_NUMBERS_AT_ONCE: Final = 4_000_000  # of forecasts, in float64: 32 MB


@dataclass(frozen=True)
class AcceptedLog:
    """The accepted readings, sensor by sensor ("stream": a sensor in a partition), each in the order of its steps."""

    streams: tuple[tuple[int, str], ...]  # partition and sensor
    starts: Indexes  # (streams + 1,) stream s is the places [starts[s], starts[s + 1])
    row: Indexes  # (n,) of the reading log
    stream: Indexes  # (n,)
    offset: Indexes  # (n,)
    begins: NDArray[np.bool_]  # (n,) see ``model.grace.Released``
    timestamp_us: Indexes  # (n,)
    values: NDArray[np.float64]  # (n, F)
    begun: (
        Indexes  # (n,) the place of the last reading, itself included, that a gap or the log's start made a first one
    )

    def __len__(self) -> int:
        return len(self.row)

    def places(self, readings: ReadingLog, partition: NDArray[np.int32], offset: Indexes) -> Indexes:
        """The place of the accepted reading at each position; -1 where there is none."""
        row, found = find(readings, partition, offset)
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
        begins=_begins(readings, row),
        timestamp_us=timestamp_us,
        values=readings.values[row],
        begun=np.maximum.accumulate(np.where(gaps.reset, np.arange(len(row)), 0)) if len(row) else row,
    )


def _begins(readings: ReadingLog, row: Indexes) -> NDArray[np.bool_]:
    """Whether all of its sensor that come after an accepted reading, or wait for that, have higher offsets."""
    later = np.concatenate([row, np.flatnonzero(readings.verdict == HELD)])
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
class Stretches:
    """Stretches to recompute: places of an ``AcceptedLog``, both ends included."""

    first: Indexes  # (m,) the state's origin
    last: Indexes  # (m,)

    def __len__(self) -> int:
        return len(self.first)


@dataclass(frozen=True)
class Recomputed:
    """What came of some readings of some stretches."""

    stretch: Indexes  # (n,)
    place: Indexes  # (n,) of the accepted log
    forecasts: Forecasts  # n
    ended: Indexes  # (e,) stretches whose last reading this holds
    states: States  # (e,) their states after it


def recompute(
    forecaster: Forecaster, accepted: AcceptedLog, stretches: Stretches, settings: Settings
) -> Iterator[Recomputed]:
    """Step every stretch from a blank state; each of its readings comes up once, in order."""
    stepper = Stepper(forecaster, settings.adaptation)
    config = forecaster.config
    width = config.target_count * len(config.quantiles) * config.horizon_steps
    lengths = stretches.last - stretches.first + 1
    longest_first = np.argsort(-lengths, kind="stable")  # so that those side by side end together
    for begin in range(0, len(stretches), _SIDE_BY_SIDE):
        group = longest_first[begin : begin + _SIDE_BY_SIDE]
        states = blank_states(config, len(group), settings.adaptation)
        sensors = [accepted.streams[stream][1] for stream in accepted.stream[stretches.first[group]].tolist()]
        at_once = max(1, _NUMBERS_AT_ONCE // (width * len(group)))
        for done in range(0, int(lengths[group].max()), at_once):
            count = np.clip(lengths[group] - done, 0, at_once)
            slots = np.repeat(np.arange(len(group)), count)
            within = np.arange(len(slots)) - np.repeat(np.cumsum(count) - count, count)
            place = stretches.first[group][slots] + done + within
            forecasts = stepper.advance(
                states,
                sensors,
                slots,
                accepted.timestamp_us[place],
                accepted.values[place],
                accepted.offset[place],
                accepted.begins[place],
            )
            ended = np.flatnonzero((count > 0) & (lengths[group] <= done + at_once))
            yield Recomputed(group[slots], place, forecasts, group[ended], states[ended])
