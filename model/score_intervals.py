"""Confidence intervals of scores, from resampled sensors (Efron, 1979).

Errors of one sensor depend on each other, across readings and across steps, so whole sensors are drawn, with
replacement. All predictors get the same draws, so that the interval of a difference between two predictors is narrower
than their own intervals.

Letters: R resamples, S sensors, h horizon steps.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from model.metrics import Floats, Metric, Scores

CONFIDENCE: Final = 0.95
_RESAMPLES: Final = 1_000
_RESAMPLES_OF_MANY: Final = 200  # with thousands of sensors the quantiles are smooth, and a draw takes a millisecond
_MANY_SENSORS: Final = 2_000
_SEED: Final = 0  # of the draws; equal scores give equal intervals
_DRAWS_TOGETHER: Final = 20  # all draws of 100,000 sensors at once would take gigabytes


@dataclass(frozen=True)
class Resampled:
    """A predictor's scaled means over resampled sensors."""

    by_step: Floats  # (R, h); NaN without a label
    overall: Floats  # (R,)


def resample(scores: Mapping[str, Scores], metric: Metric) -> dict[str, Resampled] | None:
    """Scaled means over resampled sensors by predictor; None if fewer than two sensors have labels.

    Args:
        scores: of one back-test, so that all predictors have the same labels.
        metric: the score to resample.
    """
    first = next(iter(scores.values()))
    has_labels = first.count.sum(axis=(1, 2)) > 0
    sensors = int(has_labels.sum())
    if sensors < 2:
        return None
    sums = [score.sums_by_sensor(metric)[has_labels] for score in scores.values()]
    labels = first.count.sum(axis=1)[has_labels].astype(np.float64)
    totals = _resampled_totals(np.stack([labels, *sums]))  # (1 + predictors, R, h)
    with np.errstate(invalid="ignore"):  # NaN without a label
        by_step = totals[1:] / totals[0]
        overall = totals[1:].sum(axis=2) / totals[0].sum(axis=1)
    return {name: Resampled(by_step[number], overall[number]) for number, name in enumerate(scores)}


def interval(values: Floats) -> tuple[float, float]:
    """The central interval that holds the share ``CONFIDENCE`` of resampled values."""
    tail = (1.0 - CONFIDENCE) / 2.0
    low, high = np.nanquantile(values, [tail, 1.0 - tail])
    return float(low), float(high)


def _resampled_totals(values: Floats) -> Floats:
    """(n, R, h): totals over the drawn sensors from ``values`` (n, S, h)."""
    random = np.random.default_rng(_SEED)
    count, sensors, horizon = values.shape
    resamples = _RESAMPLES if sensors < _MANY_SENSORS else _RESAMPLES_OF_MANY
    totals = np.empty((count, resamples, horizon))
    for start in range(0, resamples, _DRAWS_TOGETHER):
        part = totals[:, start : start + _DRAWS_TOGETHER]
        draws = [np.bincount(random.integers(sensors, size=sensors), minlength=sensors) for _ in range(part.shape[1])]
        part[:] = np.array(draws, np.float64) @ values
    return totals
