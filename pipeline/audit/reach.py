"""Tells which readings can be held against the forecasts there are: by partition, from which offset on."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.audit.findings import ForecastLog, Offsets, ReadingLog, find


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

    A partition that has forecasts of other settings begins with its first one of the present: what was accepted before,
    and where states began, the rules of then decided. So does one that began with the latest reading. Before such a
    first forecast nothing is due but what will be committed.

    Args:
        start: where the group began that had no offsets.
    """
    inputs = _first_inputs(forecasts)
    foreign = {} if forecasts.foreign is None else _first_inputs(forecasts.foreign)
    starts = dict(asked)
    for partition in foreign.keys() | (committed if start == "latest" else ()):
        first = inputs.get(partition, committed.get(partition, 0))
        starts[partition] = max(first, asked.get(partition, 0))
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


def replaced_by_copies(
    readings: ReadingLog, forecasts: ForecastLog, letters: Iterable[tuple[int, int]]
) -> NDArray[np.bool_]:
    """(n,) which readings were set aside, under settings of then, and sent once more: the copy got the forecast.

    Args:
        letters: partition and offset of the records that dead letters hold.
    """
    replaced = np.zeros(len(readings), np.bool_)
    positions = np.array(sorted(letters), np.int64).reshape(-1, 2)
    row, found = find(readings, positions[:, 0].astype(np.int32), positions[:, 1])
    aside = row[found]
    aside = aside[readings.sensor[aside] >= 0]
    if len(aside):
        copy, known = find(readings, forecasts.input_partition, forecasts.input_offset)
        copies = {_what(readings, at): at for at in copy[known].tolist()}
        replaced[aside] = [copies.get(_what(readings, at), -1) > at for at in aside.tolist()]
    return replaced


def _what(readings: ReadingLog, row: int) -> tuple[int, int, int]:
    return int(readings.partition[row]), int(readings.sensor[row]), int(readings.timestamp_us[row])


def _first_inputs(forecasts: ForecastLog) -> dict[int, int]:
    """In each partition the offset of the first reading that has a forecast."""
    firsts: dict[int, int] = {}
    for partition, offset in zip(forecasts.input_partition.tolist(), forecasts.input_offset.tolist(), strict=True):
        firsts[partition] = min(offset, firsts.get(partition, offset))
    return firsts
