"""The outlooks of the readings topic, and those that the states of an audit see.

Letters: m entries, one for each stream (a sensor in a partition) that an outlook is for.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from model.config import ModelConfig
from model.outlooks import Arrivals, Outlooks
from pipeline.forecaster.outlook_arrivals import lay_messages
from pipeline.outlook_messages import Outlook
from pipeline.reading_times import TimeRules, find_implausible

Indexes = NDArray[np.int64]


@dataclass(frozen=True)
class LoggedOutlook:
    """An outlook in a record of the readings topic."""

    partition: int
    offset: int
    sent_ms: int
    outlook: Outlook


def are_implausible(outlooks: Sequence[LoggedOutlook], rules_of: Mapping[int, TimeRules]) -> list[bool]:
    """Whether the time of issue of each outlook is implausible."""
    found = []
    for each in outlooks:
        issued_us, sent_ms, offset = (np.array([one]) for one in (each.outlook.issued_us, each.sent_ms, each.offset))
        found.append(bool(find_implausible(issued_us, sent_ms, offset, rules_of.get(each.partition, ()))[0]))
    return found


def of_sensor(outlooks: Sequence[LoggedOutlook], sensor: str) -> tuple[LoggedOutlook, ...]:
    """The outlooks of a sensor and of its groups, for this sensor alone."""
    is_for: dict[tuple[bool, str], bool] = {}
    found = []
    for each in outlooks:
        key = (each.outlook.is_group, each.outlook.name)
        if key not in is_for:
            is_for[key] = sensor in each.outlook.sensors
        if is_for[key]:
            found.append(replace(each, outlook=replace(each.outlook, sensors=(sensor,))))
    return tuple(found)


@dataclass(frozen=True)
class StreamOutlooks:
    """The outlooks by stream, in offset order."""

    outlooks: tuple[Outlook, ...]
    offset: Indexes  # (m,)
    which: NDArray[np.int32]  # (m,) index in ``outlooks``
    starts: Indexes  # (streams + 1,) stream s has the entries [starts[s], starts[s + 1])

    @classmethod
    def of(cls, outlooks: Sequence[LoggedOutlook], streams: Sequence[tuple[int, str]]) -> "StreamOutlooks":
        """The outlooks of the streams, each a partition and a sensor."""
        numbers = {stream: number for number, stream in enumerate(streams)}
        offsets = np.array([each.offset for each in outlooks], np.int64)
        in_order = np.argsort(offsets, kind="stable").tolist()
        found: dict[tuple[int, bool, str], NDArray[np.int32]] = {}  # streams by partition and sensor or group
        parts = [np.empty(0, np.int32)]
        for each in (outlooks[which] for which in in_order):
            key = (each.partition, each.outlook.is_group, each.outlook.name)
            if key not in found:
                places = ((each.partition, sensor) for sensor in each.outlook.sensors)
                found[key] = np.array([numbers[place] for place in places if place in numbers], np.int32)
            parts.append(found[key])
        stream = np.concatenate(parts)
        which = np.repeat(np.array(in_order, np.int32), list(map(len, parts[1:])))
        which = which[np.argsort(stream, kind="stable")]  # of a stream's entries, the offsets ascend already
        starts = np.append(0, np.cumsum(np.bincount(stream, minlength=len(streams))))
        return cls(tuple(each.outlook for each in outlooks), offsets[which], which, starts)

    def between(self, stream: int, first: int, end: int) -> slice:
        """The entries of a stream with offsets from ``first`` up to but not including ``end``."""
        low, high = int(self.starts[stream]), int(self.starts[stream + 1])
        offsets = self.offset[low:high]
        return slice(low + int(np.searchsorted(offsets, first)), low + int(np.searchsorted(offsets, max(first, end))))


class ArrivalSource:
    """The arrivals at stretches of readings, for one model."""

    def __init__(self, config: ModelConfig, found: StreamOutlooks) -> None:
        self._found = found
        self._laid = lay_messages(config, found.outlooks)

    def arrivals(self, streams: Indexes, first: Indexes, end: Indexes, known_at: Indexes) -> Arrivals:
        """The outlooks that come to each of S stretches with offsets in [first, end).

        Args:
            streams, first, end: (S,) of the stretches, whose states have the slots 0 to S - 1.
            known_at: (n,) offset of the record that made each reading accepted.
        """
        spans = [
            self._found.between(*stretch)
            for stretch in zip(streams.tolist(), first.tolist(), end.tolist(), strict=True)
        ]
        slots = np.repeat(np.arange(len(spans)), [span.stop - span.start for span in spans])
        entries = np.concatenate([np.arange(span.start, span.stop) for span in spans])
        used, row = np.unique(self._found.which[entries], return_inverse=True)
        laid = Outlooks(self._laid.issued_us[used], self._laid.first_us[used], self._laid.values[used])
        return Arrivals(slots, self._found.offset[entries], row.astype(np.int64), laid, known_at)
