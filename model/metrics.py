"""Scores of quantile forecasts: how far the median is off, how good the quantiles are, how often intervals hold.

Letters: S sensors, n forecasts, K targets, Q quantiles, h horizon steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Metric = Literal["mae", "mse", "pinball", "coverage", "width"]

# The power of the sensor's unit that a metric is measured in: what dividing it by the sensor's scale takes.
_UNIT_POWER: Final[dict[Metric, int]] = {"mae": 1, "mse": 2, "pinball": 1, "coverage": 0, "width": 1}
METRICS: Final[tuple[Metric, ...]] = tuple(_UNIT_POWER)


def pinball(forecasts: Floats, labels: Floats, quantiles: Sequence[float]) -> Floats:
    """(n, K, h): the quantile loss, mean over quantiles (Koenker and Bassett, 1978), NaN where the label is.

    Args:
        forecasts: (n, K, Q, h); labels: (n, K, h).
    """
    total = np.zeros(labels.shape)
    for number, level in enumerate(quantiles):
        under = labels - forecasts[:, :, number]
        total += np.maximum(level * under, (level - 1.0) * under)
    return total / len(quantiles)


@dataclass(frozen=True)
class Scores:
    """Sums over the scored forecasts of one predictor, by sensor, target and horizon step, and what follows from them.

    All predictors of one back-test are scored on the same forecasts and labels, so their scores compare cell by cell.
    """

    sensors: tuple[str, ...]
    targets: tuple[str, ...]
    quantiles: tuple[float, ...]
    scale: Floats  # (S, K) by which errors are divided to compare sensors; positive
    count: NDArray[np.int64]  # (S, K, h) labels
    sums: dict[Metric, Floats]  # each (S, K, h), sensor units
    below: NDArray[np.int64]  # (S, K, Q, h) labels at or below each quantile

    @classmethod
    def nothing_yet(
        cls, sensors: tuple[str, ...], targets: tuple[str, ...], quantiles: tuple[float, ...], scale: Floats, h: int
    ) -> "Scores":
        """Before the first forecast."""
        shape = (len(sensors), len(targets), h)
        sums = {metric: np.zeros(shape) for metric in METRICS}
        below = np.zeros((*shape[:2], len(quantiles), h), np.int64)
        return cls(sensors, targets, quantiles, scale, np.zeros(shape, np.int64), sums, below)

    def add(self, sensor: int, forecasts: Floats, labels: Floats) -> None:
        """Count a sensor's ``forecasts`` (n, K, Q, h) against ``labels`` (n, K, h); NaN labels count nothing."""
        error = labels - forecasts[:, :, self.quantiles.index(0.5)]
        low, high = forecasts[:, :, 0], forecasts[:, :, -1]
        known = ~np.isnan(labels)
        self.count[sensor] += known.sum(axis=0)
        self.sums["mae"][sensor] += np.nansum(np.abs(error), axis=0)
        self.sums["mse"][sensor] += np.nansum(error * error, axis=0)
        self.sums["pinball"][sensor] += np.nansum(pinball(forecasts, labels, self.quantiles), axis=0)
        self.sums["coverage"][sensor] += ((labels >= low) & (labels <= high)).sum(axis=0)
        self.sums["width"][sensor] += np.where(known, high - low, 0.0).sum(axis=0)
        self.below[sensor] += (labels[:, :, None] <= forecasts).sum(axis=0)

    @property
    def n(self) -> NDArray[np.int64]:
        """(K, h) labels of all sensors."""
        labels: NDArray[np.int64] = self.count.sum(axis=0)
        return labels

    @property
    def nominal_coverage(self) -> float:
        """What the coverage of the outermost interval should be."""
        return self.quantiles[-1] - self.quantiles[0]

    def by_horizon(self, metric: Metric, *, scaled: bool = False) -> Floats:
        """(K, h): the mean over all labels of all sensors; in the targets' own units unless ``scaled``."""
        return _mean(self._sums(metric, scaled).sum(axis=0), self.count.sum(axis=0))

    def by_sensor(self, metric: Metric, *, scaled: bool = True) -> Floats:
        """(S,): each sensor's mean over targets and horizon steps; NaN where it has no label."""
        return _mean(self._sums(metric, scaled).sum(axis=(1, 2)), self.count.sum(axis=(1, 2)))

    def mean(self, metric: Metric, *, scaled: bool = True, horizon: int | None = None) -> float:
        """One number: over all labels, or those ``horizon`` steps ahead.

        Errors are divided by the scale of their sensor and target first (squared for ``mse``), so that no sensor counts
        for more because of its unit. Without ``scaled`` they are averaged in their own units, which only means
        something where all have the same.
        """
        steps = slice(None) if horizon is None else slice(horizon - 1, horizon)
        return float(_mean(self._sums(metric, scaled)[..., steps].sum(), self.count[..., steps].sum()))

    def calibration(self) -> Floats:
        """(K, Q): the share of labels at or below each quantile, which should be the quantile's level."""
        return _mean(self.below.sum(axis=(0, 3)), self.count.sum(axis=(0, 2))[:, None])

    def worst_sensors(self, metric: Metric = "pinball", limit: int = 5) -> list[tuple[str, float]]:
        """The sensors with the largest scaled mean, worst first; those without labels are left out."""
        means = self.by_sensor(metric)
        order = np.argsort(-means, kind="stable")
        return [(self.sensors[i], float(means[i])) for i in order[:limit] if not np.isnan(means[i])]

    def _sums(self, metric: Metric, scaled: bool) -> Floats:
        if not scaled:
            return self.sums[metric]
        return self.sums[metric] / self.scale[:, :, None] ** _UNIT_POWER[metric]


def _mean(total: Floats | NDArray[np.int64], count: NDArray[np.int64]) -> Floats:
    with np.errstate(invalid="ignore"):  # no label: not a number
        return np.asarray(total / count)
