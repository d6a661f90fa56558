"""Names of zones behind times, such as CET or Europe/Berlin."""

import zoneinfo
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Final

# Abbreviations change with the rules of clocks, so they are looked up in the years of the data, at most in these.
_FIRST_YEAR, _LAST_YEAR = 1970, 2037
_MONTHS: Final = range(1, 13)


def zone_of_name(name: str) -> str | None:
    """The time zone with this name, such as Europe/Berlin; None for an abbreviation or an unknown name."""
    if "/" not in name:
        return None
    known = {each.lower(): each for each in zoneinfo.available_timezones()}
    return known.get(name.lower())


def offsets_of(abbreviation: str, first_year: int, last_year: int, timezone: str | None) -> set[int]:
    """The UTC offsets, in minutes, that an abbreviation has in the years: in ``timezone``, otherwise in any zone.

    More than one offset means that the abbreviation is ambiguous, none that it is unknown.
    """
    years = range(min(max(first_year, _FIRST_YEAR), _LAST_YEAR), max(min(last_year, _LAST_YEAR), _FIRST_YEAR) + 1)
    word = abbreviation.upper()
    if timezone is not None:
        found = _offsets(word, years, [timezone])
        if found:
            return found
    return _offsets(word, years, zoneinfo.available_timezones())


def _offsets(word: str, years: Iterable[int], zones: Iterable[str]) -> set[int]:
    return {offset for year in years for zone in zones for name, offset in _names(zone, year) if name == word}


@lru_cache(maxsize=200_000)
def _names(zone: str, year: int) -> frozenset[tuple[str, int]]:
    """The abbreviations of a zone in a year, each with its offset in minutes."""
    try:
        rules = zoneinfo.ZoneInfo(zone)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        return frozenset()
    moments = (datetime(year, month, 1, tzinfo=UTC).astimezone(rules) for month in _MONTHS)
    return frozenset(
        ((moment.tzname() or "").upper(), int((moment.utcoffset() or timedelta()).total_seconds() // 60))
        for moment in moments
    )
