"""A time that is spelled alike has one verdict on the stream and in a file."""

import random
from datetime import UTC, datetime, timedelta, timezone

import msgspec
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import DataFileError
from pipeline.files.file_times import convert_times
from pipeline.files.time_column import TimeColumn, TimeOptions
from pipeline.iso_times import iso_microseconds
from pipeline.messages import ReadingDecoder, Rejected, microseconds

DECODER = ReadingDecoder(("x",))
DATES = ("2024-03-01", "20240301", "2024-02-30", "2024-3-1", "2024/03/01", "2016-12-31", "2016-06-30", "0000-01-01")
JOINTS = ("T", " ", "t", "  ", "_", "")
CLOCKS = (
    *("12:00:00", "12:00", "12", "120000", "1200", "24:00:00", "24:00:01", "23:59:60", "12:00:60", "23:59:60.5"),
    *("12:00:00.1", "12:00:00,1", "12:00:00.123456789", "12:00:00.9999999", "12:00:00.", "25:00", "12:60", "1:00"),
)
ZONES = (
    "Z",
    "z",
    " Z",
    "UTC",
    " UTC",
    "+00",
    "+0000",
    "+00:00",
    "-00:00",
    "+01",
    "-0800",
    "+05:45",
    "+24:00",
    "+1",
    "",
)


def on_the_stream(text: str) -> int | None:
    value = msgspec.json.encode({"sensor_id": "a", "timestamp": text, "values": {"x": 1.0}})
    try:
        return DECODER.decode(b"a", value).timestamp_us
    except Rejected:
        return None


def in_a_file(text: str) -> int | None:
    column = TimeColumn("when", "a.csv", pl.Series([text]), str)
    try:
        return int(convert_times(column, pl.Series(["a"]), TimeOptions())[0])
    except DataFileError:
        return None


@pytest.mark.parametrize("date", DATES)
def test_spellings_have_the_same_verdict_on_the_stream_and_in_a_file(date: str) -> None:
    chance = random.Random(date)
    spellings = [date + joint + clock + zone for joint in JOINTS for clock in CLOCKS for zone in ZONES]
    for text in chance.sample(spellings, 250):
        stream, file = on_the_stream(text), in_a_file(text)
        # A file may have other spellings, too: 2024/03/01, 1:00 and a date and a clock with _ between them.
        is_iso = (
            date[4:5] != "/" and date != "2024-3-1" and "_" not in text and not ("1:00" in text and "01:00" not in text)
        )
        assert stream == file or (stream is None and not is_iso), text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2016-12-31T23:59:60Z", "2017-01-01T00:00:00"),
        ("2017-01-01T00:59:60.25+01:00", "2017-01-01T00:00:00.250000"),
        ("2024-03-01T24:00Z", "2024-03-02T00:00:00"),
        ("2024-03-01T12:00:00+00", "2024-03-01T12:00:00"),
        ("20240301T120000.5-0130", "2024-03-01T13:30:00.500000"),
        ("2024-03-01T12:00:00.1234565Z", "2024-03-01T12:00:00.123457"),
        ("2024-03-01T12:00:60Z", None),
        ("2024-03-15T23:59:60Z", None),
        ("2024-03-01T12:00:00", None),
        ("2024-02-30T12:00:00Z", None),
        ("2024-0301T12:00:00Z", None),
    ],
)
def test_rare_spellings_of_iso_8601_are_read_or_refused_alike(text: str, expected: str | None) -> None:
    moment = None if expected is None else microseconds(datetime.fromisoformat(expected).replace(tzinfo=UTC))
    assert iso_microseconds(text) == on_the_stream(text) == in_a_file(text) == moment


@given(
    moment=st.datetimes(datetime(1901, 1, 1), datetime(2199, 12, 30)),  # noqa: DTZ001
    minutes=st.integers(-14 * 60, 14 * 60),
    digits=st.text("0123456789", max_size=9),
    joint=st.sampled_from("T t"),
    colon=st.sampled_from(["", ":"]),
)
def test_times_with_any_offset_and_fraction_are_read_alike(
    moment: datetime, minutes: int, digits: str, joint: str, colon: str
) -> None:
    zoned = moment.replace(microsecond=0, tzinfo=timezone(timedelta(minutes=minutes)))
    sign, (hours, rest) = "-" if minutes < 0 else "+", divmod(abs(minutes), 60)
    fraction = f".{digits}" if digits else ""
    text = f"{zoned:%Y-%m-%d}{joint}{zoned:%H:%M:%S}{fraction}{sign}{hours:02}{colon}{rest:02}"
    expected = microseconds(zoned) + (int(digits.ljust(9, "0")) + 500) // 1_000
    assert on_the_stream(text) == in_a_file(text) == iso_microseconds(text) == expected


@pytest.mark.parametrize("text", ["2013-03-01T00:00:00", "yesterday", "1362096000000", "2013-W09-5T00:00:00Z"])
def test_the_dead_letter_of_an_unreadable_time_says_the_form(text: str) -> None:
    value = msgspec.json.encode({"sensor_id": "a", "timestamp": text, "values": {"x": 1.0}})
    with pytest.raises(Rejected, match="ISO 8601 with a timezone") as raised:
        DECODER.decode(b"a", value)
    assert raised.value.reason == "malformed"
    assert text in raised.value.detail


def test_a_fraction_of_any_length_is_read_alike_on_the_stream_and_in_a_file() -> None:
    for digits in ("3" * 300, "1234565" + "0" * 300, "9" * 80):
        text = f"2024-03-01T12:00:00.{digits}Z"
        column = TimeColumn("when", "a.csv", pl.Series([text]), str)
        assert convert_times(column, pl.Series(["a"]), TimeOptions()).to_list() == [iso_microseconds(text)]
