"""The live index: a row of numbers per sensor, at most 200 bytes with its id.

A row holds the place of the sensor's latest forecast, its latest values, the interval that was forecast for them one
step before, and the intervals of the next step. Forecasts of further steps stay in Kafka.

Letters: n records or sensors, K scored targets.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pipeline.live.forecast_head import ForecastHead
from pipeline.live.record_log import NO_ENTRY, ForecastPlaces, RecentReadings, RecordPlace
from pipeline.live.scores import Judged
from pipeline.live.sensor_table import SensorTable
from pipeline.surprise import largest_surprise, surprise

# Full rows grow by this factor, so at most an eighth of their memory is unused.
_GROWTH: Final = 1.125
_FEWEST_ROWS: Final = 1_024
_BEHIND_MS: Final = 2_000  # a forecast is committed and read well within this time after its sending
_LOW, _MEDIAN, _HIGH = 0, 1, 2

_COLUMNS: Final = ("surprise", "target", "value", "low", "median", "high", "reading_sent_ms", "delay_ms")
_JUDGED: Final = ("value", "low", "median", "high", "persistence")


def _row_type(targets: int) -> np.dtype[Any]:
    return np.dtype(
        [
            ("partition", "u2"),
            ("warm", "?"),
            ("target", "i1"),  # index of the target with the largest surprise
            ("model", "u4"),
            ("offset", "i8"),  # of the latest forecast
            ("issued_at_us", "i8"),
            ("arrived_ms", "i8"),
            ("entry", "i8"),  # newest entry in ``ForecastPlaces``
            ("count", "u4"),  # forecasts since the start
            ("delay_ms", "f4"),  # from the reading's sending to the arrival of its forecast; NaN if not live
            ("surprise", "f4"),  # of the latest reading; NaN if unknown
            ("low", "f4"),  # of the interval that the surprise refers to
            ("median", "f4"),
            ("high", "f4"),
            ("error", "f4"),  # sum of absolute one-step errors of the first target
            ("persistence_error", "f4"),
            ("value", "f4", (targets,)),
            ("next", "f4", (targets, 3)),  # low, median, high of the next step
        ]
    )


@dataclass(frozen=True)
class Indexed:
    """The numbers of n new forecasts and their readings, in their order."""

    surprise: NDArray[np.float64]  # (n,) NaN if unknown
    target: NDArray[np.intp]  # (n,)
    value: NDArray[np.float32]  # (n,) of that target, as the next two
    low: NDArray[np.float32]
    median: NDArray[np.float32]
    high: NDArray[np.float32]
    reading_sent_ms: NDArray[np.int64]  # (n,) -1 if the reading was not seen
    delay_ms: NDArray[np.float64]  # (n,) NaN if the reading was not seen or the forecast is not live
    judged: Judged


class LiveIndex:
    """Rows of all sensors that have a forecast. Not thread-safe.

    Args:
        targets: number of scored targets, K.
        partitions: of the readings topic.
        places: forecasts whose places are kept, of all sensors together.
        readings: readings whose values are kept until their forecasts arrive.
    """

    def __init__(self, *, targets: int, partitions: int, cadence_us: int, places: int, readings: int) -> None:
        self.sensors = SensorTable()
        self.readings = RecentReadings(partitions, readings, targets)
        self._places = ForecastPlaces(places)
        self._targets = targets
        self._cadence_us = cadence_us
        self._rows = self._blank(_FEWEST_ROWS)

    @property
    def rows(self) -> NDArray[Any]:
        """(sensors,) the rows in order of the sensors' first forecasts; a view that later updates change."""
        return self._rows[: len(self.sensors)]

    @property
    def sensor_bytes(self) -> int:
        """The memory of ids and rows."""
        return int(self.sensors.bytes_used + self._rows.nbytes)

    def add(self, heads: Sequence[ForecastHead], arrived_ms: int, live_from: NDArray[np.int64]) -> Indexed:
        """Add forecasts in offset order per partition.

        Args:
            heads: n forecasts.
            arrived_ms: time of day of their arrival here.
            live_from: (partitions,) offset from which forecasts count as live, for the delays.
        """
        rows = np.fromiter((self.sensors.find_or_add(head.sensor) for head in heads), np.int64, len(heads))
        self._grow()
        parts = [
            (places, self._add_round([heads[at] for at in places], rows[places], arrived_ms, live_from))
            for places in _rounds(rows)
        ]
        return _join(parts, len(heads))

    def places(self, row: int, most: int) -> list[RecordPlace]:
        """The places of a sensor's latest forecasts, newest first."""
        return self._places.walk_back(int(self._rows[row]["entry"]), most)

    def _add_round(
        self, heads: Sequence[ForecastHead], rows: NDArray[np.int64], arrived_ms: int, live_from: NDArray[np.int64]
    ) -> Indexed:
        """Add forecasts of different sensors."""
        n, before = len(heads), self._rows[rows]
        columns = np.array([head[1:9] for head in heads], np.int64).reshape(n, 8)
        partition, offset, forecast_sent_ms, issued_at_us, model, warm, reading_partition, reading_offset = columns.T
        value, sent_ms = self.readings.find(reading_partition, reading_offset)
        # The forecast before was for one cadence later. After a gap its first step was for another time.
        passed = issued_at_us - before["issued_at_us"]
        follows = (before["count"] > 0) & (np.abs(passed - self._cadence_us) <= self._cadence_us // 2)
        expected = np.where(follows[:, None, None], before["next"], np.float32(np.nan))
        low, median, high = expected[:, :, _LOW], expected[:, :, _MEDIAN], expected[:, :, _HIGH]
        persistence = np.where(follows[:, None], before["value"], np.float32(np.nan))
        found, target = largest_surprise(surprise(value, low, high))
        rows_of = np.arange(n)
        is_live = (sent_ms >= 0) & (offset >= live_from[partition])
        # If this process is behind, the forecast was visible long before it arrived here.
        is_behind = arrived_ms - forecast_sent_ms > _BEHIND_MS
        delay_ms = np.where(is_live, np.where(is_behind, forecast_sent_ms, arrived_ms) - sent_ms, np.nan)
        error, persistence_error = np.abs(value[:, 0] - median[:, 0]), np.abs(value[:, 0] - persistence[:, 0])
        is_compared = ~np.isnan(error + persistence_error)
        after = before
        after["partition"], after["offset"], after["issued_at_us"] = partition, offset, issued_at_us
        after["model"], after["warm"], after["arrived_ms"] = model, warm, arrived_ms
        after["entry"] = self._places.append(
            partition, offset, reading_offset, np.where(before["count"] > 0, before["entry"], NO_ENTRY)
        )
        after["count"] += 1
        after["delay_ms"] = delay_ms
        after["surprise"], after["target"] = found, target
        for name, column in (("low", low), ("median", median), ("high", high)):
            after[name] = column[rows_of, target]
        after["error"] += np.where(is_compared, error, 0)
        after["persistence_error"] += np.where(is_compared, persistence_error, 0)
        after["value"] = value
        after["next"] = np.array([head.first_step for head in heads], np.float32).reshape(n, self._targets, 3)
        self._rows[rows] = after
        return Indexed(
            surprise=found,
            target=target,
            value=value[rows_of, target],
            low=low[rows_of, target],
            median=median[rows_of, target],
            high=high[rows_of, target],
            reading_sent_ms=sent_ms,
            delay_ms=delay_ms,
            judged=Judged(value, low, median, high, persistence),
        )

    def _grow(self) -> None:
        needed = len(self.sensors)
        if needed > len(self._rows):
            grown = self._blank(max(needed, round(len(self._rows) * _GROWTH)))
            grown[: len(self._rows)] = self._rows
            self._rows = grown

    def _blank(self, rows: int) -> NDArray[Any]:
        return np.zeros(rows, _row_type(self._targets))


def _rounds(rows: NDArray[np.int64]) -> list[NDArray[np.intp]]:
    """The places of each row's first, second, … occurrence: within a round all rows differ."""
    order = np.argsort(rows, kind="stable")
    ordered = rows[order]
    is_first = np.r_[True, ordered[1:] != ordered[:-1]][: len(rows)]
    starts = np.maximum.accumulate(np.where(is_first, np.arange(len(rows)), 0))
    turn = np.empty(len(rows), np.int64)
    turn[order] = np.arange(len(rows)) - starts
    return [np.flatnonzero(turn == number) for number in range(int(turn.max(initial=-1)) + 1)]


def _join(parts: list[tuple[NDArray[np.intp], Indexed]], n: int) -> Indexed:
    if len(parts) == 1:
        return parts[0][1]
    if not parts:
        raise ValueError("there are no forecasts to add")
    order = np.argsort(np.concatenate([places for places, _ in parts]))
    found = [indexed for _, indexed in parts]

    def joined(values: list[NDArray[Any]]) -> NDArray[Any]:
        return np.concatenate(values)[order]

    judged = [one.judged for one in found]
    return Indexed(
        **{name: joined([getattr(one, name) for one in found]) for name in _COLUMNS},
        judged=Judged(*(joined([getattr(one, name) for one in judged]) for name in _JUDGED)),
    )
