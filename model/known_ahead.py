"""Covariates known ahead: which of them a model uses. Their values come from a calendar or from outlooks.

A calendar covariate is a function of time alone, so it is known for every step ahead. An outlook covariate is known as
far as the newest outlook of the sensor tells it (``model.outlooks``).
"""

import itertools
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

MOST_CHANGES: Final = 200_000  # of one calendar covariate, a bound on the size of a model's configuration


@dataclass(frozen=True)
class CalendarCovariate:
    """A covariate that is 1 on some days and 0 on all other days, such as the public holidays of a country.

    A model carries the times at which the value changes, so it needs neither a time zone nor a list of holidays.

    Raises:
        ValueError: the name is empty, or the times do not ascend in pairs.
    """

    name: str
    changes_s: tuple[int, ...]  # Unix times, UTC: the value is 1 from the first to the second, from the third to ...

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise ValueError(f"a calendar covariate needs a name, not {self.name!r}")
        changes = self.changes_s
        if len(changes) % 2 or len(changes) > MOST_CHANGES or not all(type(each) is int for each in changes):
            raise ValueError(f"the changes of {self.name} must be at most {MOST_CHANGES:,} whole numbers, in pairs")
        if any(later <= earlier for earlier, later in itertools.pairwise(changes)):
            raise ValueError(f"the changes of {self.name} must ascend")
        if changes and not (changes[0] > -(2**43) and changes[-1] < 2**43):  # microseconds fit in 64 bits
            raise ValueError(f"the changes of {self.name} must be Unix times in seconds")

    @property
    def changes_us(self) -> NDArray[np.int64]:
        """The times of the changes in microseconds."""
        return np.array(self.changes_s, np.int64) * 1_000_000

    def at(self, timestamp_us: NDArray[np.int64]) -> NDArray[np.float32]:
        """(...,) the values, 0 or 1, at these times (...,)."""
        passed = np.searchsorted(self.changes_us, timestamp_us, side="right")
        return (passed % 2).astype(np.float32)


@dataclass(frozen=True)
class OutlookConfig:
    """The outlooks that a model uses: their covariates, their length, and the groups of sensors that share one.

    Raises:
        ValueError: a field contradicts another or is out of range; the message names it.
    """

    covariates: tuple[str, ...]
    steps: int  # cells of an outlook, a cadence apart, that a sensor's state keeps
    groups: tuple[tuple[str, tuple[str, ...]], ...] = ()  # name and sensors of each group

    def __post_init__(self) -> None:
        names = self.covariates
        if not names or len(set(names)) != len(names) or not all(isinstance(name, str) and name for name in names):
            raise ValueError("the covariates of outlooks must be at least one name, and each name once")
        if type(self.steps) is not int or self.steps < 1:
            raise ValueError(f"the steps of outlooks must be a whole number of at least 1, not {self.steps!r}")
        groups = [name for name, _ in self.groups]
        if len(set(groups)) != len(groups):
            raise ValueError("the groups of outlooks must have different names")
        for name, sensors in self.groups:
            if not sensors or len(set(sensors)) != len(sensors):
                raise ValueError(f"the group {name} of outlooks must name at least one sensor, and each sensor once")

    @property
    def covariate_count(self) -> int:
        """Co: the number of covariates."""
        return len(self.covariates)


def calendar_from_json(content: Any) -> tuple[CalendarCovariate, ...]:
    """The calendar covariates in a decoded JSON array.

    Raises:
        TypeError: an entry has other fields.
        ValueError: a field is out of range.
    """
    return tuple(CalendarCovariate(**{**each, "changes_s": tuple(each["changes_s"])}) for each in content)


def outlook_from_json(content: Any) -> OutlookConfig | None:
    """The outlooks in a decoded JSON object.

    Raises:
        TypeError: the object has other fields.
        ValueError: a field is out of range.
    """
    if content is None:
        return None
    groups = tuple((name, tuple(sensors)) for name, sensors in content.get("groups", ()))
    return OutlookConfig(**{**content, "covariates": tuple(content["covariates"]), "groups": groups})
