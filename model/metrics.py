"""Scores of quantile forecasts: errors of the median, quantile losses, coverage of intervals.

Letters: S sensors, n forecasts, K targets, Q quantiles, I intervals, h horizon steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Metric = Literal["mse", "mae", "pinball", "mase", "crps", "coverage", "winkler", "width"]

# The power of the sensor's unit in each metric; a scaled metric is divided by that power of the sensor's scale.
_UNIT_POWER: Final[dict[Metric, int]] = {
    "mse": 2,  # mean squared error of the median
    "mae": 1,  # mean absolute error of the median
    "pinball": 1,
    "mase": 0,  # mae over the mae of the seasonal-naive forecast before the test part (Hyndman and Koehler, 2006)
    "crps": 1,
    "coverage": 0,  # coverage of the outermost interval
    "winkler": 1,  # width of the outermost interval, plus a penalty for labels outside (Winkler, 1972)
    "width": 1,  # width of the outermost interval
}
METRICS: Final[tuple[Metric, ...]] = tuple(_UNIT_POWER)
_SUMMED: Final[tuple[Metric, ...]] = ("mse", "mae", "pinball", "crps", "winkler", "width")
# From this many sensors on, the worst coverage is the mean of the worst tenth: one of many sensors is an outlier by
# chance.
_SENSORS_FOR_DECILE: Final = 20


def quantile_losses(forecasts: Floats, labels: Floats, quantiles: Sequence[float]) -> Floats:
    """(n, K, Q, h): the loss of each quantile (Koenker and Bassett, 1978); NaN for a NaN label.

    Args:
        forecasts: (n, K, Q, h); labels: (n, K, h).
    """
    levels = np.array(quantiles)[:, None]
    under = labels[:, :, None] - forecasts
    return np.maximum(levels * under, (levels - 1.0) * under)


def crps_weights(quantiles: Sequence[float]) -> Floats:
    """(Q,): weights of the quantiles' losses in the continuous ranked probability score; they sum to 2.

    The score is twice the integral of the quantile loss over all levels from 0 to 1. Each quantile stands for the
    levels nearest to it, so the score of a median alone is its absolute error.
    """
    levels = np.array(quantiles)
    edges = np.concatenate([[0.0], (levels[1:] + levels[:-1]) / 2.0, [1.0]])
    return np.asarray(2.0 * np.diff(edges))


def winkler(low: Floats, high: Floats, labels: Floats, nominal: float) -> Floats:
    """The interval score: width plus 2 / (1 - ``nominal``) times the label's distance from the interval."""
    outside = np.maximum(low - labels, 0.0) + np.maximum(labels - high, 0.0)
    return np.asarray(high - low + outside * 2.0 / (1.0 - nominal))


@dataclass(frozen=True)
class Interval:
    """The coverage of the interval between two quantiles: the share of labels within it."""

    nominal: float  # the difference of the quantiles' levels
    overall: float  # share of all sensors' labels within the interval
    worst: float  # mean coverage of the worst sensor, or of the worst tenth if there are 20 sensors or more
    worst_off: float  # mean |coverage - nominal| of the same sensors


@dataclass(frozen=True)
class Scores:
    """Sums over one predictor's scored forecasts, by sensor, target and horizon step; and means of them.

    All predictors of one back-test are scored at the same readings and labels, so their scores can be compared.
    """

    sensors: tuple[str, ...]
    targets: tuple[str, ...]
    quantiles: tuple[float, ...]
    scale: Floats  # (S, K) divisor of errors in scaled means; positive
    season: Floats  # (S, K) mae of the seasonal-naive forecast before the test part, the unit of ``mase``; positive
    count: NDArray[np.int64]  # (S, K, h) labels
    sums: dict[Metric, Floats]  # each (S, K, h), sensor units
    inside: NDArray[np.int64]  # (S, K, I, h) labels in each interval, the outermost first
    below: NDArray[np.int64]  # (S, K, Q, h) labels at or below each quantile

    @classmethod
    def empty(
        cls,
        sensors: tuple[str, ...],
        targets: tuple[str, ...],
        quantiles: tuple[float, ...],
        scale: Floats,
        h: int,
        season: Floats | None = None,
    ) -> "Scores":
        """The scores before the first forecast; by default ``season`` equals ``scale``."""
        S, K, Q = len(sensors), len(targets), len(quantiles)
        return cls(
            sensors=sensors,
            targets=targets,
            quantiles=quantiles,
            scale=scale,
            season=scale if season is None else season,
            count=np.zeros((S, K, h), np.int64),
            sums={metric: np.zeros((S, K, h)) for metric in _SUMMED},
            inside=np.zeros((S, K, max(Q // 2, 1), h), np.int64),
            below=np.zeros((S, K, Q, h), np.int64),
        )

    def add(self, sensor: int, forecasts: Floats, labels: Floats) -> None:
        """Add a sensor's ``forecasts`` (n, K, Q, h) and ``labels`` (n, K, h); a NaN label does not count."""
        error = labels - forecasts[:, :, self.quantiles.index(0.5)]
        low, high = forecasts[:, :, 0], forecasts[:, :, -1]
        known = ~np.isnan(labels)
        self.count[sensor] += known.sum(axis=0)
        self.sums["mae"][sensor] += np.nansum(np.abs(error), axis=0)
        self.sums["mse"][sensor] += np.nansum(error * error, axis=0)
        losses = np.nansum(quantile_losses(forecasts, labels, self.quantiles), axis=0)  # (K, Q, h)
        self.sums["pinball"][sensor] += losses.mean(axis=1)
        self.sums["crps"][sensor] += (losses * crps_weights(self.quantiles)[:, None]).sum(axis=1)
        self.sums["winkler"][sensor] += np.nansum(winkler(low, high, labels, self.nominal_coverage), axis=0)
        self.sums["width"][sensor] += np.where(known, high - low, 0.0).sum(axis=0)
        for number in range(self.inside.shape[2]):
            low, high = forecasts[:, :, number], forecasts[:, :, -1 - number]
            self.inside[sensor, :, number] += ((labels >= low) & (labels <= high)).sum(axis=0)
        self.below[sensor] += (labels[:, :, None] <= forecasts).sum(axis=0)

    @property
    def n(self) -> NDArray[np.int64]:
        """(K, h): number of labels of all sensors."""
        return np.asarray(self.count.sum(axis=0))

    @property
    def nominal_coverage(self) -> float:
        """The nominal coverage of the outermost interval."""
        return self.quantiles[-1] - self.quantiles[0]

    def by_horizon(self, metric: Metric) -> Floats:
        """(K, h): the mean over all labels of all sensors, in the targets' own units."""
        return _mean(self._sums(metric, scaled=False).sum(axis=0), self.count.sum(axis=0))

    def pooled(self, metric: Metric) -> Floats:
        """(h,): the scaled mean over all labels of all sensors and targets, by horizon step."""
        return _mean(self._sums(metric, scaled=True).sum(axis=(0, 1)), self.count.sum(axis=(0, 1)))

    def by_sensor(self, metric: Metric) -> Floats:
        """(S,): each sensor's scaled mean over targets and horizon steps; NaN where it has no label."""
        return _mean(self._sums(metric, scaled=True).sum(axis=(1, 2)), self.count.sum(axis=(1, 2)))

    def mean(self, metric: Metric, *, scaled: bool = True, horizon: int | None = None) -> float:
        """The mean over all labels, or over the labels ``horizon`` steps ahead; NaN without a label.

        Errors are first divided by the scale of their sensor and target (squared for ``mse``), so that no sensor counts
        for more because of its unit. A mean that is not ``scaled`` makes sense only if all have the same unit.
        """
        steps = slice(None) if horizon is None else slice(horizon - 1, horizon)
        return float(_mean(self._sums(metric, scaled)[..., steps].sum(), self.count[..., steps].sum()))

    def calibration(self) -> Floats:
        """(K, Q): the share of labels at or below each quantile; ideally the quantile's level."""
        return _mean(self.below.sum(axis=(0, 3)), self.count.sum(axis=(0, 2))[:, None])

    def intervals(self) -> list[Interval]:
        """Coverage of the intervals between the i-th lowest and i-th highest quantile, outermost first."""
        labels = self.count.sum(axis=(1, 2))
        found = []
        for number in range(len(self.quantiles) // 2):
            inside = self.inside[:, :, number].sum(axis=(1, 2))
            nominal = self.quantiles[-1 - number] - self.quantiles[number]
            coverage = _mean(inside, labels)[labels > 0]
            off = np.abs(coverage - nominal)
            worst = np.argsort(-off, kind="stable")[: len(off) // 10 if len(off) >= _SENSORS_FOR_DECILE else 1]
            if not len(worst):
                continue
            overall = float(_mean(inside.sum(), labels.sum()))
            found.append(Interval(nominal, overall, float(coverage[worst].mean()), float(off[worst].mean())))
        return found

    def sums_by_sensor(self, metric: Metric) -> Floats:
        """(S, h): each sensor's scaled sum over targets and labels, by horizon step; ``count`` has the labels."""
        return np.asarray(self._sums(metric, scaled=True).sum(axis=1))

    def worst_sensors(self, metric: Metric = "pinball", limit: int = 5) -> list[tuple[str, float]]:
        """At most ``limit`` sensors with labels and their scaled mean, the largest mean first."""
        means = self.by_sensor(metric)
        order = np.argsort(-means, kind="stable")
        return [(self.sensors[i], float(means[i])) for i in order[:limit] if not np.isnan(means[i])]

    def _sums(self, metric: Metric, scaled: bool) -> Floats:
        if metric == "coverage":
            return self.inside[:, :, 0].astype(np.float64)
        if metric == "mase":
            return self.sums["mae"] / self.season[:, :, None]
        if not scaled:
            return self.sums[metric]
        return self.sums[metric] / self.scale[:, :, None] ** _UNIT_POWER[metric]


def skill(ours: Scores, theirs: Scores, metric: Metric, horizon: int | None = None) -> float:
    """1 less the ratio of our mean to theirs: 1 is perfect, negative is worse; NaN if theirs is 0."""
    reference = theirs.mean(metric, horizon=horizon)
    return 1.0 - ours.mean(metric, horizon=horizon) / reference if reference else float("nan")


def _mean(total: Floats | NDArray[np.int64], count: NDArray[np.int64]) -> Floats:
    with np.errstate(invalid="ignore"):  # NaN without a label
        return np.asarray(total / count)
