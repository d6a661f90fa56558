"""Records of the readings topic turned into columns, one partition at a time.

The columns keep the order of offsets. What is no reading goes beside them with its reason, nothing is dropped here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, cast

import numpy as np
from numpy.typing import NDArray

from pipeline.kafka.batch_consumer import FetchedRecord
from pipeline.messages import Reading, ReadingDecoder, Rejected

Record = FetchedRecord

TRACEPARENT: Final = "traceparent"
# W3C's has 55 bytes, and later versions may add to it; a longer one is none, and would be repeated in a forecast.
LONGEST_TRACEPARENT_BYTES: Final = 256


@dataclass(frozen=True)
class Readings:
    """n readings of one partition, in the order of their offsets; accepted ones in the order of their steps."""

    partition: int
    keys: list[bytes]  # the sensor ids in UTF-8
    sensors: list[str]
    timestamp_us: NDArray[np.int64]  # (n,)
    values: NDArray[np.float64]  # (n, F), NaN where missing
    offsets: NDArray[np.int64]  # (n,)
    traceparents: list[bytes | None] | None = None  # none of the readings has one: None
    may_anchor: NDArray[np.bool_] | None = (
        None  # (n,) of accepted ones, see ``model.reorder_buffer.ReleasedReading``; None: all
    )

    def __len__(self) -> int:
        return len(self.keys)

    def take(self, mask: NDArray[np.bool_]) -> "Readings":
        """Those where ``mask`` (n,) is true; itself where all are."""
        return self if mask.all() else self.pick(np.flatnonzero(mask))

    def pick(self, places: NDArray[np.intp]) -> "Readings":
        """Those at ``places``, in that order; none of them stepped so far."""
        assert self.may_anchor is None, "what is picked of accepted readings may begin no replay"
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
        """These and then others of the same partition; none of them stepped so far."""
        assert self.may_anchor is None, "`begins` belongs to one acceptance check"
        assert others.may_anchor is None, "`begins` belongs to one acceptance check"
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
        """These and others of the same partition, in the order of their offsets."""
        both = self.followed_by(others)
        return both.pick(np.argsort(both.offsets)) if (np.diff(both.offsets) < 0).any() else both


@dataclass(frozen=True)
class DecodedRecords:
    """What a run of records of one partition holds."""

    readings: Readings
    rejected: list[tuple[Record, Rejected]]
    ignored_features: int  # in the readings, features that the settings do not name


def decode_records(decoder: ReadingDecoder, features: int, partition: int, records: Sequence[Record]) -> DecodedRecords:
    """The readings in records of one partition, and what is none. ``features`` is how many the decoder picks (F)."""
    decode = decoder.decode
    rejected: list[tuple[Record, Rejected]] = []
    found: list[Reading]
    try:
        found = [decode(record.key, record.value) for record in records]
        good = records
    except Rejected:
        found, good = [], []
        for record in records:
            try:
                found.append(decode(record.key, record.value))
            except Rejected as reason:
                rejected.append((record, reason))
            else:
                good.append(record)
    count = len(found)
    readings = Readings(
        partition,
        cast("list[bytes]", [record.key for record in good]),  # the decoder rejects a null key
        [reading.sensor_id for reading in found],
        np.fromiter((reading.timestamp_us for reading in found), np.int64, count),
        np.array([reading.values for reading in found], np.float64).reshape(count, features),
        np.fromiter((record.offset for record in good), np.int64, count),
        _traceparents(good),
    )
    return DecodedRecords(readings, rejected, sum(reading.ignored for reading in found))


def _traceparents(records: Sequence[Record]) -> list[bytes | None] | None:
    if not any(record.headers for record in records):
        return None
    found = [_traceparent(record) for record in records]
    return found if any(value is not None for value in found) else None


def _traceparent(record: Record) -> bytes | None:
    value = next((value for name, value in record.headers or () if name == TRACEPARENT), None)
    return value if value is not None and len(value) <= LONGEST_TRACEPARENT_BYTES else None
