"""Changes of unit: a sensor's values are converted back after a change of unit or zero point.

For each feature, a state carries a map from the state's own unit to the sensor's present unit: present = factor * own +
offset. Values are converted to the own unit before the model sees them, and forecasts are converted back. So an
accepted change alters nothing in the rest of the state. Without a map, values and forecasts keep their bits.

``model.unit_kernel`` holds the rule that accepts a map, and explains it. While it suspects a change, it withholds
values: the state sees missing values.

Letters: A sensors, M steps, F features, n forecasts, K targets.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from . import unit_kernel
from .unit_kernel import HYPOTHESES, NUMBERS

Floats = NDArray[np.float64]

_BLOCK_STEPS: Final = 65_536  # steps of whole sensors that are followed at a time: a bound on memory


@dataclass(frozen=True)
class Followed:
    """The values of M steps in their states' own units, and the maps after each step."""

    values: Floats  # (M, F), NaN where missing or withheld
    factor: Floats  # (M, F) 0 where there is no map
    offset: Floats  # (M, F)
    outcome: NDArray[np.int8]  # (M, F) ``COUNTED`` to ``GAVE_UP``; ``COUNTED`` for a missing value
    has_maps: bool  # whether there is any map

    def in_present_unit(self, index: Any, columns: list[int], numbers: Floats, *, sizes: bool = False) -> Floats:
        """Numbers (n, K, ...) of the features ``columns`` in the units after the steps ``index`` (n,).

        Without a map the result is ``numbers`` itself.

        Args:
            sizes: whether the numbers are distances, which have no zero point.
        """
        factor = self.factor[index][:, columns]
        mapped = factor != 0.0
        if not mapped.any():
            return numbers
        shape = (-1, *(1,) * (numbers.ndim - 2))
        converted = numbers.copy()
        converted[mapped] *= factor[mapped].reshape(shape)
        if not sizes:
            converted[mapped] += self.offset[index][:, columns][mapped].reshape(shape)
        return converted


def unit_fields(features: int) -> list[tuple[str, str, tuple[int, ...]]]:
    """Name, type and shape of the fields of a state record; blank if all zeros."""
    return [("units", "<f8", (features, NUMBERS)), ("unit_evidence", "<f4", (features, HYPOTHESES))]


def _unit_bytes(features: int) -> int:
    """The bytes of ``unit_fields``."""
    return features * (8 * NUMBERS + 4 * HYPOTHESES)


def follow(
    records: NDArray[np.uint8],
    begin: int,
    slots: NDArray[np.int64],
    starts: NDArray[np.int64],
    reset: NDArray[np.bool_],
    values: Floats,
) -> Followed:
    """Convert the values of A sensors, one sensor after the other. Steps their ``unit_fields`` in place.

    Args:
        records: (B, bytes), contiguous; begin: the first byte of ``unit_fields`` in a record.
        slots: (A,) the record of each sensor.
        starts: (A+1,) first step of each sensor, and the number of steps.
        reset: (M,) whether the sensor's state is blanked before the step; values: (M, F), NaN where missing.
    """
    values = np.ascontiguousarray(values, np.float64)
    own, factor, offset = np.empty(values.shape), np.empty(values.shape), np.empty(values.shape)
    outcome = np.empty(values.shape, np.int8)
    memory = np.empty(_unit_bytes(values.shape[1]), np.uint8)
    starts, reset = np.ascontiguousarray(starts, np.int64), np.ascontiguousarray(reset)
    unit_kernel.run(records, begin, slots, memory, starts, reset, values, own, factor, offset, outcome)
    return Followed(own, factor, offset, outcome, bool(factor.any()))


def follow_from_blank(starts: NDArray[np.int64], reset: NDArray[np.bool_], values: Floats) -> Followed:
    """``follow`` for A sensors from their first steps on."""
    sensors = len(starts) - 1
    blank = np.zeros((sensors, _unit_bytes(values.shape[1])), np.uint8)
    return follow(blank, 0, np.arange(sensors), starts, reset, values)


def in_own_units(starts: NDArray[np.int64], reset: NDArray[np.bool_], values: Floats) -> Floats:
    """(M, F) the values of whole sensors in their states' own units; ``values`` itself if they are all the same.

    Memory besides the result is bounded by the longest sensor.
    """
    own = values
    first = 0
    while first < len(starts) - 1:
        within = np.searchsorted(starts, starts[first] + _BLOCK_STEPS, side="right") - 1
        last = max(first + 1, int(within))  # sensors [first, last) are followed together
        lo, hi = int(starts[first]), int(starts[last])
        found = follow_from_blank(starts[first : last + 1] - lo, reset[lo:hi], values[lo:hi])
        if found.outcome.any():
            own = values.copy() if own is values else own
            own[lo:hi] = found.values
        first = last
    return own
