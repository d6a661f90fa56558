"""Tells which readings can be held against the forecasts there are: by partition, from which offset on."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.audit.delivery import ForecastLog, ReadingLog, find_rows
from pipeline.kafka.topic_reader import Offsets


@dataclass(frozen=True)
class LogStarts:
    """The first offset that each partition of a topic still has, where retention has deleted any before it."""

    readings: Offsets = field(default_factory=dict)
    forecasts: Offsets = field(default_factory=dict)
    letters: Offsets = field(default_factory=dict)


def first_due(
    forecasts: ForecastLog, asked: Offsets, committed: Offsets, start: Literal["earliest", "latest"]
) -> dict[int, int]:
    """The first reading that is due a forecast under the present settings, no earlier than was asked for.

    A partition that has forecasts of other settings begins behind the last of these, or with its first one of the
    present: what was accepted before, and where states began, the rules of then decided. Where the group began with the
    latest reading, one begins with its first forecast; where it has none, nothing is due but what will be committed.

    Args:
        start: where the group began that had no offsets.
    """
    inputs = _inputs(forecasts, min)
    starts = dict(asked)
    if start == "latest":
        starts |= {part: max(inputs.get(part, end), asked.get(part, 0)) for part, end in committed.items()}
    for partition, last in _inputs(forecasts.foreign, max).items():
        starts[partition] = max(min(inputs.get(partition, last + 1), last + 1), asked.get(partition, 0))
    return starts


def within_retention(forecasts: ForecastLog, starts: Offsets, logs: LogStarts, committed: Offsets) -> dict[int, int]:
    """From where on both readings and their forecasts are there, no earlier than ``starts``.

    Kafka deletes each topic's segments by themselves. A partition's forecasts are in the order of its readings (but for
    those that waited for earlier ones), so the first one there is follows the first reading that can have one.
    """
    reached = dict(starts)
    for partition, start in logs.readings.items():
        if start > 0:
            reached[partition] = max(start, reached.get(partition, 0))
    for partition, start in logs.forecasts.items():
        if start > 0:
            first = _input_of_first(forecasts, partition, committed.get(partition, 0))
            reached[partition] = max(first, reached.get(partition, 0))
    return reached


def _input_of_first(forecasts: ForecastLog, partition: int, otherwise: int) -> int:
    """The input of the first forecast on a partition, of whatever settings."""
    firsts: list[tuple[int, int]] = []
    for log in (forecasts, forecasts.foreign):
        if log is not None:
            rows = np.flatnonzero(log.partition == partition)[:1]
            firsts += zip(log.offset[rows].tolist(), log.input_offset[rows].tolist(), strict=True)
    return min(firsts)[1] if firsts else otherwise


def letters_due(letters: Iterable[tuple[int, int]], starts: Offsets, logs: LogStarts, committed: Offsets) -> Offsets:
    """From where on the records that were set aside still have their dead letters, no earlier than ``starts``.

    Args:
        letters: partition and offset of the records that they hold.
    """
    reached, firsts = dict(starts), dict[int, int]()
    for partition, offset in letters:
        firsts[partition] = min(offset, firsts.get(partition, offset))
    for partition, start in logs.letters.items():
        if start > 0:
            first = firsts.get(partition, committed.get(partition, 0))
            reached[partition] = max(first, reached.get(partition, 0))
    return reached


def before_first_forecast(readings: ReadingLog, forecasts: ForecastLog, logs: LogStarts) -> NDArray[np.bool_]:
    """(n,) which readings lie before the first forecast that there is of their sensor, where retention has cut logs.

    Theirs may have been deleted, if some waited for earlier ones; or what came before them, and made them late.
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
    """(n,) which readings were set aside under settings of then, and so are due no forecast.

    They were sent once more, and the copy got it; or they lie between the forecasts of those settings and the first of
    the present.

    Args:
        letters: partition and offset of the records that dead letters hold.
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


def _reading_key(readings: ReadingLog, row: int) -> tuple[int, int, int]:
    return int(readings.partition[row]), int(readings.sensor[row]), int(readings.timestamp_us[row])


def _inputs(forecasts: ForecastLog | None, of_them: Callable[[int, int], int]) -> dict[int, int]:
    """In each partition the offset of the first reading that has a forecast (``min``), or of the last (``max``)."""
    found: dict[int, int] = {}
    if forecasts is not None:
        inputs = zip(forecasts.input_partition.tolist(), forecasts.input_offset.tolist(), strict=True)
        for partition, offset in inputs:
            found[partition] = of_them(offset, found.get(partition, offset))
    return found
