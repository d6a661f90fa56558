"""Audits delivery: was there exactly one forecast, in order, for every accepted reading?

Pure functions of the readings and forecasts topics as columns, which ``pipeline.audit.topic_logs`` reads.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from model.acceptance import ACCEPTED, DUPLICATE, LATE, classify, running_maximum
from model.reorder_buffer import BUFFERED, GracePeriod, Reordering, reorder
from pipeline.audit.outlook_log import LoggedOutlook
from pipeline.kafka.topic_reader import Offsets

REJECTED: Final = 4  # a verdict in addition to ``BUFFERED`` and those of ``model.acceptance``

_EXAMPLES: Final = 5  # positions named per kind of fault


@dataclass(frozen=True)
class _TopicLog:
    """The records of a topic as columns, in (partition, offset) order."""

    sensors: tuple[str, ...]
    partition: NDArray[np.int32]
    offset: NDArray[np.int64]
    sensor: NDArray[np.int64]  # index into ``sensors``; -1 if the record was rejected

    def __len__(self) -> int:
        return len(self.offset)

    def take(self, mask: NDArray[np.bool_]) -> Self:
        """The rows where ``mask`` is true; fields that are not columns stay."""
        columns: dict[str, Any] = {
            name: column[mask] for name, column in vars(self).items() if isinstance(column, np.ndarray)
        }
        return replace(self, **columns)


@dataclass(frozen=True)
class ReadingLog(_TopicLog):
    """The readings topic."""

    timestamp_us: NDArray[np.int64]
    values: NDArray[np.float64]  # (n, features), NaN where missing
    sent_ms: NDArray[np.int64]  # timestamp of the record
    verdict: NDArray[np.int8]  # ACCEPTED, DUPLICATE, LATE, BUFFERED or REJECTED
    reasons: dict[str, int] = field(default_factory=dict)  # rejected readings by reason
    records: NDArray[np.int64] | None = None  # readings in a row: above 1 for an unreadable batch; None: 1 in each
    implausible: dict[str, int] = field(default_factory=dict)  # sensor -> readings with implausible times, the most
    outlooks: tuple[LoggedOutlook, ...] = ()  # records that are not readings; no rows

    def count(self, mask: NDArray[np.bool_]) -> int:
        """The number of readings in the rows where ``mask`` is true."""
        return int(mask.sum() if self.records is None else self.records[mask].sum())


@dataclass(frozen=True)
class ForecastLog(_TopicLog):
    """The forecasts topic: the forecasts made under the present settings."""

    issued_us: NDArray[np.int64]
    input_offset: NDArray[np.int64]
    input_partition: NDArray[np.int32]
    version: NDArray[np.int64]
    warm: NDArray[np.bool_]
    sent_ms: NDArray[np.int64]
    origin: NDArray[np.int64] | None = None  # offset of the first reading in the state
    steps: NDArray[np.int64] | None = None  # number of steps in the state
    quantiles: NDArray[np.float32] | None = None  # (n, targets, levels, horizon); None unless requested
    weights: NDArray[np.float64] | None = None  # (n, targets, experts), see audit.expert_weights; None unless requested
    foreign: "ForecastLog | None" = None  # the forecasts made under other settings, without quantiles and weights
    fingerprints: Mapping[str, int] = field(default_factory=dict)  # settings -> forecasts, for ``foreign`` logs


@dataclass(frozen=True)
class DeliveryCounts:
    """The counts of an audit; ``lost``, ``twice``, ``out_of_order`` and ``unexpected`` are counts of faults."""

    readings: int
    accepted: int
    duplicates: int
    late: int
    rejected: int
    held: int  # readings in the reorder buffer
    forecasts: int
    lost: int
    twice: int
    out_of_order: int
    unexpected: int  # forecasts without an accepted reading of that sensor and time
    examples: dict[str, list[str]]  # kind of fault -> the first positions on the readings topic

    @property
    def exactly_once(self) -> bool:
        """Whether every accepted reading has exactly one forecast, in order, and there is no further forecast."""
        return self.lost == self.twice == self.out_of_order == self.unexpected == 0


def classify_log(readings: ReadingLog, grace: GracePeriod, ends: Offsets) -> NDArray[np.int8]:
    """(n,) the verdict on each reading, by the rules of the stream.

    Args:
        ends: partition -> next offset to process; it decides which old buffered readings are released.
    """
    verdict = np.full(len(readings), REJECTED, np.int8)
    decoded = readings.sensor >= 0
    if not grace.is_on:
        verdict[decoded] = classify(readings.sensor[decoded], readings.timestamp_us[decoded])
        return verdict
    for rows, found in reorder_log(readings, grace, ends):
        verdict[rows] = found.verdicts
    return verdict


def reorder_log(
    readings: ReadingLog, grace: GracePeriod, ends: Offsets
) -> Iterator[tuple[NDArray[np.int64], Reordering]]:
    """The rows of each partition's decoded readings, and the outcome of the reorder buffer for these.

    Args:
        ends: partition -> next offset to process; see ``model.reorder_buffer.reorder``.
    """
    for partition in np.unique(readings.partition).tolist():
        rows = np.flatnonzero((readings.sensor >= 0) & (readings.partition == partition))
        sensor, timestamp_us, offset = readings.sensor[rows], readings.timestamp_us[rows], readings.offset[rows]
        yield rows, reorder(sensor, timestamp_us, offset, grace, end=ends.get(partition))


def count_deliveries(
    readings: ReadingLog, forecasts: ForecastLog, starts: Offsets, hidden: NDArray[np.bool_] | None = None
) -> DeliveryCounts:
    """Count the readings from ``starts`` on (partition -> offset, default 0), and their forecasts.

    ``readings`` must begin at the topic's beginning, because acceptance depends on every earlier reading of a sensor.
    Not counted: forecasts made under other settings, readings that only have such a forecast, and readings where
    ``hidden`` (n,) is true. A reading with a forecast under the present and one under other settings is forecast twice.
    """
    due = ~is_before(readings.partition, readings.offset, starts)
    if hidden is not None:
        due &= ~hidden
    accepted = readings.verdict == ACCEPTED
    counted = ~is_before(forecasts.input_partition, forecasts.input_offset, starts)

    row, found = find_rows(readings, forecasts.input_partition, forecasts.input_offset)
    sensor_index = index_translation(forecasts.sensors, readings.sensors)
    fits, rows = found.copy(), row[found]
    fits[found] = (
        accepted[rows]
        & (readings.sensor[rows] == sensor_index[forecasts.sensor[found]])
        & (readings.timestamp_us[rows] == forecasts.issued_us[found])
        & (readings.partition[rows] == forecasts.partition[found])
    )
    times = np.bincount(row[fits & counted], minlength=len(readings))
    elsewhere = foreign_forecasts(readings, forecasts)
    due &= (times > 0) | (elsewhere == 0)
    lost = due & accepted & (times == 0)
    times += np.where(times > 0, elsewhere, 0)  # a forecast made before a change of settings is a second one, too
    repeated = times > 1
    disordered = _out_of_order(forecasts) & fits & counted
    unexpected = ~fits & counted
    faults = {
        "lost": (readings.partition[lost], readings.offset[lost]),
        "twice": (readings.partition[repeated], readings.offset[repeated]),
        "out of order": (forecasts.input_partition[disordered], forecasts.input_offset[disordered]),
        "unexpected": (forecasts.input_partition[unexpected], forecasts.input_offset[unexpected]),
    }
    return DeliveryCounts(
        readings=readings.count(due),
        accepted=int((due & accepted).sum()),
        duplicates=int((due & (readings.verdict == DUPLICATE)).sum()),
        late=int((due & (readings.verdict == LATE)).sum()),
        rejected=readings.count(due & (readings.verdict == REJECTED)),
        held=int((due & (readings.verdict == BUFFERED)).sum()),
        forecasts=int(counted.sum()),
        lost=int(lost.sum()),
        twice=int((times[repeated] - 1).sum()),
        out_of_order=int(disordered.sum()),
        unexpected=int(unexpected.sum()),
        examples={kind: _describe(*positions) for kind, positions in faults.items() if len(positions[0])},
    )


def is_before(partition: NDArray[np.int32], offset: NDArray[np.int64], limits: Offsets) -> NDArray[np.bool_]:
    """(n,) whether each position lies before its partition's limit; the default limit is 0."""
    first = np.zeros(max([int(partition.max(initial=0)), *limits]) + 1, dtype=np.int64)
    for number, limit in limits.items():
        first[number] = limit
    return np.asarray(offset < first[partition])


def foreign_forecasts(readings: ReadingLog, forecasts: ForecastLog) -> NDArray[np.int64]:
    """(n,) the number of forecasts of each reading that were made under other settings."""
    if forecasts.foreign is None:
        return np.zeros(len(readings), np.int64)
    row, found = find_rows(readings, forecasts.foreign.input_partition, forecasts.foreign.input_offset)
    return np.bincount(row[found], minlength=len(readings))


def find_rows(
    readings: ReadingLog, partition: NDArray[np.int32], offset: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """The row of the reading at each position, and whether the log has a reading there."""
    if not len(readings):
        return np.zeros(len(offset), dtype=np.int64), np.zeros(len(offset), dtype=np.bool_)
    known = _position(readings.partition, readings.offset)
    wanted = _position(partition, offset)
    row = np.searchsorted(known, wanted).clip(max=len(known) - 1)
    return row, known[row] == wanted


def _position(partition: NDArray[np.int32], offset: NDArray[np.int64]) -> NDArray[np.int64]:
    """One sortable number per (partition, offset): offsets stay below 2**48."""
    return (partition.astype(np.int64) << 48) | offset


def index_translation(names: Sequence[str], into: Sequence[str]) -> NDArray[np.int64]:
    """The index in ``into`` of each name; -2 if absent, which differs from a rejected reading's -1."""
    index = {name: number for number, name in enumerate(into)}
    return np.array([index.get(name, -2) for name in names], dtype=np.int64)


def _out_of_order(forecasts: ForecastLog) -> NDArray[np.bool_]:
    """(n,) whether an earlier forecast of the same sensor and partition was issued at a later time."""
    order = np.lexsort((forecasts.offset, forecasts.partition, forecasts.sensor))
    sensor, partition = forecasts.sensor[order], forecasts.partition[order]
    stream = np.cumsum((np.diff(sensor, prepend=-1) != 0) | (np.diff(partition, prepend=-1) != 0)) - 1
    issued_us = forecasts.issued_us[order]
    disordered = np.zeros(len(forecasts), dtype=np.bool_)
    disordered[order] = issued_us < running_maximum(stream, issued_us)
    return disordered


def _describe(partition: NDArray[np.int32], offset: NDArray[np.int64]) -> list[str]:
    return [f"partition {p} offset {o}" for p, o in zip(partition[:_EXAMPLES], offset[:_EXAMPLES], strict=True)]
