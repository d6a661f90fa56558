"""Bounds of a target: no published quantile leaves them.

Bounds are in a state's own unit; ``model.published_unit`` converts them after a change of unit. They change nothing in
a state, and they reject no reading.

Letters: n forecasts, K targets, Q quantiles, h horizon steps.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_LARGEST: Final = 1e30  # absolute value of a reading that the stream accepts


@dataclass(frozen=True)
class Bounds:
    """The possible values of a target.

    Raises:
        ValueError: the bounds contradict each other, or one of them is not a number that a reading can have.
    """

    minimum: float | None = None
    maximum: float | None = None
    count: bool = False  # whole numbers only; the least is 0 unless ``minimum`` gives another

    def __post_init__(self) -> None:
        for name in ("minimum", "maximum"):
            value = getattr(self, name)
            if value is not None and not (type(value) in (int, float) and -_LARGEST <= value <= _LARGEST):
                raise ValueError(f"{name} must be a number within ±1e30, not {value!r}")
            if value is not None and self.count and value != round(value):
                raise ValueError(f"the {name} of a count must be a whole number, not {value:g}")
        if type(self.count) is not bool:
            raise ValueError(f"count must be true or false, not {self.count!r}")
        if self.lowest >= self.highest:
            least = f"minimum ({self.lowest:g})" if self.minimum is not None else "least value of a count (0)"
            raise ValueError(f"the {least} must lie below the maximum ({self.highest:g})")

    @property
    def lowest(self) -> float:
        """The least possible value; minus infinity without one."""
        if self.minimum is not None:
            return self.minimum
        return 0.0 if self.count else -math.inf

    @property
    def highest(self) -> float:
        """The largest possible value; infinity without one."""
        return math.inf if self.maximum is None else self.maximum

    @property
    def are_set(self) -> bool:
        """Whether any value is impossible."""
        return self != NO_BOUNDS

    def __str__(self) -> str:
        parts = [f"{name} {value:g}" for name in ("minimum", "maximum") if (value := getattr(self, name)) is not None]
        return ", ".join([*parts, "a count"] if self.count else parts) or "no bounds"


NO_BOUNDS = Bounds()


def counts(bounds: Sequence[Bounds]) -> list[int]:
    """The targets that are counts."""
    return [target for target, each in enumerate(bounds) if each.count]


def limits(bounds: Sequence[Bounds]) -> Floats:
    """(K, 2) least and largest possible value of each target, infinite without a bound."""
    return np.array([(each.lowest, each.highest) for each in bounds], np.float64).reshape(-1, 2)


def within_bounds(bounds: Sequence[Bounds], quantiles: Floats) -> Floats:
    """Quantiles (n, K, Q, h) in the unit of the bounds, moved to the nearest possible value; they stay in order.

    Without bounds the result is ``quantiles`` itself.

    Args:
        bounds: K, or none.
    """
    return within_limits(whole_counts(bounds, quantiles), limits(bounds)) if bounds else quantiles


def whole_counts(bounds: Sequence[Bounds], quantiles: Floats) -> Floats:
    """Quantiles (n, K, Q, h), those of counts rounded to whole numbers; without counts ``quantiles`` itself."""
    targets = counts(bounds)
    if not targets:
        return quantiles
    rounded = quantiles.copy()
    rounded[:, targets] = np.rint(rounded[:, targets])
    return rounded


def within_limits(quantiles: Floats, between: Floats) -> Floats:
    """Quantiles (n, K, Q, h), clipped to limits (K, 2) or (n, K, 2), in new memory; NaN stays NaN.

    An infinite quantile becomes NaN: it is the model's fault, which a bound must not hide.
    """
    low, high = between[..., 0, None, None], between[..., 1, None, None]
    kept: Floats = np.clip(quantiles, low, high) + 0.0  # -0.0 becomes 0.0
    kept[~np.isfinite(quantiles)] = np.nan
    return kept
