"""Times in files: each spelling has one reading, or an error names the line and the option."""

from datetime import UTC, date, datetime, timedelta
from datetime import time as dt_time
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import DataFileError
from pipeline.files.file_times import convert_times, read_times
from pipeline.files.time_column import TimeColumn, TimeOptions
from pipeline.messages import EARLIEST_TIMESTAMP_US, LATEST_TIMESTAMP_US, iso_timestamp, microseconds

NOW_US = microseconds(datetime(2026, 11, 30, tzinfo=UTC))
NOON = "2024-03-01T12:00:00Z"


def column(cells: Any) -> TimeColumn:
    series = cells if isinstance(cells, pl.Series) else pl.Series("when", cells)
    return TimeColumn("when", "a.csv", series, lambda row: f"a.csv, line {row + 2}")


def read(
    cells: Any, timezone: str | None = None, sensors: str | None = None, **options: Any
) -> tuple[list[str], list[str]]:
    """The times in ISO 8601, and the guesses with their options; ``sensors`` has a letter per row."""
    times = column(cells)
    ids = pl.Series(list(sensors or "a" * len(times.cells)))
    found = convert_times(times, ids, TimeOptions(timezone, now_us=NOW_US, **options))
    assert found.dtype == pl.Int64
    guesses = [*times.guesses.sentences, times.guesses.command] if times.guesses.sentences else []
    return [iso_timestamp(us) for us in found], [*guesses, *times.notes]


def complaint(cells: Any, timezone: str | None = "UTC", sensors: str | None = None, **options: Any) -> str:
    with pytest.raises(DataFileError) as raised:
        read(cells, timezone, sensors, **options)
    return str(raised.value)


# --- text -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        *("2024-03-01T12:00:00Z", "2024-03-01 12:00:00 UTC", "2024-03-01 12:00 GMT", "2024-03-01T12Z"),
        *("2024-03-01T12:00:00+00", "2024-03-01T12:00:00+0000", "2024-03-01T12:00:00-00:00", "20240301T120000Z"),
        *("2024-03-01 13:00:00 +01:00", "2024-03-01T13:00:00+01:00[Europe/Berlin]", "2024-03-01 13:00 UTC+1"),
        *("2024-03-01 13:00:00 CET", "2024-03-01 12:00 GMT", "2024-03-01 13:00 Europe/Berlin", "2024-03-01 07:00 EST"),
        *("2024/03/01 12:00", "2024-3-1 12:00", "2024.03.01 12.00.00", "2024-03-01 12:00:00,000", "2024-03-01 12h00"),
        *("2024-03-01 12:00 PM", "2024-03-01 12:00:00 p.m.", "01.03.2024 12:00", "1.3.2024 12.00.00"),
        *("01-Mar-2024 12:00", "1 March 2024 12:00", "Mar 1, 2024 12:00 PM", "2024-Mar-01 12:00"),
        *("Fri, 01 Mar 2024 12:00:00 GMT", "Fri Mar  1 12:00:00 2024", "01/Mar/2024:12:00:00 +0000"),
        *("20240301 1200", "2024-03-01\u00a012:00", " 2024-03-01 12:00 "),
    ],
)
def test_one_moment_is_read_from_many_spellings(text: str) -> None:
    assert read([text], "UTC")[0] == [NOON]


def test_a_date_is_midnight_and_24_00_is_midnight_of_the_next_day() -> None:
    assert read(["2024-02-29", "2024-02-29 24:00"], "UTC")[0] == ["2024-02-29T00:00:00Z", "2024-03-01T00:00:00Z"]
    assert "line 2: '2024-02-29 24:01' in column when does not exist" in complaint(["2024-02-29 24:01"])


@pytest.mark.parametrize(
    ("clock", "hour"), [("12:30 AM", 0), ("1:30 am", 1), ("11:30 a.m.", 11), ("12:30 PM", 12), ("11:30 PM", 23)]
)
def test_the_clock_of_twelve_hours_is_read(clock: str, hour: int) -> None:
    assert read([f"2024-03-01 {clock}"], "UTC")[0] == [f"2024-03-01T{hour:02}:30:00Z"]
    assert read([clock + " 01.03.2024"], "UTC", time_format="%I:%M %p %d.%m.%Y")[0] == [f"2024-03-01T{hour:02}:30:00Z"]


def test_the_order_of_day_and_month_is_decided_by_all_rows() -> None:
    times, notes = read(["01/03/2024 00:00", "13/03/2024 6:30"], "UTC")
    assert times == ["2024-03-01T00:00:00Z", "2024-03-13T06:30:00Z"]
    assert notes == ["dates in when are day/month/year", "--time-format '%d/%m/%Y %H:%M'"]
    times, notes = read(["1/1/2010 0:00", "1/13/2010 0:00"], "UTC")
    assert times == ["2010-01-01T00:00:00Z", "2010-01-13T00:00:00Z"]
    assert notes == ["dates in when are month/day/year", "--time-format '%m/%d/%Y %H:%M'"]
    assert read(["01/01/2024", "02/02/2024"], "UTC") == (["2024-01-01T00:00:00Z", "2024-02-02T00:00:00Z"], [])


def test_dates_with_short_years_need_no_leading_zeros() -> None:
    cells = ["1/3/24 0:00", "1/13/24 0:00", "12/1/24 13:30"]
    expected = ["2024-01-03T00:00:00Z", "2024-01-13T00:00:00Z", "2024-12-01T13:30:00Z"]
    times, notes = read(cells, "UTC")
    assert times == expected
    assert read(cells, "UTC", time_format=notes[1].removeprefix("--time-format ").strip("'"))[0] == expected
    assert read(cells, "UTC", time_format="month-first")[0] == expected
    assert read(["1.3.24", "13.3.24"], "UTC")[0] == ["2024-03-01T00:00:00Z", "2024-03-13T00:00:00Z"]
    assert read(["1.3.24"], "UTC", time_format="month-first")[0] == ["2024-01-03T00:00:00Z"]
    assert "can be read as day/month/year and month/day/year;" in complaint(["1/3/24", "2/3/24"])


def test_an_open_order_of_day_and_month_is_refused_with_both_options() -> None:
    message = complaint(["01/03/2024 00:00", "02/03/2024 00:00"])
    assert "line 2: '01/03/2024 00:00' in column when and all other rows can be read as day/month/year and" in message
    assert "--time-format '%d/%m/%Y %H:%M' or --time-format '%m/%d/%Y %H:%M'" in message
    assert read(["01/03/2024"], "UTC", time_format="day-first")[0] == ["2024-03-01T00:00:00Z"]
    assert read(["01/03/2024"], "UTC", time_format="month-first")[0] == ["2024-01-03T00:00:00Z"]
    assert read(["01/03/2024 0:00"], "UTC", time_format="%m/%d/%Y %H:%M")[0] == ["2024-01-03T00:00:00Z"]
    assert "can be read as day/month/year and month/day/year and year/month/day" in complaint(["01/03/04"])


def test_dates_of_both_orders_are_refused_with_a_line_of_each() -> None:
    message = complaint(["01/01/2024", "01/13/2024", "13/01/2024"])
    assert "line 3: '01/13/2024' in column when is only possible as month/day/year" in message
    assert "'13/01/2024' in line 4 only as day/month/year" in message
    assert "line 4: '31/02/2024' in column when does not exist" in complaint(["01/03/2024", "13/03/2024", "31/02/2024"])


@pytest.mark.parametrize(
    ("cell", "problem"),
    [
        ("2024-02-30", "does not exist"),
        ("2024-03-01 25:00", "does not exist"),
        ("2024-03-01 13:00 PM", "does not exist"),
        ("2024-03-01T00:00:00+25:00", "does not exist"),
        ("0000-01-01", "does not exist"),
        ("9999-12-31", "lies outside the years 1900 to 2199"),
        ("1899-12-31", "lies outside the years 1900 to 2199"),
        ("12:00 PM", "is not a time like"),
        ("NaN", "is not a time like"),
        ("01/03-2024", "is not a time like"),
        ("99999999999999999999", "far future as nanoseconds"),
        ("2024-W09-5", "--time-format '%G-W%V-%u'"),
        ("2024W09", "--time-format '%GW%V'"),
        ("2024-061", "--time-format '%Y-%j'"),
        ("2024-03-01 12:00 CST", "several zones use (UTC-6, UTC-5, UTC+8); name the zone: --timezone"),
        ("2024-03-01 12:00 QQQ", "ends in 'QQQ', which is not the name of a time zone"),
        ("2024-03-01T12:00:60Z", "leap seconds only end a month of UTC"),
        ("x" * 10_000, "is not a time like"),
        ("٢٠٢٤-03-01", "is not a time like"),
    ],
)
def test_a_cell_that_is_not_a_time_is_named_with_its_line_and_value(cell: str, problem: str) -> None:
    message = complaint([cell])
    assert message.startswith(f"a.csv, line 2: '{cell[:20]}")
    assert problem in message
    assert len(message) < 500


def test_the_first_row_of_another_form_is_named() -> None:
    good = [f"2024-03-01 {hour:02}:00" for hour in range(24)]
    assert "line 26: 'noon' in column when is not a time like '2024-03-01 00:00' in line 2" in complaint(
        [*good, "noon"]
    )
    assert "line 26: '01/03/2024' in column when is not a time like" in complaint([*good, "01/03/2024"])
    assert "line 2: '2024-03-01' in column when has no zone, but line 3 has one" in complaint(["2024-03-01", NOON])
    assert "line 3: column when is empty; every row needs a time" in complaint(["2024-03-01", "  "])
    assert "its times have no zone ('2024-03-01'); name it: --timezone" in complaint(["2024-03-01"], None)


def test_abbreviations_of_zones_are_taken_if_one_offset_is_possible() -> None:
    times, notes = read(["2024-07-01 12:00 CEST", "2024-12-01 12:00 CET"], None)
    assert times == ["2024-07-01T10:00:00Z", "2024-12-01T11:00:00Z"]
    assert sorted(notes) == ["CEST in column when is UTC+2 in every row", "CET in column when is UTC+1 in every row"]
    assert read(["2024-03-01 06:00 CST"], "America/Chicago")[0] == [NOON]
    assert read(["2024-03-01 20:00 CST"], "Asia/Shanghai")[0] == [NOON]
    doubled = ["2024-10-27 02:30 CET", "2024-10-27 02:30 CEST"]
    assert read(doubled, "Europe/Berlin")[0] == ["2024-10-27T01:30:00Z", "2024-10-27T00:30:00Z"]


# --- patterns ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("time_format", "cell", "expected"),
    [
        ("%d/%m/%Y %H.%M.%S", "01/03/2024 12.00.00", NOON),
        ("%Y%m%d%H", "2024030112", NOON),
        ("%Y-%m-%dT%H:00:00Z", "2024-03-01T12:00:00Z", NOON),
        ("%Y-%m-%d %H:%M:%S%z", "2024-03-01 13:00:00+0100", NOON),
        ("%Y-%m-%d %H:%M %Z", "2024-03-01 13:00 CET", NOON),
        ("%d. %B %Y %I %p", "1. march 2024 12 PM", NOON),
        ("%G-W%V-%u %H", "2024-W09-5 12", NOON),
        ("%Y-%j %T", "2024-061 12:00:00", NOON),
        ("%F %R", "2024-03-01 12:00", NOON),
        ("%Y-%m-%d %H:%M:%S%.f", "2024-03-01 12:00:00.25", "2024-03-01T12:00:00.250000Z"),
        ("%Y-%m-%d %H:%M:%S.%f", "2024-03-01 12:00:00.25", "2024-03-01T12:00:00.250000Z"),
        ("%Y", "2024", "2024-01-01T00:00:00Z"),
    ],
)
def test_a_strptime_pattern_is_read_as_in_other_tools(time_format: str, cell: str, expected: str) -> None:
    assert read([cell], "UTC", time_format=time_format)[0] == [expected]


@given(
    moment=st.datetimes(datetime(1900, 1, 1), datetime(2199, 12, 31)),  # noqa: DTZ001
    time_format=st.sampled_from(
        [
            "%Y-%m-%d %H:%M:%S.%f",
            "%d.%m.%Y %H:%M",
            "%m/%d/%Y %I:%M:%S %p",
            "%d-%b-%Y %H:%M:%S",
            "%Y%m%d%H%M%S",
            "%A, %d %B %Y %H",
            "%G-W%V-%u",
            "%Y-%j",
        ]
    ),
)
def test_a_pattern_reads_as_the_strptime_of_python(moment: datetime, time_format: str) -> None:
    text = moment.strftime(time_format)
    expected = iso_timestamp(microseconds(datetime.strptime(text, time_format).replace(tzinfo=UTC)))
    assert read([text], "UTC", time_format=time_format)[0] == [expected]


@pytest.mark.parametrize(
    ("time_format", "problem"),
    [
        ("%d/%m", "has no year"),
        ("%Y-%q", "unknown directive %q"),
        ("%Y %", "a % without a directive"),
        ("%Y-%m-%d %Y", "gives a part of the time twice"),
        ("epoch", "has no year"),
        ("%Y-%m-%d", "line 2: 'soon' in column when does not fit --time-format '%Y-%m-%d'"),
        ("epoch_s", "line 2: 'soon' in column when is not a number"),
    ],
)
def test_a_wrong_pattern_is_refused(time_format: str, problem: str) -> None:
    assert problem in complaint(["soon"], time_format=time_format)


# --- numbers ----------------------------------------------------------------------------------------------------------


def hours(pattern: str, count: int = 48, start: datetime = datetime(2024, 3, 1, tzinfo=UTC)) -> list[str]:
    return [(start + timedelta(hours=hour)).strftime(pattern) for hour in range(count)]


@pytest.mark.parametrize("kind", [pl.String, pl.Int64, pl.Float64])
@pytest.mark.parametrize(
    "pattern", ["%Y%m%d%H", "%Y%m%d%H%M", "%Y%m%d%H%M%S", "%y%m%d%H%M", "%y%m%d%H%M%S", "%d%m%Y%H"]
)
def test_digits_of_calendar_times_are_recognised_and_said(pattern: str, kind: Any) -> None:
    cells = pl.Series("when", hours(pattern, 400)).cast(kind)
    times, notes = read(cells, "UTC")
    assert times[:2] == ["2024-03-01T00:00:00Z", "2024-03-01T01:00:00Z"]
    assert times[-1] == "2024-03-17T15:00:00Z"
    assert notes == ["the digits in when are calendar times", f"--time-format {pattern}"]
    assert read(cells, "UTC", time_format=pattern)[0] == times


@pytest.mark.parametrize("spelling", ["{}.0", "+{}", "{}.", "{:.12e}"])
def test_digits_of_calendar_times_may_have_a_sign_or_decimals(spelling: str) -> None:
    digits = [int(text) for text in hours("%Y%m%d%H%M")]
    cells = [spelling.format(float(number) if "e" in spelling else number) for number in digits]
    times, notes = read(cells, "UTC")
    assert (times[0], times[-1]) == ("2024-03-01T00:00:00Z", "2024-03-02T23:00:00Z")
    assert notes[1] == "--time-format %Y%m%d%H%M"
    assert read(cells, "UTC", time_format="%Y%m%d%H%M")[0] == times


def test_digits_without_the_leading_zero_of_the_day_are_calendar_times() -> None:
    digits = [f"{day}0320240000" for day in range(1, 20)]
    for cells in (digits, [int(text) for text in digits]):
        times, notes = read(cells, "UTC")
        assert (times[0], times[-1]) == ("2024-03-01T00:00:00Z", "2024-03-19T00:00:00Z")
        assert read(cells, "UTC", time_format=notes[1].removeprefix("--time-format "))[0] == times


@pytest.mark.parametrize("time_format", [None, "%Y%m%d%H%M"])
def test_numbers_whose_last_digits_a_spreadsheet_cut_off_are_refused(time_format: str | None) -> None:
    message = complaint(["2.0240301E+11", "2.0240301E+11"], time_format=time_format)
    assert "line 2: '2.0240301E+11' in column when has an exponent, and its last digits are cut off" in message


def test_numbers_that_would_be_times_before_1990_need_their_unit() -> None:
    for cells in (["20240301", "202403010100"], ["202403010000.5"], [315532800, 315536400]):
        message = complaint(cells)
        assert f"line 2: {cells[0]!r} in column when would be a time of 19" in message
        assert "--time-format epoch_s" in message
    assert read([315532800, 315536400], time_format="epoch_s")[0][0] == "1980-01-01T00:00:00Z"


def test_months_and_days_of_six_digits_are_told_apart_or_refused() -> None:
    months = [100 * year + month for year in range(2001, 2013) for month in range(1, 13)]
    times, notes = read(months, "UTC")
    assert (times[0], times[-1]) == ("2001-01-01T00:00:00Z", "2012-12-01T00:00:00Z")
    assert notes[1] == "--time-format %Y%m"
    for open_digits in (months[-12:], [201201, 201202, 201204]):
        assert "--time-format '%Y%m' or --time-format '%y%m%d'" in complaint(open_digits)
        assert read(open_digits, "UTC", time_format="%Y%m")[0][1] == "2012-02-01T00:00:00Z"


def test_digits_of_days_and_months_are_recognised() -> None:
    assert read([20240301, 20240302], "UTC")[0] == ["2024-03-01T00:00:00Z", "2024-03-02T00:00:00Z"]
    assert read(["202403", "202404"], "UTC")[0] == ["2024-03-01T00:00:00Z", "2024-04-01T00:00:00Z"]
    assert read(["240301"], "UTC")[0] == ["2024-03-01T00:00:00Z"]
    assert read([2024030124], "UTC")[0] == ["2024-03-02T00:00:00Z"]
    assert "--time-format '%Y%m' or --time-format '%y%m%d'" in complaint([201012])
    assert "its times have no zone (2024030100)" in complaint([2024030100], None)


@pytest.mark.parametrize(
    ("unit", "factor"), [("epoch_s", 1), ("epoch_ms", 1_000), ("epoch_us", 1_000_000), ("epoch_ns", 1_000_000_000)]
)
def test_numbers_since_1970_are_recognised_by_their_size(unit: str, factor: int) -> None:
    numbers = [(1_709_251_200 + 3_600 * hour) * factor for hour in range(100)]
    for cells in (numbers, [str(number) for number in numbers]):
        times, notes = read(cells)
        assert (times[0], times[-1]) == ("2024-03-01T00:00:00Z", "2024-03-05T03:00:00Z")
        assert notes[1] == f"--time-format {unit}"
        assert read(cells, time_format=unit)[0] == times


def test_decimals_since_1970_keep_their_fractions() -> None:
    expected = ["2024-03-01T00:00:00.500000Z", "2024-03-01T00:00:01Z"]
    assert read([1709251200.5, 1709251201.0])[0] == expected
    assert read(["1709251200.5", "1709251201.0"])[0] == expected
    assert read(["1709251200,5", "1709251201"])[0] == expected
    assert read([1709251200500.0, 1709251201000.25])[0][0] == expected[0]
    assert read(["1.7092512005e9", "1.709251201E9"])[0] == expected
    assert "line 3: nan in column when is not a time" in complaint([1709251200.5, float("nan")])


def test_a_change_of_the_unit_is_refused_with_its_line() -> None:
    seconds = [1_709_251_200 + 3_600 * hour for hour in range(5)]
    message = complaint([*seconds, 1_709_269_200_000], None)
    assert "line 7: 1709269200000 in column when has another magnitude than 1709251200 in line 2" in message
    assert "(seconds since 1970 and milliseconds since 1970)" in message
    assert "--time-format epoch_s" in message
    assert "line 7: 0 in column when has another magnitude" in complaint([*seconds, 0], None)
    assert "line 7: 20240301 in column when" in complaint([*map(int, hours("%Y%m%d%H", 5)), 20240301])


def test_a_series_in_one_unit_may_run_through_1970() -> None:
    first = -631_152_000  # 1950
    times, _ = read(list(range(first, 1_700_000_000, 30 * 86_400)))
    assert times[0] == "1950-01-01T00:00:00Z"


def test_digits_with_two_readings_are_refused_with_both_options() -> None:
    message = complaint([1503010000, 1503010100, 1503010200])
    assert "line 2: 1503010000 in column when and all other rows have more than one reading" in message
    assert "--time-format '%y%m%d%H%M' or --time-format epoch_s" in message
    several_days = [int(text) for text in hours("%y%m%d%H%M", start=datetime(2015, 3, 1, tzinfo=UTC))]
    assert read(several_days, "UTC")[0][-1] == "2015-03-02T23:00:00Z"
    assert read([1_709_251_200 + second for second in range(100)])[0][-1] == "2024-03-01T00:01:39Z"


def test_digits_that_miss_the_calendar_in_one_row_are_not_read_as_seconds() -> None:
    assert "line 4: 2024023000 in column when is invalid as '%Y%m%d%H'" in complaint(
        [2024022800, 2024022900, 2024023000]
    )
    assert "line 2: 2024023001 in column when" in complaint([2024023001])
    assert "line 2: 202402300100 in column when is invalid as '%Y%m%d%H%M'" in complaint([202402300100])
    assert "too small for seconds" in complaint([2024, 2025])
    assert "far future as seconds" in complaint([4_000_000_000])
    assert read([4_000_000_000], time_format="epoch_s")[0] == ["2096-10-02T07:06:40Z"]


def test_typed_columns_are_read_and_other_types_refused() -> None:
    moment = datetime(2024, 3, 1, 12, tzinfo=UTC)
    for unit in ("ms", "us", "ns"):
        assert read(pl.Series("when", [moment]).dt.cast_time_unit(unit))[0] == [NOON]
    assert read(pl.Series("when", [moment.date()]), "UTC")[0] == ["2024-03-01T00:00:00Z"]
    assert read(pl.Series("when", [moment.replace(tzinfo=None)]), "Europe/Berlin")[0] == ["2024-03-01T11:00:00Z"]
    assert read(pl.Series("when", [NOON], dtype=pl.Categorical))[0] == [NOON]
    assert "holds Boolean, not times" in complaint([True])
    huge = pl.Series("when", [2**62]).cast(pl.Datetime("ms"))
    assert "lies outside the years 1900 to 2199" in complaint(huge)
    assert "line 2: 18446744073709551615 in column when is not a time" in complaint(pl.Series("when", [2**64 - 1]))


def test_times_are_read_from_several_columns_in_any_order() -> None:
    frame = pl.DataFrame({"h": ["5", "23"], "d": ["13/03/2024", "14/03/2024"], "day": [1, 2], "year": [2024.0, 2024.0]})
    one = pl.Series(["a", "a"])
    found = read_times(frame, ("d", "h"), Path("a.csv"), "UTC", one)
    assert [iso_timestamp(us) for us in found] == ["2024-03-13T05:00:00Z", "2024-03-14T23:00:00Z"]
    frame = frame.with_columns(pl.Series("month", [3, 13]))
    with pytest.raises(DataFileError, match=r"a\.csv, row 2: the columns form no date: day 2, month 13, year 2024"):
        read_times(frame, ("day", "month", "year"), Path("a.csv"), "UTC", one)
    found = read_times(frame[:1], ("day", "month", "year"), Path("a.csv"), "UTC", one[:1])
    assert [iso_timestamp(us) for us in found] == ["2024-03-01T00:00:00Z"]
    far = pl.DataFrame({"date": pl.Series([2**31 - 1], dtype=pl.Int32).cast(pl.Date), "time": [dt_time(12)]})
    with pytest.raises(DataFileError, match=r"a\.csv, row 1: "):
        read_times(far, ("date", "time"), Path("a.csv"), "UTC", one[:1])
    near = pl.DataFrame({"date": [date(2024, 3, 1)], "time": [dt_time(12)]})
    assert [iso_timestamp(us) for us in read_times(near, ("date", "time"), Path("a.csv"), "UTC", one[:1])] == [NOON]


# --- the hour that clocks repeat --------------------------------------------------------------------------------------

BERLIN = ZoneInfo("Europe/Berlin")


def night(step: int) -> list[datetime]:
    """UTC times around the night of 2024-10-27, when clocks in Berlin repeated the hour from 02:00 to 03:00."""
    start = datetime(2024, 10, 26, 20, tzinfo=UTC)
    return [start + timedelta(minutes=minutes) for minutes in range(0, 12 * 60, step)]


def local(moments: list[datetime]) -> list[str]:
    return [f"{moment.astimezone(BERLIN):%Y-%m-%d %H:%M}" for moment in moments]


def iso(moments: list[datetime]) -> list[str]:
    return [iso_timestamp(microseconds(moment)) for moment in moments]


@pytest.mark.parametrize("step", [5, 15, 30, 60])
@pytest.mark.parametrize("newest_first", [False, True])
def test_both_passes_of_the_repeated_hour_are_told_apart(step: int, newest_first: bool) -> None:
    moments = night(step)[:: -1 if newest_first else 1]
    assert read(local(moments), "Europe/Berlin") == (iso(moments), [])


@pytest.mark.parametrize("newest_first", [False, True])
@pytest.mark.parametrize("missing", range(8))
def test_a_missing_row_in_the_repeated_hour_moves_no_reading(missing: int, newest_first: bool) -> None:
    moments = night(15)
    del moments[16 + missing]
    moments = moments[:: -1 if newest_first else 1]
    assert read(local(moments), "Europe/Berlin")[0] == iso(moments)


def test_sensors_in_turn_are_told_apart_each_by_its_own_rows() -> None:
    moments = [moment for moment in night(15) for _ in "ab"]
    sensors = "ab" * (len(moments) // 2)
    kept = [index for index in range(len(moments)) if index not in (34, 37)]
    found = read(local([moments[index] for index in kept]), "Europe/Berlin", "".join(sensors[index] for index in kept))
    assert found[0] == iso([moments[index] for index in kept])


def test_a_sensor_with_one_pass_is_resolved_by_the_rows_of_the_others() -> None:
    first_pass = night(30)[8:10]
    rows = [(moment, sensor) for moment in night(30) for sensor in "abc" if sensor != "b" or moment not in first_pass]
    found = read(local([moment for moment, _ in rows]), "Europe/Berlin", "".join(sensor for _, sensor in rows))
    assert found[0] == iso([moment for moment, _ in rows])


def test_a_file_that_begins_or_ends_in_the_repeated_hour_is_read_without_a_gap() -> None:
    for moments in (night(15)[:18], night(15)[21:]):
        assert read(local(moments), "Europe/Berlin")[0] == iso(moments)


def test_a_single_pass_of_the_repeated_hour_is_refused_with_the_remedies() -> None:
    moments = [moment for moment in night(15) if not 16 <= (moment - night(15)[0]).seconds // 900 < 20]
    message = complaint(local(moments), "Europe/Berlin")
    assert "line 18: 2024-10-27 02:00:00 exists twice in Europe/Berlin" in message
    assert "--timezone Etc/GMT-1" in message
    assert "--repeated-hour earlier or --repeated-hour later" in message
    assert read(local(moments), "Europe/Berlin", repeated_hour="later")[0] == iso(moments)
    earlier = read(local(moments), "Europe/Berlin", repeated_hour="earlier")[0]
    assert earlier[16] == "2024-10-27T00:00:00Z"


@pytest.mark.parametrize("newest_first", [False, True])
@pytest.mark.parametrize("is_all_year", [False, True])
@pytest.mark.parametrize(
    "minutes",
    ["00 10 30 20 40 50", "00 10 10 20 30 40 50", "50 00 10 20 30 40", "10 20 30 40 50 00", "00 10 20 50 30 40"],
)
def test_a_swapped_or_repeated_row_does_not_begin_a_second_pass(
    minutes: str, is_all_year: bool, newest_first: bool
) -> None:
    before = [f"2024-10-27 0{hour}:{minute}0" for hour in (0, 1) for minute in range(6)] if is_all_year else []
    after = [f"2024-10-27 0{hour}:{minute}0" for hour in (3, 4) for minute in range(6)]
    cells = [*before, *(f"2024-10-27 02:{minute}" for minute in minutes.split()), *after]
    assert "exists twice" in complaint(cells[:: -1 if newest_first else 1], "Europe/Berlin")


def test_times_without_an_order_are_refused_in_the_repeated_hour() -> None:
    moments = np.random.default_rng(1).permutation(np.array(night(15))).tolist()
    assert "exists twice in Europe/Berlin" in complaint(local(moments), "Europe/Berlin")


def test_long_steps_take_the_earlier_time_and_say_so() -> None:
    days = [f"2024-10-{day} 02:30" for day in (25, 26, 27, 28)]
    times, notes = read(days, "Europe/Berlin")
    assert times[2] == "2024-10-27T00:30:00Z"
    assert notes[1] == "--repeated-hour earlier"


def test_a_local_time_that_was_skipped_is_refused_with_its_line() -> None:
    message = complaint(["2024-03-31 01:30", "2024-03-31 02:30"], "Europe/Berlin")
    assert "line 3: 2024-03-31 02:30:00 does not exist in Europe/Berlin" in message
    assert "--timezone Etc/GMT-1" in message
    assert "unknown time zone 'Mars/Olympus'" in complaint(["2024-03-31"], "Mars/Olympus")


@given(
    offsets=st.lists(st.integers(0, 4 * 12 * 60), min_size=1, max_size=60),
    zone=st.sampled_from(["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "UTC"]),
)
def test_a_local_time_of_any_rows_is_a_reading_of_that_local_time_or_refused(offsets: list[int], zone: str) -> None:
    start = datetime(2024, 10, 26, tzinfo=UTC)
    moments = sorted(start + timedelta(minutes=5 * offset) for offset in set(offsets))
    cells = [f"{moment.astimezone(ZoneInfo(zone)):%Y-%m-%dT%H:%M}" for moment in moments]
    try:
        times, _ = read(cells, zone)
    except DataFileError as error:
        assert "exists twice" in str(error)  # noqa: PT017
        return
    again = [f"{datetime.fromisoformat(time).astimezone(ZoneInfo(zone)):%Y-%m-%dT%H:%M}" for time in times]
    assert again == cells


# --- any cells --------------------------------------------------------------------------------------------------------


@given(
    cells=st.lists(
        st.text(st.characters(codec="utf-8"), max_size=40) | st.from_regex(r"[0-9 :/T.Zz+-]{1,25}"), min_size=1
    ),
    time_format=st.sampled_from([None, "day-first", "epoch_ms", "%Y-%m-%d", "%Y%m%d%H"]),
)
def test_any_cells_are_times_within_the_range_of_the_stream_or_refused(
    cells: list[str], time_format: str | None
) -> None:
    try:
        found = convert_times(
            column(cells), pl.Series(["a"] * len(cells)), TimeOptions("Europe/Berlin", time_format, now_us=NOW_US)
        )
    except DataFileError:
        return
    assert found.is_between(EARLIEST_TIMESTAMP_US, LATEST_TIMESTAMP_US - 1).all()
