"""The scope of an audit: the offset of each partition from which readings, forecasts and dead letters are complete."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.audit.delivery import ForecastLog, ReadingLog, find_rows
from pipeline.kafka.topic_reader import Offsets

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class LogStarts:
    """The first offset in each partition of a topic; above 0 if retention has deleted records."""

    readings: Offsets = field(default_factory=dict)
    forecasts: Offsets = field(default_factory=dict)
    letters: Offsets = field(default_factory=dict)


def first_due(
    forecasts: ForecastLog, asked: Offsets, committed: Offsets, start: Literal["earliest", "latest"]
) -> dict[int, int]:
    """The offset in each partition from which readings must have forecasts under the present settings.

    It is at least ``asked``. In a partition with forecasts made under other settings, it is the offset after the last
    reading with such a forecast, or the first reading with a forecast under the present settings if that is earlier.
    If the group started at the latest reading, it is the first reading with a forecast, or the committed offset if
    there is no forecast.

    Args:
        start: setting forecaster.start, where a group without offsets starts.
    """
    inputs = _inputs(forecasts, min)
    starts = dict(asked)
    if start == "latest":
        starts |= {part: max(inputs.get(part, end), asked.get(part, 0)) for part, end in committed.items()}
    for partition, last in _inputs(forecasts.foreign, max).items():
        starts[partition] = max(min(inputs.get(partition, last + 1), last + 1), asked.get(partition, 0))
    return starts


def within_retention(forecasts: ForecastLog, starts: Offsets, logs: LogStarts, committed: Offsets) -> dict[int, int]:
    """The offset of each partition from which both readings and forecasts still exist, not before ``starts``.

    Kafka deletes the segments of each topic independently. Forecasts are in the order of their readings, except
    readings that were buffered, so the first forecast in the log belongs to the first reading that can have one.
    """
    firsts = {
        partition: _input_of_first(forecasts, partition, committed.get(partition, 0))
        for partition, start in logs.forecasts.items()
        if start > 0
    }
    return _raise_starts(_raise_starts(starts, logs.readings), firsts)


def _raise_starts(starts: Offsets, limits: Offsets) -> dict[int, int]:
    """The starts, each raised to its partition's limit if the limit is higher."""
    return {**starts, **{partition: max(limit, starts.get(partition, 0)) for partition, limit in limits.items()}}


def _input_of_first(forecasts: ForecastLog, partition: int, otherwise: int) -> int:
    """The offset of the reading that a partition's first forecast was made for, under the present or other settings."""
    firsts: list[tuple[int, int]] = []
    for log in (forecasts, forecasts.foreign):
        if log is not None:
            rows = np.flatnonzero(log.partition == partition)[:1]
            firsts += zip(log.offset[rows].tolist(), log.input_offset[rows].tolist(), strict=True)
    return min(firsts)[1] if firsts else otherwise


def letters_due(letters: Iterable[tuple[int, int]], starts: Offsets, logs: LogStarts, committed: Offsets) -> Offsets:
    """The offset of each partition from which rejected records still have dead letters, not before ``starts``.

    Args:
        letters: partition and offset of the rejected record in each dead letter.
    """
    # Sorted downwards, so that dict() keeps the lowest offset of each partition.
    firsts = {**committed, **dict(sorted(letters, reverse=True))}
    cut = {partition: firsts.get(partition, 0) for partition, start in logs.letters.items() if start > 0}
    return _raise_starts(starts, cut)


def before_first_forecast(readings: ReadingLog, forecasts: ForecastLog, logs: LogStarts) -> NDArray[np.bool_]:
    """(n,) whether a reading precedes its sensor's first forecast, in a partition where records were deleted.

    The forecast of this reading may have been deleted. Or the reading was late, and the newer reading before it was
    deleted.
    """
    cut = [partition for log in (logs.readings, logs.forecasts) for partition, start in log.items() if start > 0]
    firsts: dict[tuple[int, int], int] = {}
    for log in (forecasts, forecasts.foreign):
        if log is not None and cut:
            row, found = find_rows(readings, log.input_partition, log.input_offset)
            for at in row[found].tolist():
                stream = int(readings.partition[at]), int(readings.sensor[at])
                firsts[stream] = min(int(readings.offset[at]), firsts.get(stream, int(readings.offset[at])))
    before = np.zeros(len(readings), np.bool_)
    for at in np.flatnonzero(np.isin(readings.partition, cut) & (readings.sensor >= 0)).tolist():
        before[at] = readings.offset[at] < firsts.get((int(readings.partition[at]), int(readings.sensor[at])), 0)
    return before


def set_aside_before(
    readings: ReadingLog, forecasts: ForecastLog, letters: Iterable[tuple[int, int]]
) -> NDArray[np.bool_]:
    """(n,) whether a reading became a dead letter under earlier settings, and so needs no forecast itself.

    Either the reading was republished, and its copy has the forecast. Or it lies after the last reading forecast under
    earlier settings, and before the first reading forecast under the present settings.

    Args:
        letters: partition and offset of the rejected record in each dead letter.
    """
    replaced = np.zeros(len(readings), np.bool_)
    positions = np.array(sorted(letters), np.int64).reshape(-1, 2)
    row, found = find_rows(readings, positions[:, 0].astype(np.int32), positions[:, 1])
    aside = row[found]
    aside = aside[readings.sensor[aside] >= 0]
    if len(aside):
        copy, known = find_rows(readings, forecasts.input_partition, forecasts.input_offset)
        copies = {_reading_key(readings, at): at for at in copy[known].tolist()}
        replaced[aside] = [copies.get(_reading_key(readings, at), -1) > at for at in aside.tolist()]
        for partition, last in _inputs(forecasts.foreign, max).items():
            later = forecasts.input_offset[(forecasts.input_partition == partition) & (forecasts.input_offset > last)]
            here = aside[readings.partition[aside] == partition]
            replaced[here] |= readings.offset[here] < later.min(initial=np.iinfo(np.int64).max)
    return replaced


def set_aside_by_letters(readings: ReadingLog, forecasts: ForecastLog, letters: Sequence[tuple[int, int, int]]) -> Mask:
    """(n,) whether a reading without a forecast lies in a dead letter, although it decodes now.

    The dead letter is the record of the forecaster's verdict. Another release may have decoded the reading otherwise,
    and another ``kafka.max_batch_bytes`` may have rejected its whole batch.

    Args:
        letters: partition, first and last offset of each dead letter whose reason is the content of its record or
            batch.
    """
    aside = lie_within(readings, letters) & (readings.sensor >= 0)
    for log in (forecasts, forecasts.foreign):
        if log is not None:
            row, found = find_rows(readings, log.input_partition, log.input_offset)
            aside[row[found]] = False
    return aside


def lie_within(readings: ReadingLog, ranges: Iterable[tuple[int, int, int]]) -> Mask:
    """(n,) whether each record lies in one of the ranges: partition, first and last offset."""
    within = np.zeros(len(readings), np.bool_)
    spans = np.array(sorted(ranges), np.int64).reshape(-1, 3)
    for partition in np.unique(spans[:, 0]).tolist():
        here = spans[spans[:, 0] == partition]
        rows = np.flatnonzero(readings.partition == partition)
        last = np.append(-1, np.maximum.accumulate(here[:, 2]))  # highest offset of the ranges up to each one
        within[rows] = last[np.searchsorted(here[:, 1], readings.offset[rows], "right")] >= readings.offset[rows]
    return within


def group_starts(
    forecasts: ForecastLog, committed: Offsets, start: Literal["earliest", "latest"], logs: LogStarts
) -> dict[int, int | None]:
    """The offset in each partition of the first reading that the group processed; 0 if it began with the log.

    None if the offset is unknown, because retention deleted readings or the first forecasts.
    """
    firsts: dict[int, int | None] = {}
    for partition, end in committed.items():
        is_cut = logs.readings.get(partition, 0) > 0 or (start == "latest" and logs.forecasts.get(partition, 0) > 0)
        firsts[partition] = None if is_cut else 0 if start == "earliest" else _input_of_first(forecasts, partition, end)
    return firsts


def set_aside_by_limit(
    readings: ReadingLog, letters: Mapping[tuple[int, int], int], group_starts: Mapping[int, int | None]
) -> Mask:
    """(n,) whether a reading became a dead letter because its partition had too many sensors.

    The letter alone does not prove it: the reading's sensor must be new at its offset, and as many sensors as the limit
    must be known. If the group's first readings are unknown, the second cannot be checked.

    Args:
        letters: partition and offset of the rejected record -> the limit that its dead letter names.
        group_starts: see ``group_starts``. Earlier readings made no sensor known. By default 0.
    """
    aside = np.zeros(len(readings), np.bool_)
    if not letters:
        return aside
    positions = np.array(sorted(letters), np.int64).reshape(-1, 2)
    row, found = find_rows(readings, positions[:, 0].astype(np.int32), positions[:, 1])
    aside[row[found]] = True
    aside &= readings.sensor >= 0
    for partition in np.unique(readings.partition[aside]).tolist():
        here = readings.partition == partition
        start = group_starts.get(partition, 0)
        admitted = np.flatnonzero(here & ~aside & (readings.sensor >= 0) & (readings.offset >= (start or 0)))
        sensors, first = np.unique(readings.sensor[admitted], return_index=True)
        known_from = dict(zip(sensors.tolist(), readings.offset[admitted][first].tolist(), strict=True))
        known_offsets = np.sort(readings.offset[admitted][first])
        for at in np.flatnonzero(here & aside).tolist():
            offset = int(readings.offset[at])
            known = int(np.searchsorted(known_offsets, offset))
            is_new = known_from.get(int(readings.sensor[at]), offset) >= offset
            aside[at] = is_new and (known >= letters[partition, offset] or start is None)
    return aside


def _reading_key(readings: ReadingLog, row: int) -> tuple[int, int, int]:
    return int(readings.partition[row]), int(readings.sensor[row]), int(readings.timestamp_us[row])


def _inputs(forecasts: ForecastLog | None, select: Callable[[int, int], int]) -> dict[int, int]:
    """The offset of each partition's first (``min``) or last (``max``) reading with a forecast."""
    found: dict[int, int] = {}
    if forecasts is not None:
        for partition, offset in zip(forecasts.input_partition.tolist(), forecasts.input_offset.tolist(), strict=True):
            found[partition] = select(offset, found.get(partition, offset))
    return found
