"""Records are decoded into columns of readings."""

from collections import namedtuple
from dataclasses import replace

import numpy as np
import pytest

from pipeline.forecaster.readings import decode_records
from pipeline.messages import ReadingDecoder, encode_reading

Record = namedtuple("Record", ["key", "value", "offset", "headers", "timestamp"], defaults=[0])
DECODER = ReadingDecoder(("a", "b"))


def record(offset: int, sensor: str = "s", headers: object = (), **values: float | None) -> Record:
    key, value = encode_reading(sensor, offset * 1_000_000, dict(values))
    return Record(key, value, offset, headers)


def test_columns_follow_the_offsets() -> None:
    decoded = decode_records(DECODER, 2, 4, [record(3, "x", a=1.0), record(5, "y", b=2.0, c=9.0)])
    readings = decoded.readings
    assert (readings.partition, readings.sensors) == (4, ["x", "y"])
    assert readings.offsets.tolist() == [3, 5]
    assert readings.timestamp_us.tolist() == [3_000_000, 5_000_000]
    np.testing.assert_array_equal(readings.values, [[1.0, np.nan], [np.nan, 2.0]])
    assert readings.traceparents is None
    assert decoded.ignored_features == 1
    assert not decoded.rejected


def test_a_rejected_record_is_returned_beside_the_readings() -> None:
    bad = Record(b"s", b"{", 4, ())
    decoded = decode_records(DECODER, 2, 0, [record(3, a=1.0), bad, record(5, a=2.0)])
    assert decoded.readings.offsets.tolist() == [3, 5]
    assert [(found, reason.reason) for found, reason in decoded.rejected] == [(bad, "malformed")]


def test_records_that_are_all_rejected_leave_empty_columns() -> None:
    decoded = decode_records(DECODER, 2, 0, [Record(None, None, 4, ())])
    assert len(decoded.readings) == 0
    assert decoded.readings.values.shape == (0, 2)


def test_a_mask_selects_rows_of_all_columns() -> None:
    records = [record(1, a=1.0), record(2, a=2.0, headers=[("traceparent", b"t")]), record(3, a=3.0)]
    readings = decode_records(DECODER, 2, 0, records).readings
    assert readings.traceparents == [None, b"t", None]
    taken = readings.take(np.array([False, True, True]))
    assert taken.offsets.tolist() == [2, 3]
    assert taken.sensors == ["s", "s"]
    assert taken.traceparents == [b"t", None]
    assert taken.values[:, 0].tolist() == [2.0, 3.0]
    assert readings.take(np.ones(3, bool)) is readings


def test_an_oversized_traceparent_is_ignored() -> None:
    long = record(1, a=1.0, headers=[("traceparent", b"t" * 257)])
    assert decode_records(DECODER, 2, 0, [long]).readings.traceparents is None
    fits = record(2, a=1.0, headers=[("traceparent", b"t" * 256)])
    assert decode_records(DECODER, 2, 0, [long, fits]).readings.traceparents == [None, b"t" * 256]


def test_joined_and_picked_readings_keep_their_columns_together() -> None:
    buffered = decode_records(DECODER, 2, 0, [record(1, "x", a=1.0), record(2, "y", a=2.0)]).readings
    new = decode_records(DECODER, 2, 0, [record(7, "z", a=7.0, headers=[("traceparent", b"t")])]).readings
    picked = buffered.followed_by(new).pick(np.array([2, 0, 1]))
    assert picked.offsets.tolist() == [7, 1, 2]
    assert picked.sensors == ["z", "x", "y"]
    assert picked.timestamp_us.tolist() == [7_000_000, 1_000_000, 2_000_000]
    assert picked.values[:, 0].tolist() == [7.0, 1.0, 2.0]
    assert picked.traceparents == [b"t", None, None]


def test_picking_from_accepted_readings_raises() -> None:
    """``may_anchor`` holds only for the readings that were classified together."""
    new = decode_records(DECODER, 2, 0, [record(1, a=1.0), record(2, a=2.0)]).readings
    accepted = replace(new, may_anchor=np.array([True, False]))
    for pick in (
        lambda: accepted.pick(np.array([1])),
        lambda: accepted.followed_by(new),
        lambda: new.followed_by(accepted),
    ):
        with pytest.raises(AssertionError):
            pick()
    assert accepted.take(np.ones(2, bool)) is accepted


def test_readings_are_merged_in_the_order_of_their_offsets() -> None:
    first, second, third = (decode_records(DECODER, 2, 0, [record(number, a=1.0)]).readings for number in (1, 2, 3))
    assert first.followed_by(third).merged_with(second).offsets.tolist() == [1, 2, 3]
    assert first.merged_with(second).merged_with(third.pick(np.empty(0, np.intp))).offsets.tolist() == [1, 2]
