"""Attributes of sensors, such as type and site: knowledge of sensors that training has not seen.

The settings give them, and a model keeps those that it was trained with. Each value of an attribute has a learned
vector, which is added to the sensor's own (``model.forecaster``).

Letters: B sensors, V attributes.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import translate
from functools import cached_property
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

UNKNOWN_SENSOR: Final = 0  # row of the sensors' vectors for a sensor that training did not see


@dataclass(frozen=True)
class Attribute:
    """A property of sensors, with its value for each of them.

    Raises:
        ValueError: there is no sensor or pattern, or one occurs twice.
    """

    name: str
    by_pattern: tuple[tuple[str, str], ...]  # pairs: a sensor id, or a pattern with * and ?, and the value

    def __post_init__(self) -> None:
        patterns = [pattern for pattern, _ in self.by_pattern]
        if not patterns or len(set(patterns)) < len(patterns):
            raise ValueError(f"the attribute {self.name} must name a sensor or pattern at least, and each of them once")

    @property
    def values(self) -> tuple[str, ...]:
        """The different values, in the order of the pairs."""
        return tuple(dict.fromkeys(value for _, value in self.by_pattern))

    def value_of(self, sensor: str) -> str | None:
        """The sensor's value: by its id, otherwise by the first pattern that fits; None without one."""
        exact = self._by_id.get(sensor)
        fitting = (value for pattern, value in self._patterns if pattern.match(sensor))
        return next(fitting, None) if exact is None else exact

    @cached_property
    def _by_id(self) -> dict[str, str]:
        return dict(self.by_pattern)

    @cached_property
    def _patterns(self) -> list[tuple[re.Pattern[str], str]]:
        """The patterns, with their values. Only * and ? have a meaning: a bracket stands for itself."""
        return [
            (re.compile(translate(pattern.replace("[", "[[]"))), value)
            for pattern, value in self.by_pattern
            if "*" in pattern or "?" in pattern
        ]

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> "Attribute":
        """The attribute in a decoded JSON object.

        Raises:
            KeyError, TypeError: a field is unknown, missing or of another type.
            ValueError: as the constructor.
        """
        pairs = tuple(map(tuple, content["by_pattern"]))
        are_texts = all(len(pair) == 2 and all(isinstance(each, str) for each in pair) for pair in pairs)
        if not are_texts or not isinstance(content.get("name"), str):
            raise TypeError("an attribute has a name, and pairs of texts as by_pattern")
        return cls(**{**content, "by_pattern": pairs})


def attribute_values(attributes: Sequence[Attribute]) -> list[tuple[str, str | None]]:
    """The name and value of each row of the attributes' vectors.

    The first row of each attribute is for sensors without a value, which is None.
    """
    return [(each.name, value) for each in attributes for value in (None, *each.values)]


class SensorRows:
    """The rows of sensors in the tables of vectors."""

    def __init__(self, sensors: Sequence[str], attributes: Sequence[Attribute]) -> None:
        self._known = {sensor: row for row, sensor in enumerate(sensors, start=UNKNOWN_SENSOR + 1)}
        self._attributes = attributes
        self._row_of_value = {label: row for row, label in enumerate(attribute_values(attributes))}
        self._found: dict[str, tuple[int, ...]] = {}  # patterns are matched once for each sensor

    def of(self, sensors: Sequence[str]) -> NDArray[np.int64]:
        """(B, 1+V): each sensor's row among the sensors' vectors, and a row for each attribute among its values'."""
        known = self._known
        own = np.array([known.get(sensor, UNKNOWN_SENSOR) for sensor in sensors], np.int64)[:, None]
        if not self._attributes:
            return own
        values = np.array([self._values_of(sensor) for sensor in sensors], np.int64)
        return np.hstack([own, values.reshape(len(own), len(self._attributes))])

    @property
    def unknown(self) -> tuple[int, ...]:
        """The rows (1+V) of a sensor that training did not see, without attributes."""
        return UNKNOWN_SENSOR, *(self._row_of_value[each.name, None] for each in self._attributes)

    def _values_of(self, sensor: str) -> tuple[int, ...]:
        found = self._found.get(sensor)
        if found is None:
            found = tuple(self._row_of_value[each.name, each.value_of(sensor)] for each in self._attributes)
            self._found[sensor] = found
        return found
