"""Counts what a forecaster did: was there exactly one forecast, in order, for every accepted reading?

A pure function of the two topics as columns, which ``pipeline.audit.topic_logs`` reads.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from model.acceptance import ACCEPTED, DUPLICATE, LATE, classify
from model.reorder_buffer import BUFFERED, GracePeriod, reorder
from pipeline.kafka.topic_reader import Offsets

REJECTED: Final = 4  # a verdict beside those of the rules

_EXAMPLES: Final = 5  # positions named per kind of fault: enough to look at, few enough to print


@dataclass(frozen=True)
class ReadingLog:
    """The readings topic in (partition, offset) order; ``sensor`` indexes ``sensors`` and is -1 where rejected."""

    sensors: tuple[str, ...]
    partition: NDArray[np.int32]
    offset: NDArray[np.int64]
    sensor: NDArray[np.int64]
    timestamp_us: NDArray[np.int64]
    values: NDArray[np.float64]  # (n, features), NaN where missing
    sent_ms: NDArray[np.int64]  # the record's timestamp: when it was sent
    verdict: NDArray[np.int8]  # ACCEPTED, DUPLICATE, LATE, BUFFERED or REJECTED
    reasons: dict[str, int] = field(default_factory=dict)  # rejected readings by reason

    def __len__(self) -> int:
        return len(self.offset)

    def take(self, mask: NDArray[np.bool_]) -> "ReadingLog":
        """The rows where ``mask`` is true; ``reasons`` stay those of all."""
        return _rows_of(self, mask)


@dataclass(frozen=True)
class ForecastLog:
    """The forecasts topic in (partition, offset) order."""

    sensors: tuple[str, ...]
    partition: NDArray[np.int32]
    offset: NDArray[np.int64]
    sensor: NDArray[np.int64]
    issued_us: NDArray[np.int64]
    input_offset: NDArray[np.int64]
    input_partition: NDArray[np.int32]
    version: NDArray[np.int64]
    warm: NDArray[np.bool_]
    sent_ms: NDArray[np.int64]
    origin: NDArray[np.int64] | None = None  # of the state behind it, and its steps; where they were read
    steps: NDArray[np.int64] | None = None
    quantiles: NDArray[np.float32] | None = None  # (n, targets, levels, horizon), where asked for
    weights: NDArray[np.float64] | None = None  # (n, targets, experts), likewise; see audit.expert_weights
    foreign: "ForecastLog | None" = None  # those made under other settings, without numbers: not among these
    fingerprints: Mapping[str, int] = field(default_factory=dict)  # in foreign ones: of their settings, and how many

    def __len__(self) -> int:
        return len(self.offset)

    def take(self, mask: NDArray[np.bool_]) -> "ForecastLog":
        """The rows where ``mask`` is true; ``foreign`` stays whole."""
        return _rows_of(self, mask)


_Log = TypeVar("_Log", ReadingLog, ForecastLog)


def _rows_of(log: _Log, mask: NDArray[np.bool_]) -> _Log:
    columns: dict[str, Any] = {
        name: column[mask] for name, column in vars(log).items() if isinstance(column, np.ndarray)
    }
    return replace(log, **columns)


@dataclass(frozen=True)
class DeliveryCounts:
    """The outcome: ``lost`` and ``twice`` must be 0, and so must ``out_of_order`` and ``unexpected``."""

    readings: int
    accepted: int
    duplicates: int
    late: int
    rejected: int
    held: int  # waiting for earlier ones
    forecasts: int
    lost: int
    twice: int
    out_of_order: int
    unexpected: int  # follow no accepted reading of that sensor and time
    examples: dict[str, list[str]]  # kind of fault -> some positions on the readings topic

    @property
    def exactly_once(self) -> bool:
        """Whether every accepted reading has exactly one forecast, in order, and there are no others."""
        return self.lost == self.twice == self.out_of_order == self.unexpected == 0


def classify_log(readings: ReadingLog, grace: GracePeriod, ends: Offsets) -> NDArray[np.int8]:
    """(n,) the verdict on each reading, by the rules that the stream itself uses.

    Args:
        ends: by partition, how far the stream has come, for what it holds no longer than so many offsets.
    """
    verdict = np.full(len(readings), REJECTED, np.int8)
    decoded = readings.sensor >= 0
    if not grace.is_on:
        verdict[decoded] = classify(readings.sensor[decoded], readings.timestamp_us[decoded])
        return verdict
    for partition in np.unique(readings.partition).tolist():
        rows = np.flatnonzero(decoded & (readings.partition == partition))
        sensor, timestamp_us, offset = readings.sensor[rows], readings.timestamp_us[rows], readings.offset[rows]
        verdict[rows] = reorder(sensor, timestamp_us, offset, grace, end=ends.get(partition)).verdicts
    return verdict


def count_deliveries(
    readings: ReadingLog, forecasts: ForecastLog, starts: Offsets, hidden: NDArray[np.bool_] | None = None
) -> DeliveryCounts:
    """What became of the readings from ``starts`` on (by partition; 0 where not named).

    ``readings`` must reach back to the beginning of the topic, or acceptance (later than every earlier reading of the
    sensor) could not be told; readings before ``starts`` are not counted, nor are forecasts that follow them. Nor are
    forecasts made under other settings, and readings that have no other; but a reading that has one of either is
    forecast twice. Nor are readings where ``hidden`` (n,) is true.
    """
    due = _at_or_after(readings.partition, readings.offset, starts)
    if hidden is not None:
        due &= ~hidden
    accepted = readings.verdict == ACCEPTED
    counted = _at_or_after(forecasts.input_partition, forecasts.input_offset, starts)

    row, found = find_rows(readings, forecasts.input_partition, forecasts.input_offset)
    translate = index_translation(forecasts.sensors, readings.sensors)
    fits = found.copy()
    fits[found] = (
        accepted[row[found]]
        & (readings.sensor[row[found]] == translate[forecasts.sensor[found]])
        & (readings.timestamp_us[row[found]] == forecasts.issued_us[found])
        & (readings.partition[row[found]] == forecasts.partition[found])
    )
    times = np.bincount(row[fits & counted], minlength=len(readings))
    elsewhere = foreign_forecasts(readings, forecasts)
    due &= (times > 0) | (elsewhere == 0)
    lost = due & accepted & (times == 0)
    times += np.where(times > 0, elsewhere, 0)  # also those of before a change of settings
    repeated = times > 1
    disordered = _out_of_order(forecasts) & fits & counted
    unexpected = ~fits & counted
    return DeliveryCounts(
        readings=int(due.sum()),
        accepted=int((due & accepted).sum()),
        duplicates=int((due & (readings.verdict == DUPLICATE)).sum()),
        late=int((due & (readings.verdict == LATE)).sum()),
        rejected=int((due & (readings.verdict == REJECTED)).sum()),
        held=int((due & (readings.verdict == BUFFERED)).sum()),
        forecasts=int(counted.sum()),
        lost=int(lost.sum()),
        twice=int((times[repeated] - 1).sum()),
        out_of_order=int(disordered.sum()),
        unexpected=int(unexpected.sum()),
        examples={
            kind: positions
            for kind, positions in {
                "lost": _name(readings.partition[lost], readings.offset[lost]),
                "twice": _name(readings.partition[repeated], readings.offset[repeated]),
                "out of order": _name(forecasts.input_partition[disordered], forecasts.input_offset[disordered]),
                "unexpected": _name(forecasts.input_partition[unexpected], forecasts.input_offset[unexpected]),
            }.items()
            if positions
        },
    )


def _at_or_after(partition: NDArray[np.int32], offset: NDArray[np.int64], starts: Offsets) -> NDArray[np.bool_]:
    first = np.zeros(max([int(partition.max(initial=0)), *starts]) + 1, dtype=np.int64)
    for number, start in starts.items():
        first[number] = start
    return np.asarray(offset >= first[partition])


def foreign_forecasts(readings: ReadingLog, forecasts: ForecastLog) -> NDArray[np.int64]:
    """(n,) how many forecasts made under other settings follow each reading."""
    if forecasts.foreign is None:
        return np.zeros(len(readings), np.int64)
    row, found = find_rows(readings, forecasts.foreign.input_partition, forecasts.foreign.input_offset)
    return np.bincount(row[found], minlength=len(readings))


def find_rows(
    readings: ReadingLog, partition: NDArray[np.int32], offset: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """The row of the reading at each position, and whether there is one."""
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
    """The index in ``into`` of each name, -2 (equal to no sensor's index, nor to a rejected one's -1) where absent."""
    index = {name: number for number, name in enumerate(into)}
    return np.array([index.get(name, -2) for name in names], dtype=np.int64)


def _out_of_order(forecasts: ForecastLog) -> NDArray[np.bool_]:
    """Which forecasts follow, within their sensor and partition, one of a later step."""
    order = np.lexsort((forecasts.offset, forecasts.partition, forecasts.sensor))
    sensor, partition = forecasts.sensor[order], forecasts.partition[order]
    begins = np.flatnonzero((np.diff(sensor, prepend=-1) != 0) | (np.diff(partition, prepend=-1) != 0))
    disordered = np.zeros(len(forecasts), dtype=np.bool_)
    for rows in np.split(order, begins):
        issued_us = forecasts.issued_us[rows]
        disordered[rows] = issued_us < np.maximum.accumulate(issued_us)
    return disordered


def _name(partition: NDArray[np.int32], offset: NDArray[np.int64]) -> list[str]:
    return [f"partition {p} offset {o}" for p, o in zip(partition[:_EXAMPLES], offset[:_EXAMPLES], strict=True)]
