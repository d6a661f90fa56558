"""Guesses the unit of a time that was sent in a unit other than milliseconds since 1970."""

from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Final

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
# Factors that turn a number taken as milliseconds into the time that its sender meant.
_UNITS: Final = (("seconds", 1_000.0), ("microseconds", 1e-3), ("nanoseconds", 1e-6), ("minutes", 60_000.0))
_CALENDAR_DIGITS: Final = (
    ("YYYYMMDD", "%Y%m%d"),
    ("YYYYMMDDHH", "%Y%m%d%H"),
    ("YYYYMMDDHHMM", "%Y%m%d%H%M"),
    ("YYYYMMDDHHMMSS", "%Y%m%d%H%M%S"),
    ("YYMMDDHHMM", "%y%m%d%H%M"),
    ("YYMMDDHHMMSS", "%y%m%d%H%M%S"),
)
_NEAR_US: Final = 366 * 86_400_000_000  # a corrected time this near to the record's timestamp is a good guess
# A corrected time in this range is a possible guess: a replay of old readings has recent record timestamps.
_USUAL_US: Final = tuple((datetime(year, 1, 1, tzinfo=UTC) - _EPOCH) // _MICROSECOND for year in (2000, 2100))
_LARGEST_US: Final = 10**24  # larger numbers are times in no unit


def guess_cause(timestamp_us: int, sent_ms: int = 0, clock: str = "the clock of the sensor") -> str:
    """The likely cause of an implausible time, with the remedy.

    Args:
        timestamp_us: the time, of any size.
        sent_ms: timestamp of the record; 0 or less if it is unknown.
        clock: the clock that the time comes from, in words.
    """
    possible: list[tuple[float, str]] = []
    for unit, meant_us in _meanings(timestamp_us):
        away_us = abs(meant_us - sent_ms * 1_000) if sent_ms > 0 else float("inf")
        if away_us <= _NEAR_US or _USUAL_US[0] <= meant_us < _USUAL_US[1]:
            with suppress(OverflowError):
                moment = (_EPOCH + meant_us * _MICROSECOND).isoformat(timespec="seconds").replace("+00:00", "Z")
                remedy = "send milliseconds or ISO 8601, or map the unit (readings.time_unit)"
                possible.append((away_us, f"it looks like {unit} ({moment}); {remedy}"))
    if possible:
        return min(possible, key=lambda guess: guess[0])[1]
    if sent_ms > 0 and timestamp_us > sent_ms * 1_000:
        return f"{clock} may be wrong"
    return f"{clock} may not be set"


def describe_outside(timestamp_us: int) -> str:
    """The detail of a dead letter whose time is out of range."""
    return f"the timestamp lies outside the years 1900 to 2199; {guess_cause(timestamp_us)}"


def _meanings(timestamp_us: int) -> Iterator[tuple[str, int]]:
    """The times, in microseconds, that a number taken as milliseconds may mean."""
    if abs(timestamp_us) > _LARGEST_US:
        return
    digits = str(timestamp_us // 1_000)
    for name, form in _CALENDAR_DIGITS:
        if len(digits) == len(name):
            with suppress(ValueError):
                moment = datetime.strptime(digits, form).replace(tzinfo=UTC)
                yield f"the digits {name}", (moment - _EPOCH) // _MICROSECOND
    for unit, factor in _UNITS:
        yield f"epoch {unit}", round(timestamp_us * factor)
