"""The naive baselines: repeat the last value or the last season; and the scale of scaled errors.

Letters: n steps, K targets, Q quantiles, h horizon steps, S sensors.
"""

from abc import ABC, abstractmethod
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from .bounds import within_bounds
from .config import ModelConfig
from .sequences import Sequences

Floats = NDArray[np.float64]

# Largest number of steps whose residuals are used, in total and per sensor: enough for their quantiles.
_FIT_STEPS: Final = 500_000
_FIT_STEPS_PER_SENSOR: Final = 2_048
_FIT_BLOCK_STEPS: Final = 64
# Fraction of a sensor's largest value. A spread below it is a rounding error: the mean of millions of equal float64
# numbers is off by less.
_ROUNDING: Final = 1e-12
# A smaller spread counts as 0: squares of errors, over the square of such a spread, would not be finite.
_SMALLEST_SPREAD: Final = 1e-100
# The robust scale may clip the largest differences of a sensor: this share of them or this number, the larger of both,
# and at most a fifth. One absurd value makes two differences.
_CLIPPED_SHARE: Final = 0.01
_FEWEST_CLIPPED: Final = 4
# Clipping begins at this multiple of the largest other difference. Sensors without absurd values keep their scale: of
# 10,000 normally or exponentially distributed differences none is that large.
_CLIP_FACTOR: Final = 4.0


class NaiveForecast(ABC):
    """A point forecast by a rule, with quantiles from the rule's errors on the training part.

    The median is the rule's point. The other quantiles lie as far from it as the residuals' quantiles from their
    median, by sensor, target and horizon step; a sensor without residuals gets the mean over the other sensors.
    Before ``fit`` all quantiles are the point, and NaN until the sensor has a value. Bounds of the target are kept.
    """

    name: str

    def __init__(self, config: ModelConfig) -> None:
        self._config = config
        self._horizons = np.arange(1, config.horizon_steps + 1)
        shape = (config.target_count, len(config.quantiles), config.horizon_steps)
        self._offsets: dict[str, Floats] = {}
        self._unknown_offsets = np.zeros(shape)
        self._level = np.full(config.target_count, np.nan)

    def fit(self, sequences: Sequences, until_us: int) -> Self:
        """Learn the quantiles from the steps before ``until_us``; their labels lie before it, too."""
        sensors = range(len(sequences.sensors))
        columns = sequences.columns(self._config.targets)
        limit = min(_FIT_STEPS_PER_SENSOR, max(_FIT_BLOCK_STEPS, _FIT_STEPS // max(len(sensors), 1)))
        for sensor in sensors:
            lo, hi = sequences.span(sensor, None, until_us)
            residuals = [
                sequences.labels(start, end, self._horizons, columns, until_us) - self._points(sequences, start, end)
                for start, end in _blocks(lo, hi, limit)
            ]
            if residuals:
                self._offsets[sequences.sensors[sensor]] = self._around_median(np.concatenate(residuals))
        if self._offsets:
            self._unknown_offsets = np.mean(list(self._offsets.values()), axis=0)
        self._level = mean_levels(sequences, self._config, until_us)
        return self

    def forecasts(self, sequences: Sequences, sensor: int, lo: int, hi: int) -> Floats:
        """(hi-lo, K, Q, h) after each of a sensor's steps [lo, hi)."""
        points = self._points(sequences, lo, hi)
        points = np.where(np.isnan(points), self._level[:, None], points)
        offsets = self._offsets.get(sequences.sensors[sensor], self._unknown_offsets)
        return within_bounds(self._config.bounds, points[:, :, None, :] + offsets)

    @abstractmethod
    def _points(self, sequences: Sequences, lo: int, hi: int) -> Floats:
        """(hi-lo, K, h) by the rule; NaN until the sensor has a value."""

    def _last_values(self, sequences: Sequences, lo: int, hi: int) -> Floats:
        """(hi-lo, K): the last value at or before each step."""
        first = int(sequences.starts[np.searchsorted(sequences.starts, lo, side="right") - 1])
        columns = sequences.columns(self._config.targets)
        values = np.empty((hi - lo, len(columns)))
        for number, column in enumerate(columns):
            series = sequences.values[:hi, column]
            begin = _last_finite(series, first, lo)
            stretch = series[begin:hi]
            latest = np.maximum.accumulate(np.where(np.isnan(stretch), 0, np.arange(len(stretch))))
            values[:, number] = stretch[latest][lo - begin :]
        return values

    def _around_median(self, residuals: Floats) -> Floats:
        """(K, Q, h): quantiles of the residuals (n, K, h) less their median; 0 without residuals."""
        ordered = np.sort(residuals, axis=0)  # NaN last
        count = (~np.isnan(residuals)).sum(axis=0)
        offsets = np.zeros(self._unknown_offsets.shape)
        for number, level in enumerate(self._config.quantiles):
            place = np.maximum(count - 1, 0) * level
            below = place.astype(np.int64)
            above = np.minimum(below + 1, np.maximum(count - 1, 0))
            left = np.take_along_axis(ordered, below[None], axis=0)[0]
            right = np.take_along_axis(ordered, above[None], axis=0)[0]
            offsets[:, number] = left + (right - left) * (place - below)
        offsets -= offsets[:, self._config.median_index, None].copy()
        return np.nan_to_num(offsets)


class Persistence(NaiveForecast):
    """Forecasts the last value for every horizon step."""

    name = "persistence"

    def _points(self, sequences: Sequences, lo: int, hi: int) -> Floats:
        return np.repeat(self._last_values(sequences, lo, hi)[:, :, None], self._config.horizon_steps, axis=2)


class SeasonalNaive(NaiveForecast):
    """Forecasts the value at the same time of the last season.

    A horizon beyond one season repeats that season. If no value was read at that time, the last value is used.
    """

    name = "seasonal naive"

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        lags = -self._horizons % config.season_steps  # steps from now back to the same time of the season
        self._lags, self._lag_of_horizon = np.unique(lags, return_inverse=True)

    def _points(self, sequences: Sequences, lo: int, hi: int) -> Floats:
        index = sequences.nearest_step(lo, hi, -self._lags)
        columns = sequences.columns(self._config.targets)
        seasonal = sequences.values_at(index, columns)[:, :, self._lag_of_horizon]
        return np.where(np.isnan(seasonal), self._last_values(sequences, lo, hi)[:, :, None], seasonal)


def mean_levels(sequences: Sequences, config: ModelConfig, until_us: int) -> Floats:
    """(K,): each target's mean over the sensors' means before ``until_us``; 0 without a value."""
    columns = sequences.columns(config.targets)
    spans = [sequences.span(sensor, None, until_us) for sensor in range(len(sequences.sensors))]
    means = np.array([[_finite_mean(sequences.values[lo:hi, column]) for lo, hi in spans] for column in columns])
    return np.asarray(np.nan_to_num(np.array([_finite_mean(row) for row in means])))


def seasonal_scale(sequences: Sequences, config: ModelConfig, until_us: int, *, robust: bool = False) -> Floats:
    """(S, K): mean absolute difference of values one season apart, before ``until_us``; positive.

    It is the denominator of the mean absolute scaled error (Hyndman and Koehler, 2006), seasonal form. If a sensor has
    no such difference, or ``is_constant``, its mean absolute deviation is used, then the median over the other sensors,
    then 1.

    Args:
        robust: clip the few largest differences, so that an absurd value does not inflate its sensor's scale. This is
            not the published definition, which it equals for a sensor without absurd values.
    """
    columns = sequences.columns(config.targets)
    scale = np.full((len(sequences.sensors), len(columns)), np.nan)
    mean = _clipped_mean if robust else _finite_mean
    for sensor in range(len(sequences.sensors)):
        lo, hi = sequences.span(sensor, None, until_us)
        if hi <= lo:
            continue
        earlier = sequences.values_at(sequences.nearest_step(lo, hi, [-config.season_steps]), columns)[:, :, 0]
        values = sequences.values[lo:hi, columns]
        for number in range(len(columns)):
            series = values[:, number]
            differences = mean(np.abs(series - earlier[:, number]))
            deviation = mean(np.abs(series - (_finite_median(series) if robust else _finite_mean(series))))
            found = [spread for spread in (differences, deviation) if not is_constant(spread, series, robust=robust)]
            scale[sensor, number] = found[0] if found else np.nan
    for column in scale.T:
        known = column[~np.isnan(column)]
        column[np.isnan(column)] = np.median(known) if len(known) else 1.0
    return scale


def is_constant(spread: float, series: Floats, *, robust: bool = False) -> bool:
    """Whether the ``spread`` of (n,) values, NaN where missing, is 0, due to rounding, or too small to divide by.

    The mean of equal numbers is often off by the last digit. Errors in units of that digit would outweigh all errors of
    other sensors.

    Args:
        robust: compare the spread with the median of the absolute values instead of the largest one.
    """
    size = np.abs(series)
    largest = _finite_median(size) if robust else float(np.fmax.reduce(size, initial=0.0))
    return not spread > max(_ROUNDING * np.nan_to_num(largest), _SMALLEST_SPREAD)


def _blocks(lo: int, hi: int, limit: int) -> list[tuple[int, int]]:
    """Blocks of consecutive steps, evenly spaced over [lo, hi), with at most ``limit`` steps in all."""
    if hi - lo <= limit:
        return [(lo, hi)] if hi > lo else []
    starts = np.linspace(lo, hi - _FIT_BLOCK_STEPS, limit // _FIT_BLOCK_STEPS).astype(int)
    return [(start, start + _FIT_BLOCK_STEPS) for start in starts.tolist()]


def _finite_mean(values: Floats) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


def _finite_median(values: Floats) -> float:
    known = values[~np.isnan(values)]
    return float(np.median(known)) if len(known) else float("nan")


def _clipped_mean(differences: Floats) -> float:
    """The mean of (n,) differences, NaN where missing, after the few largest are clipped.

    If all other differences are 0, nothing is clipped: the large ones are the sensor's rare events.
    """
    known = differences[~np.isnan(differences)]
    clipped = min(max(round(len(known) * _CLIPPED_SHARE), _FEWEST_CLIPPED), len(known) // 5)
    if clipped:
        largest_other = np.partition(known, len(known) - 1 - clipped)[len(known) - 1 - clipped]
        if largest_other > 0.0:
            known = np.minimum(known, _CLIP_FACTOR * largest_other)
    return _finite_mean(known)


def _last_finite(series: Floats, first: int, lo: int) -> int:
    """The last step from ``first`` to ``lo``, both included, that has a value; otherwise ``first``."""
    reach = 1
    end = lo + 1
    while end > first:
        begin = max(first, end - reach)
        found = np.flatnonzero(~np.isnan(series[begin:end]))
        if len(found):
            return begin + int(found[-1])
        end, reach = begin, 2 * reach
    return first
