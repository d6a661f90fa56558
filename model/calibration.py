"""Online conformal calibration: each quantile's distance from the median is scaled until it covers what it says.

One factor per quantile level and point of the horizon is moved by quantile tracking in its logarithm: up when a label
fell outside, down when inside, in the proportion that is at rest at the nominal coverage. This is adaptive conformal
inference (Gibbs and Candès, 2021) in the form of quantile tracking (Angelopoulos, Candès and Tibshirani, "Conformal
PID control for time series prediction", 2023): the long-run coverage comes out right for any sequence of labels,
drifting or not, as long as the factors do not rest on their bounds. Before any label the factors are 1 and the model's
own quantiles stand.

Letters: n rows, Q quantiles, M points of the horizon, h horizon steps.
"""

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# Change of a log factor per label that falls outside: large at first, to come out of a badly wrong spread, then
# small, since every move widens or narrows intervals by chance too (decaying steps: Angelopoulos, Barber and Bates,
# 2024; never zero, for what drifts). Chosen on validation parts among 0.003-0.03.
STEP = 0.01  # times the root of the steps that a label stands for
FIRST_STEP = 0.05
STEP_LABELS = 10.0  # the step falls as this over the number of labels so far
LOG_BOUND = 5.0  # factors stay within 1/148 and 148: bounded whatever comes, yet room for a badly wrong spread


def step_size(count: NDArray[np.int64], stride: int) -> Floats:
    """(n,) how far a factor moves, after ``count`` labels of which each stands for ``stride`` steps."""
    size: Floats = np.maximum(STEP * math.sqrt(stride), np.minimum(FIRST_STEP, STEP_LABELS / (count + 1.0)))
    return size


def observe(log_factors: Floats, labels: Floats, quantiles: Floats, levels: tuple[float, ...], step: Floats) -> Floats:
    """(n, Q, M) log factors after one more label.

    Args:
        labels: (n, M), NaN where missing (the factors are kept); quantiles: (n, Q, M) as they were issued, in the
            labels' unit; levels: the Q quantile levels, 0.5 among them (its factor stays as it is); step: (n,) of
            ``step_size``.
    """
    level = np.array(levels)[:, None]  # (Q, 1)
    label = labels[:, None, :]
    outside = np.where(level > 0.5, label > quantiles, label < quantiles)
    tail = np.minimum(level, 1.0 - level)
    moved = log_factors + step[:, None, None] * np.where(level == 0.5, 0.0, outside - tail)
    return np.where(np.isnan(label), log_factors, np.clip(moved, -LOG_BOUND, LOG_BOUND))


def apply(quantiles: Floats, factors: Floats, median: int) -> Floats:
    """(..., Q, h) quantiles whose distances from the median (row ``median``) are multiplied by ``factors`` (..., Q, h).

    They never cross: each is at least as far out as its inner neighbour.
    """
    scaled: Floats = np.empty_like(quantiles)
    centre = quantiles[..., median, :]
    scaled[..., median, :] = centre
    for outwards in (range(median + 1, quantiles.shape[-2]), range(median - 1, -1, -1)):
        reach: Floats | None = None
        for level in outwards:
            distance = np.abs(quantiles[..., level, :] - centre) * factors[..., level, :]
            reach = distance if reach is None else np.maximum(reach, distance)
            scaled[..., level, :] = centre + reach if level > median else centre - reach
    return scaled
