"""ISO 8601 times with a UTC offset: one grammar for messages and files.

A time has the same microsecond on the stream and in a file, or both refuse it. The decoder of
readings reads the usual RFC 3339 spellings faster, and asks this module about the remaining ones. ``pipeline.files``
reads whole columns by the same rules.
"""

import re
from datetime import UTC, datetime, timedelta
from typing import Final
from zoneinfo import ZoneInfo

SECOND_US: Final = 1_000_000
DAY_US: Final = 86_400 * SECOND_US
END_OF_DAY: Final = 24  # the hour 24:00 is the next day's 00:00
LEAP_SECOND: Final = 60
LARGEST_OFFSET_HOUR: Final = 23
LARGEST_OFFSET_MINUTE: Final = 59
MICROSECOND_DIGITS: Final = 6
_ROUND_UP: Final = "5"

# The separators of a date or of a time of day are both there or both absent.
_OFFSET: Final = r" *(?:[Zz]|UTC|GMT|(?P<sign>[-+])(?P<offset_hour>[0-9]{2})(?::?(?P<offset_minute>[0-9]{2}))?)"
_ISO: Final = re.compile(
    r"(?P<year>[0-9]{4})(?P<bar>-?)(?P<month>[0-9]{2})(?P=bar)(?P<day>[0-9]{2})(?:[Tt]| +)"
    r"(?P<hour>[0-9]{2})"
    r"(?:(?P<colon>:?)(?P<minute>[0-9]{2})(?:(?P=colon)(?P<second>[0-9]{2})(?:[.,](?P<fraction>[0-9]+))?)?)?" + _OFFSET
)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def iso_microseconds(text: str) -> int | None:
    """Microseconds since 1970 of an ISO 8601 time with an offset; None if ``text`` is not such a time.

    ``24:00`` is the next day's 00:00. A leap second is the second after it, as in Unix time. Digits beyond microseconds
    are rounded.
    """
    text = text.strip()
    found = _ISO.fullmatch(text)
    if found is None:
        return None
    hour, minute, second = (int(found[name] or 0) for name in ("hour", "minute", "second"))
    offset_hour, offset_minute = int(found["offset_hour"] or 0), int(found["offset_minute"] or 0)
    fraction = fraction_us(found["fraction"] or "")
    ends_day = hour == END_OF_DAY and not minute and not second and not fraction
    leap = second == LEAP_SECOND
    if offset_hour > LARGEST_OFFSET_HOUR or offset_minute > LARGEST_OFFSET_MINUTE:
        return None
    try:
        year, month, day = (int(found[name]) for name in ("year", "month", "day"))
        moment = datetime(year, month, day, 0 if ends_day else hour, minute, second - leap, tzinfo=UTC)
    except ValueError:
        return None
    offset = timedelta(hours=offset_hour, minutes=offset_minute) // timedelta(microseconds=1)
    whole = (moment - _EPOCH) // timedelta(microseconds=1) + (DAY_US if ends_day else leap * SECOND_US)
    whole += offset if found["sign"] == "-" else -offset
    if leap and not follows_leap_second(whole):
        return None
    return whole + fraction


def iso_microseconds_in_zone(text: str, zone: ZoneInfo) -> int | None:
    """Like ``iso_microseconds``, but a time without an offset, or a date alone, is a local time of ``zone``."""
    text = text.strip()
    found = iso_microseconds(text)
    if found is not None:
        return found
    local_us = iso_microseconds(f"{text}Z")
    if local_us is None:
        local_us = iso_microseconds(f"{text}T00Z")
    try:
        local = None if local_us is None else (_EPOCH + timedelta(microseconds=local_us)).replace(tzinfo=zone)
    except OverflowError:  # the end of the year 9999
        return None
    return None if local is None else (local - _EPOCH) // timedelta(microseconds=1)


def follows_leap_second(timestamp_us: int) -> bool:
    """Whether a leap second may precede this whole second: leap seconds end a month of UTC."""
    if timestamp_us % DAY_US:
        return False
    try:
        return (_EPOCH + timedelta(microseconds=timestamp_us)).day == 1
    except OverflowError:
        return False


def fraction_us(digits: str) -> int:
    """The digits after the decimal point of a second, as microseconds, rounded half up."""
    kept = digits[:MICROSECOND_DIGITS].ljust(MICROSECOND_DIGITS, "0")
    return int(kept) + (digits[MICROSECOND_DIGITS : MICROSECOND_DIGITS + 1] >= _ROUND_UP)
