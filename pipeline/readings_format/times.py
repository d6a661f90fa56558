"""Reads the times in other people's messages: numbers in a unit, ISO 8601, strptime patterns, local times."""

import re
from collections.abc import Callable
from datetime import date, datetime, timedelta
from decimal import Decimal, InvalidOperation
from typing import Any, Final
from zoneinfo import ZoneInfo

from pipeline.foreign_payloads import quote
from pipeline.iso_times import iso_microseconds
from pipeline.messages import EARLIEST_TIMESTAMP_US, LATEST_TIMESTAMP_US, Rejected, microseconds
from pipeline.settings.readings import ReadingsSettings

_UNITS_US: Final = {"s": Decimal(1_000_000), "ms": Decimal(1_000), "us": Decimal(1), "ns": Decimal("0.001")}
_UNIT_NAMES: Final = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}
_PLAUSIBLE_US: Final = (946_684_800_000_000, 4_102_444_800_000_000)  # the years 2000 to 2099
_LARGEST_NUMBER: Final = 10**24  # beyond any time in any unit; larger numbers would only cost time
_NUMBER: Final = re.compile(r"[+-]?\d{1,25}(\.\d{1,25})?")

TimeReader = Callable[[Any], int]


def make_time_reader(settings: ReadingsSettings) -> TimeReader:
    """A function from the time in a message to microseconds since 1970, UTC. It raises ``Rejected`` for other values.

    Numbers are whole milliseconds unless ``time_unit`` names another unit, and may then have a fraction. Texts follow
    ``time_format`` if there is one. Otherwise they are numbers in ``time_unit`` or ISO 8601.
    """
    reader = _Times(settings)
    return reader.read


def whole_factor(unit: str | None) -> int | None:
    """Microseconds per unit, for exact products of whole numbers; None for nanoseconds, which are divided."""
    factor = _UNITS_US[unit or "ms"]
    return int(factor) if factor >= 1 else None


class _Times:
    def __init__(self, settings: ReadingsSettings) -> None:
        self._unit = settings.time_unit
        self._factor = _UNITS_US[settings.time_unit or "ms"]
        self._whole = whole_factor(settings.time_unit)
        self._format = settings.time_format
        self._zone = None if settings.timezone is None else ZoneInfo(settings.timezone)

    def read(self, found: Any) -> int:
        kind = type(found)
        if kind is int:
            moment_us = self._of_number(found)
        elif kind is str:
            moment_us = self._of_text(found)
        elif kind is float:
            moment_us = self._of_fraction(found)
        elif isinstance(found, datetime):
            moment_us = self._of_datetime(found, found.isoformat())
        else:
            raise _unreadable(found, "it is neither a number nor a text")
        return in_range(moment_us, found, self._unit or "ms")

    def _of_number(self, found: int) -> int:
        if not -_LARGEST_NUMBER < found < _LARGEST_NUMBER:
            raise _unreadable(found, "it is too large")
        return found * self._whole if self._whole is not None else found // 1_000

    def _of_fraction(self, found: float | Decimal) -> int:
        if self._unit is None and found != found // 1:
            raise _unreadable(found, "it has a fraction: set readings.time_unit")
        if not -_LARGEST_NUMBER < found < _LARGEST_NUMBER:
            raise _unreadable(found, "it is too large or not a number")
        return round(Decimal(repr(found) if isinstance(found, float) else found) * self._factor)

    def _of_text(self, found: str) -> int:
        text = found.strip()
        if self._format is not None:
            try:
                moment = datetime.strptime(text, self._format)  # noqa: DTZ007 - the zone is added below
            except (ValueError, OverflowError) as error:
                raise _unreadable(found, str(error)) from None
            return self._of_datetime(moment, found)
        if self._unit is not None and _NUMBER.fullmatch(text):
            try:
                return self._of_fraction(Decimal(text)) if "." in text else self._of_number(int(text))
            except InvalidOperation:
                raise _unreadable(found, "it is too large") from None
        moment_us = iso_microseconds(text)
        if moment_us is not None:
            return moment_us
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            raise _unreadable(found, _hint(text)) from None
        if len(text) < len("2026-03-01T12:00") or not text[:4].isdecimal() or text[4:5] != "-":
            raise _unreadable(found, _hint(text))  # a date alone, or digits that ISO 8601 reads as a date
        return self._of_datetime(moment, found)

    def _of_datetime(self, moment: datetime, shown: str) -> int:
        try:
            if moment.tzinfo is None:
                moment = self._in_zone(moment, shown)
            return microseconds(moment)
        except OverflowError:
            raise _unreadable(shown, "it is out of range") from None

    def _in_zone(self, moment: datetime, shown: str) -> datetime:
        if self._zone is None:
            raise _unreadable(shown, "it has no zone: set readings.timezone, for example to UTC")
        first, second = (moment.replace(tzinfo=self._zone, fold=fold) for fold in (0, 1))
        if first.utcoffset() != second.utcoffset():
            never = (first.utcoffset() or timedelta()) < (second.utcoffset() or timedelta())
            times = "never" if never else "twice"
            raise _unreadable(shown, f"this local time occurs {times} in {self._zone.key}: send UTC or an offset")
        return first


def in_range(moment_us: int, found: Any, unit: str | None = None) -> int:
    """The time, if it lies within the limits of every reading.

    Args:
        found: the time as the record has it; if it is a number in ``unit``, the detail names a unit that would fit.

    Raises:
        Rejected: the time is out of range.
    """
    if EARLIEST_TIMESTAMP_US <= moment_us < LATEST_TIMESTAMP_US:
        return moment_us
    detail = f"the time {quote(str(found)[:200])} lies outside the years 1900 to 2199"
    for other, factor in _UNITS_US.items():
        if unit not in (None, other) and type(found) is int and _PLAUSIBLE_US[0] <= found * factor < _PLAUSIBLE_US[1]:
            detail += f'; as {_UNIT_NAMES[other]} it would fit: set readings.time_unit = "{other}"'
            break
    raise Rejected("bad-timestamp", detail)


def _unreadable(found: Any, why: str) -> Rejected:
    shown = quote(str(found)[:200]) if isinstance(found, (str, int, float, date)) else f"of type {type(found).__name__}"
    return Rejected("bad-timestamp", f"the time {shown} cannot be read: {why}")


def _hint(text: str) -> str:
    if text.isdecimal():
        return "digits in a text need readings.time_unit or readings.time_format"
    return "it is not ISO 8601 with date and time: set readings.time_format, a strptime pattern"
