"""Decodes records of the readings topic into columns, one partition at a time.

The columns keep the order of offsets. Records that do not decode are returned separately, each with its reason.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, cast

import numpy as np
from numpy.typing import NDArray

from pipeline.kafka.record_batch import FetchedRecord
from pipeline.messages import Reading, Rejected
from pipeline.outlook_messages import Outlook, OutlookDecoder
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
    keys: list[bytes]  # the sensor ids in UTF-8
    sensors: list[str]
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

    def __len__(self) -> int:
        return len(self.keys)

    def take(self, mask: NDArray[np.bool_]) -> "Readings":
        """The readings where ``mask`` (n,) is true; the same object if it is true for all."""
        return self if mask.all() else self.pick(np.flatnonzero(mask))

    def pick(self, places: NDArray[np.intp]) -> "Readings":
        """The readings at ``places``, in that order. Not for accepted readings with ``may_anchor``."""
        assert self.may_anchor is None, "a selection of accepted readings would need new anchors"
        chosen = places.tolist()
        traceparents = self.traceparents
        return Readings(
            self.partition,
            [self.keys[index] for index in chosen],
            [self.sensors[index] for index in chosen],
            self.timestamp_us[places],
            self.values[places],
            self.offsets[places],
            None if traceparents is None else [traceparents[index] for index in chosen],
        )

    def followed_by(self, others: "Readings") -> "Readings":
        """These readings, then ``others`` of the same partition. Not for accepted readings with ``may_anchor``."""
        assert self.may_anchor is others.may_anchor is None, "accepted readings cannot be joined, only stepped"
        traceparents = None
        if self.traceparents is not None or others.traceparents is not None:
            traceparents = [*(self.traceparents or [None] * len(self)), *(others.traceparents or [None] * len(others))]
        return Readings(
            self.partition,
            self.keys + others.keys,
            self.sensors + others.sensors,
            np.concatenate([self.timestamp_us, others.timestamp_us]),
            np.concatenate([self.values, others.values]),
            np.concatenate([self.offsets, others.offsets]),
            traceparents,
        )

    def merged_with(self, others: "Readings") -> "Readings":
        """These readings and ``others`` of the same partition, in offset order."""
        both = self.followed_by(others)
        return both.pick(np.argsort(both.offsets)) if (np.diff(both.offsets) < 0).any() else both


@dataclass(frozen=True)
class DecodedRecords:
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
    decode = decoder.decode
    rejected: list[tuple[Record, Rejected]] = []
    outlooks: list[tuple[Record, Outlook]] = []
    found: list[Reading] = []
    others: set[int] = set()  # places of the records that are not readings
    for place, record in enumerate(records):
        try:
            found.append(decode(record.key, record.value, record.headers, record.timestamp))
        except Rejected as reason:
            others.add(place)
            outlook, why = _outlook(outlook_decoder, record, reason)
            if outlook is None:
                rejected.append((record, why))
            else:
                outlooks.append((record, outlook))
    good = [record for place, record in enumerate(records) if place not in others] if others else records
    count = len(found)
    keys = (
        [record.key for record in good] if decoder.is_keyed_by_sensor else [each.sensor_id.encode() for each in found]
    )
    readings = Readings(
        partition,
        cast("list[bytes]", keys),  # a decoder that is keyed by sensor rejects a null key
        [reading.sensor_id for reading in found],
        np.fromiter((reading.timestamp_us for reading in found), np.int64, count),
        np.array([reading.values for reading in found], np.float64).reshape(count, features),
        np.fromiter((record.offset for record in good), np.int64, count),
        _traceparents(good),
    )
    implausible: list[ImplausibleTime] = []
    if time_rules:
        readings, implausible = _reject_implausible(readings, good, time_rules, rejected)
    ignored = sum(reading.ignored for reading in found)
    if outlooks:
        kept = _plausible_outlooks(partition, outlooks, time_rules, rejected, implausible)
        readings = replace(readings, outlooks=kept)
        ignored += sum(outlook.ignored for _, outlook in outlooks)
    return DecodedRecords(readings, rejected, ignored, implausible)


def _outlook(decoder: OutlookDecoder | None, record: Record, reason: Rejected) -> tuple[Outlook | None, Rejected]:
    """The outlook in a record that is not a reading, or None and the reason of the record's rejection."""
    if decoder is None:
        return None, reason
    try:
        return decoder.decode(record.key, record.value, record.headers, reason), reason
    except Rejected as invalid:
        return None, invalid


def _plausible_outlooks(
    partition: int,
    outlooks: Sequence[tuple[Record, Outlook]],
    rules: TimeRules,
    rejected: list[tuple[Record, Rejected]],
    implausible: list[ImplausibleTime],
) -> tuple[ReceivedOutlook, ...]:
    """The outlooks with plausible times of issue. The other ones are added to the lists, as readings are.

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
    readings: Readings, records: Sequence[Record], rules: TimeRules, rejected: list[tuple[Record, Rejected]]
) -> tuple[Readings, list[ImplausibleTime]]:
    """The readings with plausible times, and the other ones, which are also added to ``rejected``."""
    sent_ms = np.fromiter((record.timestamp for record in records), np.int64, len(records))
    is_implausible = find_implausible(readings.timestamp_us, sent_ms, readings.offsets, rules)
    places = np.flatnonzero(is_implausible)
    if not len(places):
        return readings, []
    found: list[ImplausibleTime] = []
    for place, timestamp_us in zip(places.tolist(), readings.timestamp_us[places].tolist(), strict=True):
        record = records[place]
        reason = reject_implausible(timestamp_us, record.timestamp, record.offset, rules)
        rejected.append((record, reason))
        found.append(ImplausibleTime(readings.sensors[place], readings.partition, record.offset, reason.detail))
    rejected.sort(key=lambda one: one[0].offset)
    return readings.take(~is_implausible), found


def _traceparents(records: Sequence[Record]) -> list[bytes | None] | None:
    if not any(record.headers for record in records):
        return None
    found = [_traceparent(record) for record in records]
    return found if any(value is not None for value in found) else None


def _traceparent(record: Record) -> bytes | None:
    value = next((value for name, value in record.headers or () if name == TRACEPARENT), None)
    return value if value is not None and len(value) <= LONGEST_TRACEPARENT_BYTES else None
