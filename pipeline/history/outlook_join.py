"""Joins the outlooks in the history to the steps that see them, by the rule of the stream (``model.outlooks``).

Letters: n accepted readings, m outlooks, C covariates.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
from numpy.typing import NDArray

from model.acceptance import lowest_from_here
from model.known_ahead import OutlookConfig
from model.outlooks import NO_OUTLOOK, Records, as_of, lay_all
from model.sequences import Sequences
from pipeline.history.outlook_rows import OUTLOOK_COVARIATES, OUTLOOK_GROUP, OUTLOOK_TIMES, OUTLOOK_VALUES

Indexes = NDArray[np.int64]


@dataclass(frozen=True)
class StepPositions:
    """Where the accepted readings of ``Sequences`` are on the topic, in the order of the steps."""

    sensor: NDArray[np.integer]  # (n,) index among the sensors
    partition: NDArray[np.integer]  # (n,)
    released: Indexes  # (n,) offset of the record that made the reading accepted

    def in_order(self) -> "StepPositions":
        """The same positions, if the steps do not follow the order of records: an older reading may come much later.

        A step then counts as released no later than the steps after it, so that it sees no outlook that is newer than
        theirs.
        """
        released = self.released.copy()
        _, stream = np.unique(self._streams(), return_inverse=True)
        order = np.argsort(stream, kind="stable")
        released[order] = lowest_from_here(stream[order], self.released[order])
        return replace(self, released=released)

    def _streams(self) -> Indexes:
        """(n,) a number for each sensor in each partition, ascending by sensor."""
        return self.sensor.astype(np.int64) * (int(self.partition.max(initial=0)) + 1) + self.partition

    def records(self) -> tuple[Records, dict[tuple[int, int], int], NDArray[np.bool_]]:
        """The readings by stream, the number of each stream by sensor and partition, and (n,) first readings."""
        _, first, stream = np.unique(self._streams(), return_index=True, return_inverse=True)
        sensors, partitions = self.sensor[first].tolist(), self.partition[first].tolist()
        numbers = {pair: number for number, pair in enumerate(zip(sensors, partitions, strict=True))}
        is_first = np.zeros(len(stream), bool)
        is_first[first] = True
        return Records(stream, 2 * self.released), numbers, is_first


@dataclass(frozen=True)
class HistoryOutlooks:
    """The outlooks of a history."""

    rows: pl.DataFrame  # of ``History.scan_outlooks``, or from files
    config: OutlookConfig  # the present covariates; other covariates in the rows are left out


def join_outlooks(sequences: Sequences, positions: StepPositions, found: HistoryOutlooks) -> Sequences:
    """The sequences with the outlook that each step sees.

    A sensor that has moved to another partition has a new state there, as in the stream, without the outlooks of the
    first partition.
    """
    rows, config = found.rows, found.config
    issued_us = rows["timestamp"].dt.timestamp("us").to_numpy(writable=True)
    outlooks = lay_all(config, sequences.cadence_us, issued_us, _entries(rows, config.covariates))
    readings, streams, is_first = positions.records()
    members: Mapping[str, Sequence[str]] = dict(config.groups)
    codes = {sensor: code for code, sensor in enumerate(sequences.sensors)}
    entry_row: list[int] = []
    entry_stream: list[int] = []
    columns = (rows[name].to_list() for name in ("sensor_id", OUTLOOK_GROUP, "partition"))
    for row, (name, is_group, partition) in enumerate(zip(*columns, strict=True)):
        for sensor in members.get(name, ()) if is_group else (name,):
            stream = streams.get((codes.get(sensor, -1), partition))
            if stream is not None:
                entry_row.append(row)
                entry_stream.append(stream)
    chosen = np.array(entry_row, np.int64)
    # An outlook follows a reading that was released at the same offset.
    entries = Records(np.array(entry_stream, np.int64), 2 * rows["offset"].to_numpy()[chosen] + 1)
    reset = sequences.reset[sequences.observed] | is_first
    seen = as_of(readings, reset, entries, issued_us[chosen], np.zeros(len(streams), bool))
    row_of = np.append(chosen, NO_OUTLOOK).astype(np.int32)  # of an entry; ``NO_OUTLOOK`` is the last place
    return sequences.with_outlooks(outlooks, replace(seen, row=row_of[seen.row]))


def _entries(rows: pl.DataFrame, present: Sequence[str]) -> Iterator[tuple[Indexes, NDArray[np.float32]]]:
    """The times (n,) of each outlook, and the values (n, C) of the present covariates at these times."""
    columns = (rows[name].to_list() for name in (OUTLOOK_TIMES, OUTLOOK_COVARIATES, OUTLOOK_VALUES))
    for times, covariates, flat in zip(*columns, strict=True):
        given = np.array(flat, np.float32).reshape(len(times), len(covariates))
        wanted = np.full((len(times), len(present)), np.nan, np.float32)
        for number, name in enumerate(present):
            if name in covariates:
                wanted[:, number] = given[:, covariates.index(name)]
        yield np.array(times, np.int64), wanted
