"""The section ``[calendar]`` of the settings: days on which targets behave differently, known ahead."""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import date, datetime, timedelta
from functools import lru_cache
from typing import Any, Final, Self
from zoneinfo import ZoneInfo

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from model.known_ahead import CalendarCovariate
from pipeline.settings.names import check_names
from pipeline.settings.zone import ZoneName

# Years whose public holidays a model carries: from the earliest reading that is accepted by default.
FIRST_YEAR: Final = 1980
LAST_YEAR: Final = 2060
HOLIDAY: Final = "holiday"
WORKED_WEEKEND: Final = "worked_weekend"
_MOST_DAYS: Final = 40_000  # of one covariate: a century
_MOST_SHOWN: Final = 20  # parts of a country in a message


class CalendarSettings(BaseModel):
    """Days that are known ahead. A model carries the days that it was trained with."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    country: str | None = Field(
        default=None,
        examples=["DE-BY"],
        description="public holidays of a country, or of a part of it, by the codes of ISO 3166",
    )
    timezone: ZoneName = Field(
        default=None, examples=["Europe/Berlin"], description="a day is from midnight to midnight in this zone"
    )
    days: dict[str, tuple[str, ...]] = Field(
        default={},
        examples=[{"fair": ["2016-04-14", "2016-05-01/2016-05-07"]}],
        description="name -> dates, or first/last date of a span",
    )

    @field_validator("country")
    @classmethod
    def _is_known(cls, country: str | None) -> str | None:
        if country is not None:
            _holidays(country, range(LAST_YEAR, LAST_YEAR + 1))
        return country

    @field_validator("days", mode="before")
    @classmethod
    def _as_texts(cls, days: Any) -> Any:
        """Dates of TOML need no quotes."""
        if not isinstance(days, dict):
            return days
        return {
            name: [each.isoformat() if type(each) is date else each for each in listed]
            if isinstance(listed, list | tuple)
            else listed
            for name, listed in days.items()
        }

    @field_validator("days")
    @classmethod
    def _are_days(cls, days: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        check_names("a list of days", days)
        for name, listed in days.items():
            if len(_parsed(listed)) > _MOST_DAYS:
                raise ValueError(f"{name} has more than {_MOST_DAYS:,} days")
        return days

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if (self.country is not None or self.days) and self.timezone is None:
            raise ValueError("set timezone: a day begins at midnight there, for example in Europe/Berlin")
        if self.country is not None and (taken := {HOLIDAY, WORKED_WEEKEND} & self.days.keys()):
            raise ValueError(f"{min(taken)} is the name for days of the country; give the list another name")
        _ = self.in_model  # raises ValueError if a model refuses the days
        return self

    @property
    def in_model(self) -> tuple[CalendarCovariate, ...]:
        """The covariates of a model that is trained now, in the order of their names."""
        return () if self.timezone is None else _in_model(self.country, self.timezone, tuple(self.days.items()))


@lru_cache(maxsize=16)  # an access takes milliseconds otherwise
def _in_model(
    country: str | None, timezone: str, days: tuple[tuple[str, tuple[str, ...]], ...]
) -> tuple[CalendarCovariate, ...]:
    found: dict[str, Iterable[date]] = {name: _parsed(listed) for name, listed in days}
    if country is not None:
        found |= _of_country(country)
    zone = ZoneInfo(timezone)
    return tuple(CalendarCovariate(name, _changes(found[name], zone)) for name in sorted(found))


def _parsed(listed: tuple[str, ...]) -> list[date]:
    """The dates of a list.

    Raises:
        ValueError: an entry is neither a date nor a span of dates.
    """
    return [day for text in listed for day in _span(text)]


def _span(text: str) -> Iterator[date]:
    first_text, _, last_text = text.partition("/")
    try:
        first = date.fromisoformat(first_text.strip())
        last = date.fromisoformat(last_text.strip()) if last_text else first
    except ValueError:
        raise ValueError(
            f"{text[:50]!r} is neither a date such as 2016-04-14 nor a span of dates such as 2016-04-14/2016-04-20"
        ) from None
    if not date(1900, 1, 1) <= first <= last <= date(2200, 1, 1) or last - first > timedelta(days=_MOST_DAYS):
        raise ValueError(f"the dates of {text[:50]!r} must ascend, between the years 1900 and 2200")
    return (first + timedelta(days=day) for day in range((last - first).days + 1))


def _of_country(country: str) -> dict[str, tuple[date, ...]]:
    """Public holidays with the days that replace them, and the weekends that are worked in return, if there are any."""
    found = _holidays(country, range(FIRST_YEAR, LAST_YEAR + 1))
    days = {HOLIDAY: tuple(found)}
    if found.weekend_workdays:
        days[WORKED_WEEKEND] = tuple(found.weekend_workdays)
    return days


def _holidays(country: str, years: range) -> Any:
    """The holidays of these years, by date.

    Raises:
        ValueError: the country or its part is unknown.
    """
    import holidays  # takes 0.2 s, and few settings name a country
    from holidays.registry import EntityLoader

    unknown = f"the holidays of {country[:20]!r} are not known; "
    code, dash, part = country.partition("-")
    # The package takes any name of its own modules and classes for a country.
    if code not in EntityLoader.get_country_codes():
        raise ValueError(f"{unknown}write the code of a country in ISO 3166 such as DE, or DE-BY for a part of it")
    if part or not dash:
        with suppress(NotImplementedError):  # an unknown part
            return holidays.country_holidays(code, subdiv=part or None, years=years)
    parts = [f"{code}-{each}" for each in getattr(holidays, code).subdivisions]
    some = ", ".join(parts[:_MOST_SHOWN]) + (", …" if len(parts) > _MOST_SHOWN else "")
    listed = f", or for a part of it {some}" if parts else ""
    raise ValueError(f"{unknown}write {code} for the whole country{listed}")


def _changes(days: Iterable[date], zone: ZoneInfo) -> tuple[int, ...]:
    """Unix times at which days begin and end in a zone; days in a row have one beginning and one end.

    A zone that crosses the date line skips a day, which has no time: 30 December 2011 in Samoa.
    """
    changes: list[int] = []
    for day in sorted(set(days)):
        begin, end = (_midnight(each, zone) for each in (day, day + timedelta(days=1)))
        if begin == end:
            continue
        if changes and changes[-1] == begin:
            changes[-1] = end
        else:
            changes += [begin, end]
    return tuple(changes)


def _midnight(day: date, zone: ZoneInfo) -> int:
    return int(datetime(day.year, day.month, day.day, tzinfo=zone).timestamp())
