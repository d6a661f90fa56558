"""Outlooks on their way into states: the records of a batch become entries for rows of the state table."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from model.config import ModelConfig
from model.outlooks import ACCEPTED, OUTDATED, Outlooks, lay_all
from pipeline.forecaster.readings import Readings
from pipeline.forecaster.states.table import Rows, StateTable
from pipeline.outlook_messages import Outlook

Indexes = NDArray[np.int64]


class OutlookCounts(NamedTuple):
    """Counts of records with outlooks by their outcome. A group's outlook has a record on each partition."""

    accepted: int = 0  # by the state of at least one sensor
    late: int = 0  # issued no later than the outlook that each of the sensors had
    unused: int = 0  # no sensor has a state on the partition, or the model uses no outlooks


@dataclass(frozen=True)
class RowOutlooks:
    """The outlooks of some partitions' records, an entry for each row of the state table that they are for."""

    rows: Rows  # (m,)
    offset: Indexes  # (m,)
    which: Indexes  # (m,) index in ``outlooks``, which has one for each record
    outlooks: Outlooks

    @classmethod
    def of(cls, config: ModelConfig, table: StateTable, parts: Sequence[Readings]) -> "RowOutlooks":
        """The outlooks in the parts' records. A sensor without a row in the table has no state, so it has no entry."""
        received = [(part.partition, each) for part in parts for each in part.outlooks]
        rows = [table.known_rows(partition, each.outlook.sensors) for partition, each in received]
        counts = list(map(len, rows))
        return cls(
            np.concatenate([np.empty(0, np.intp), *rows]),
            np.repeat(np.array([each.offset for _, each in received], np.int64), counts),
            np.repeat(np.arange(len(received)), counts),
            lay_messages(config, [each.outlook for _, each in received]),
        )

    def count(self, verdicts: NDArray[np.int8]) -> OutlookCounts:
        """The records by their entries' verdicts (m,)."""
        records = len(self.outlooks)
        accepted = np.bincount(self.which[verdicts == ACCEPTED], minlength=records) > 0
        late = ~accepted & (np.bincount(self.which[verdicts == OUTDATED], minlength=records) > 0)
        return OutlookCounts(int(accepted.sum()), int(late.sum()), int((~accepted & ~late).sum()))


def lay_messages(config: ModelConfig, outlooks: Sequence[Outlook]) -> Outlooks:
    """The outlooks on the grid of a model."""
    assert config.outlook is not None
    issued_us = np.array([each.issued_us for each in outlooks], np.int64)
    entries = ((each.timestamp_us, each.values) for each in outlooks)
    return lay_all(config.outlook, config.cadence_us, issued_us, entries)
