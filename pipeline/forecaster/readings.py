"""Decodes records of the readings topic into columns, one partition at a time.

The columns keep the order of offsets. Records that do not decode are returned separately, each with its reason.
"""

from collections.abc import Container, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.kafka.reading_records import decode_readings
from pipeline.kafka.record_batch import FetchedRecord
from pipeline.kafka.record_columns import offsets_of, places_with_headers, timestamps_of
from pipeline.kafka.sensor_codes import distinct, join_names, only_used
from pipeline.messages import Rejected
from pipeline.outlook_messages import Outlook, OutlookDecoder, decode_outlook
from pipeline.reading_times import ImplausibleTime, TimeRules, find_implausible, reject_implausible
from pipeline.readings_format.decoder import RecordDecoder

Record = FetchedRecord

TRACEPARENT: Final = "traceparent"
# W3C's header has 55 bytes, and later versions may be longer. A header beyond this limit is not passed on.
LONGEST_TRACEPARENT_BYTES: Final = 256


@dataclass(frozen=True)
class ReceivedOutlook:
    """An outlook in a record."""

    offset: int
    outlook: Outlook


@dataclass(frozen=True)
class Readings:
    """n readings of one partition, in the order of their offsets; accepted ones in the order of their steps."""

    partition: int
    names: list[str]  # the sensor ids, each once, and each with a reading
    codes: NDArray[np.intp]  # (n,) index of the reading's sensor in ``names``
    timestamp_us: NDArray[np.int64]  # (n,)
    values: NDArray[np.float64]  # (n, F), NaN where missing
    offsets: NDArray[np.int64]  # (n,)
    traceparents: list[bytes | None] | None = None  # None if no reading has one
    # (n,) of accepted readings, see ``model.reorder_buffer.ReleasedReading``; None: each may
    may_anchor: NDArray[np.bool_] | None = None
    # (n,) of accepted readings, see ``model.reorder_buffer.ReleasedReading``; None: their own offsets
    as_of: NDArray[np.int64] | None = None
    # In the same records as the readings, by ascending offset. Selections of the readings have none.
    outlooks: tuple[ReceivedOutlook, ...] = ()

    @classmethod
    def of_sensors(
        cls,
        partition: int,
        sensors: Sequence[str],
        timestamp_us: NDArray[np.int64],
        values: NDArray[np.float64],
        offsets: NDArray[np.int64],
    ) -> "Readings":
        """Readings with a sensor id each."""
        return cls(partition, *distinct(sensors), timestamp_us, values, offsets)

    def __len__(self) -> int:
        return len(self.codes)

    @cached_property
    def sensors(self) -> list[str]:
        """The sensor id of each reading; code that processes many readings takes ``names`` instead."""
        return [self.names[code] for code in self.codes.tolist()]

    def are_of(self, sensors: Container[str]) -> NDArray[np.bool_]:
        """(n,) whether each reading is of one of the sensors."""
        return np.array([name in sensors for name in self.names], np.bool_)[self.codes]

    def take(self, mask: NDArray[np.bool_]) -> "Readings":
        """The readings where ``mask`` (n,) is true; the same object if it is true for all."""
        return self if mask.all() else self.pick(np.flatnonzero(mask))

    def pick(self, places: NDArray[np.intp]) -> "Readings":
        """The readings at ``places``, in that order. Not for accepted readings with ``may_anchor``."""
        assert self.may_anchor is None, "a selection of accepted readings would need new anchors"
        traceparents = self.traceparents
        return Readings(
            self.partition,
            *only_used(self.names, self.codes[places]),
            self.timestamp_us[places],
            self.values[places],
            self.offsets[places],
            None if traceparents is None else [traceparents[place] for place in places.tolist()],
        )

    def followed_by(self, others: "Readings") -> "Readings":
        """These readings, then ``others`` of the same partition. Not for accepted readings with ``may_anchor``."""
        assert self.may_anchor is others.may_anchor is None, "accepted readings cannot be joined, only stepped"
        traceparents = None
        if self.traceparents is not None or others.traceparents is not None:
            traceparents = [*(self.traceparents or [None] * len(self)), *(others.traceparents or [None] * len(others))]
        return Readings(
            self.partition,
            *join_names([(self.names, self.codes), (others.names, others.codes)]),
            np.concatenate([self.timestamp_us, others.timestamp_us]),
            np.concatenate([self.values, others.values]),
            np.concatenate([self.offsets, others.offsets]),
            traceparents,
        )

    def merged_with(self, others: "Readings") -> "Readings":
        """These readings and ``others`` of the same partition, in offset order."""
        both = self.followed_by(others)
        return both.pick(np.argsort(both.offsets)) if (np.diff(both.offsets) < 0).any() else both


class JoinedReadings(NamedTuple):
    """n accepted readings of distinct partitions, one partition after the other; the columns are as in ``Readings``."""

    partitions: NDArray[np.int64]  # (n,)
    names: list[str]  # a sensor id in two partitions is in the list twice
    codes: NDArray[np.intp]  # (n,)
    timestamp_us: NDArray[np.int64]  # (n,)
    values: NDArray[np.float64]  # (n, F)
    offsets: NDArray[np.int64]  # (n,)
    traceparents: list[bytes | None] | None
    may_anchor: NDArray[np.bool_] | None
    as_of: NDArray[np.int64] | None

    @classmethod
    def of(cls, parts: Sequence[Readings]) -> "JoinedReadings":
        """The readings of at least one part. The reorder buffer is on for all partitions or for none."""
        if len(parts) == 1:  # as below, without copies
            [part] = parts
            partitions = np.full(len(part), part.partition)
            columns = (part.names, part.codes, part.timestamp_us, part.values, part.offsets)
            return cls(partitions, *columns, part.traceparents, part.may_anchor, part.as_of)
        begins = accumulate((len(part.names) for part in parts), initial=0)
        with_readings = [part for part in parts if len(part)]  # without: outlooks alone
        traceparents: list[bytes | None] | None = None
        if any(part.traceparents is not None for part in parts):
            traceparents = [parent for part in parts for parent in part.traceparents or [None] * len(part)]
        return cls(
            np.repeat([part.partition for part in parts], [len(part) for part in parts]),
            [name for part in parts for name in part.names],
            np.concatenate([part.codes + begin for part, begin in zip(parts, begins, strict=False)]),
            np.concatenate([part.timestamp_us for part in parts]),
            np.concatenate([part.values for part in parts]),
            np.concatenate([part.offsets for part in parts]),
            traceparents,
            _joined_if_any([part.may_anchor for part in with_readings]),
            _joined_if_any([part.as_of for part in with_readings]),
        )


def _joined_if_any(arrays: Sequence[NDArray[Any] | None]) -> NDArray[Any] | None:
    present = [array for array in arrays if array is not None]
    assert len(present) in (0, len(arrays))
    return np.concatenate(present) if present else None


class DecodedRecords(NamedTuple):
    """The content of records of one partition."""

    readings: Readings
    rejected: list[tuple[Record, Rejected]]  # in offset order
    ignored_features: int  # values of features or covariates that the settings do not name
    implausible_times: list[ImplausibleTime]  # the rejected readings and outlooks whose time is implausible


def decode_records(
    decoder: RecordDecoder,
    features: int,
    partition: int,
    records: Sequence[Record],
    time_rules: TimeRules = (),
    outlook_decoder: OutlookDecoder | None = None,
) -> DecodedRecords:
    """Split records of one partition into readings, with ``features`` values each, and rejected records.

    A reading or outlook whose time is implausible by ``time_rules`` is rejected too.

    Args:
        outlook_decoder: decodes records that are not readings; None if there are no outlooks.
    """
    found = decode_readings(decoder, features, records)
    rejected: list[tuple[Record, Rejected]] = []
    outlooks: list[tuple[Record, Outlook]] = []
    for record, reason in found.others:
        outlook = decode_outlook(outlook_decoder, record, reason)
        if isinstance(outlook, Rejected):
            rejected.append((record, outlook))
        else:
            outlooks.append((record, outlook))
    readings = Readings(
        partition,
        found.names,
        found.codes,
        found.timestamp_us,
        found.values,
        found.select(offsets_of(records)),
        _traceparents(records, found.places),
    )
    implausible: list[ImplausibleTime] = []
    if time_rules:
        readings, implausible = _reject_implausible(readings, records, found.places, time_rules, rejected)
    ignored = found.ignored
    if outlooks:
        kept = _plausible_outlooks(partition, outlooks, time_rules, rejected, implausible)
        readings = replace(readings, outlooks=kept)
        ignored += sum(outlook.ignored for _, outlook in outlooks)
    return DecodedRecords(readings, rejected, ignored, implausible)


def _plausible_outlooks(
    partition: int,
    outlooks: Sequence[tuple[Record, Outlook]],
    rules: TimeRules,
    rejected: list[tuple[Record, Rejected]],
    implausible: list[ImplausibleTime],
) -> tuple[ReceivedOutlook, ...]:
    """The outlooks with plausible times of issue. The other ones are added to ``rejected`` and ``implausible``.

    An outlook that was issued in the future would make all later ones outdated.
    """
    sent_ms, offsets = (np.array([getattr(record, name) for record, _ in outlooks]) for name in ("timestamp", "offset"))
    issued_us = np.array([outlook.issued_us for _, outlook in outlooks])
    is_implausible = find_implausible(issued_us, sent_ms, offsets, rules).tolist()
    kept = []
    for (record, outlook), is_bad in zip(outlooks, is_implausible, strict=True):
        if is_bad:
            reason = reject_implausible(outlook.issued_us, record.timestamp, record.offset, rules, is_outlook=True)
            rejected.append((record, reason))
            implausible.append(ImplausibleTime(outlook.name, partition, record.offset, reason.detail, is_outlook=True))
        else:
            kept.append(ReceivedOutlook(record.offset, outlook))
    if len(kept) < len(outlooks):
        rejected.sort(key=lambda one: one[0].offset)
    return tuple(kept)


def _reject_implausible(
    readings: Readings,
    records: Sequence[Record],
    places: NDArray[np.intp],
    rules: TimeRules,
    rejected: list[tuple[Record, Rejected]],
) -> tuple[Readings, list[ImplausibleTime]]:
    """The readings with plausible times, and the other ones, which are also added to ``rejected``.

    Args:
        places: (n,) index of each reading's record.
    """
    is_implausible = find_implausible(readings.timestamp_us, timestamps_of(records)[places], readings.offsets, rules)
    bad = np.flatnonzero(is_implausible)
    if not len(bad):
        return readings, []
    found: list[ImplausibleTime] = []
    for reading, place in zip(bad.tolist(), places[bad].tolist(), strict=True):
        record = records[place]
        reason = reject_implausible(int(readings.timestamp_us[reading]), record.timestamp, record.offset, rules)
        rejected.append((record, reason))
        sensor = readings.names[readings.codes[reading]]
        found.append(ImplausibleTime(sensor, readings.partition, record.offset, reason.detail))
    rejected.sort(key=lambda one: one[0].offset)
    return readings.take(~is_implausible), found


def _traceparents(records: Sequence[Record], places: NDArray[np.intp]) -> list[bytes | None] | None:
    """The trace headers of the records at ``places``; None if no record has one."""
    found = {
        place: value for place in places_with_headers(records) if (value := _traceparent(records[place])) is not None
    }
    if not found:
        return None
    traceparents = [found.get(place) for place in places.tolist()]
    return traceparents if any(value is not None for value in traceparents) else None


def _traceparent(record: Record) -> bytes | None:
    value = next((value for name, value in record.headers or () if name == TRACEPARENT), None)
    return value if value is not None and len(value) <= LONGEST_TRACEPARENT_BYTES else None
