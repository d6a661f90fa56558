"""Changes of unit in a micro-batch, for the log: the sensor, the feature, and the map that forecasts now have."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from model.stepper import Forecasts
from model.unit_kernel import ACCEPTED
from pipeline.forecaster.readings import Readings

logger = logging.getLogger("streamgru.unit_changes")

_MOST_LINES: Final = 5  # lines in the log per batch, because a gateway may change all its sensors at once


@dataclass(frozen=True)
class UnitChange:
    """A feature of a sensor whose readings are converted from this reading on."""

    partition: int
    offset: int  # of the reading
    sensor: str
    feature: str
    factor: float  # the present unit is factor * own + shift; 1 and 0 if the sensor is back in its own unit
    shift: float

    def __str__(self) -> str:
        where = f"partition {self.partition}, offset {self.offset}: {self.feature} of sensor {self.sensor!r}"
        if (self.factor, self.shift) == (1.0, 0.0):
            return f"{where} is back in the unit that the state was made in"
        return (
            f"{where} has another unit: forecasts are {self.factor:g} times those in the unit that the state was made "
            f"in, plus {self.shift:g}"
        )


def find_unit_changes(accepted: Sequence[Readings], forecasts: Forecasts, features: Sequence[str]) -> list[UnitChange]:
    """The changes that were accepted at these readings.

    Args:
        accepted: the readings of the forecasts, in their order.
        features: F names.
    """
    if not (forecasts.unit_outcome == ACCEPTED).any():
        return []
    begins = np.cumsum([0, *map(len, accepted)])
    found = []
    for row, feature in np.argwhere(forecasts.unit_outcome == ACCEPTED).tolist():
        place = int(np.searchsorted(begins, row, side="right")) - 1
        part, at = accepted[place], row - int(begins[place])
        factor = float(forecasts.unit_factor[row, feature]) or 1.0  # 0 for no map
        shift = float(forecasts.unit_offset[row, feature])
        found.append(
            UnitChange(
                part.partition, int(part.offsets[at]), part.names[part.codes[at]], features[feature], factor, shift
            )
        )
    return found


def log_unit_changes(changes: Sequence[UnitChange]) -> None:
    """Log the changes of a committed batch."""
    for change in changes[:_MOST_LINES]:
        logger.warning("%s", change)
    if len(changes) > _MOST_LINES:
        logger.warning("%d more features of sensors changed their units in this batch", len(changes) - _MOST_LINES)
