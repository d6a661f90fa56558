"""The compiled kernel of the adaptive baseline: recursive least squares, and its quantiles.

The weights' covariance P is kept as a root, P = root @ rootᵀ, which is positive semi-definite for any rounding of the
root. The update is Potter's (Bierman, "Factorization Methods for Discrete Sequential Estimation", 1977, ch. V).

Problems are computed one after the other, so a problem's result does not depend on the other problems of a call. All
compiled functions and their constants are in this file: numba compiles them again if this file changes.

Letters: n problems, T rounds, D regressors, A pending forecasts, O quantiles other than the median, h horizon steps.
"""

import math
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from .kernel import allocating

Floats = NDArray[np.float64]
Indexes = NDArray[np.int64]

PRIOR_VARIANCE: Final = 1.0  # first and largest variance of a weight, in squared scales; wide for regressors of size 1
FORGETTING: Final = 0.9995  # per label: a memory of some 2,000 steps
QUANTILE_RATE: Final = 0.02  # per error, relative change of a quantile's distance from the median after many errors
QUANTILE_YOUNG: Final = 20.0  # errors during which that rate is 1; it then falls as 1 / errors
SMALLEST_DISTANCE: Final = 1e-9  # units; a distance of 0 could not grow


def blank_root(regressors: int) -> Floats:
    """(D, D) root of the covariance before the first label."""
    return np.eye(regressors) * math.sqrt(PRIOR_VARIANCE)


@allocating
def update(root: Floats, weights: Floats, x: Floats, errors: Floats, forgetting: float) -> None:
    """Step the root and the weights of one problem by one label, in place.

    Without excitation, forgetting alone would let P grow until it overflows ("wind-up"). Therefore each weight's
    variance is kept at the prior's or below, by shrinking its row of the root.

    Args:
        root: (D, D); weights: (D, h); x: (D,) regressors.
        errors: (h,) label less prediction; 0 for a missing label, whose weights then stay.
        forgetting: factor of the past's weight per label, in (0, 1].
    """
    D, h = weights.shape
    f = np.zeros(D)  # rootᵀ x
    for i in range(D):
        for j in range(D):
            f[j] += x[i] * root[i, j]
    power = 0.0
    for j in range(D):
        power += f[j] * f[j]
    a = 1.0 / (forgetting + power)
    shrink = a / (1.0 + math.sqrt(forgetting * a))
    growth = 1.0 / math.sqrt(forgetting)
    for i in range(D):
        gain = 0.0  # (P x)_i
        for j in range(D):
            gain += root[i, j] * f[j]
        variance = 0.0
        for j in range(D):
            root[i, j] = (root[i, j] - gain * shrink * f[j]) * growth
            variance += root[i, j] * root[i, j]
        scale = min(1.0, math.sqrt(PRIOR_VARIANCE / max(variance, PRIOR_VARIANCE)))
        for j in range(D):
            root[i, j] *= scale
        for p in range(h):
            weights[i, p] += gain * a * errors[p]


@allocating
def _predict(weights: Floats, x: Floats, bound: Floats, to: Floats) -> None:
    """Fill ``to`` with the regressors (D,) times the weights (D, h), clipped to ``bound`` (h,)."""
    to[:] = 0.0
    for i in range(len(x)):
        for p in range(len(to)):
            to[p] += x[i] * weights[i, p]
    for p in range(len(to)):
        to[p] = max(min(to[p], bound[p]), -bound[p])


@allocating
def _learn_distances(
    labels: Floats, pending: Floats, errors: Indexes, distances: Floats, sides: Floats, shares: Floats
) -> None:
    """Move the quantiles of one problem by the errors of a forecast whose labels have come.

    A quantile moves outwards if the error lies beyond it, otherwise inwards; the moves balance at the quantile's level.
    A move is a share of the distance, not of the error, so that no error counts for more than another.
    """
    for p in range(len(labels)):
        error = labels[p] - pending[p]
        known = not math.isnan(error)
        if known:
            errors[p] += 1
        rate = min(max(QUANTILE_YOUNG / max(errors[p], 1), QUANTILE_RATE), 1.0) if known else 0.0
        for o in range(len(sides)):
            beyond = error * sides[o] if known else 0.0  # from the median outwards
            if known and errors[p] == 1:
                distances[o, p] = abs(beyond)
            else:
                distances[o, p] *= 1.0 + rate * ((1.0 if beyond > distances[o, p] else 0.0) - shares[o])
            distances[o, p] = max(distances[o, p], SMALLEST_DISTANCE if errors[p] > 0 else 0.0)


@allocating
def follow(
    lengths: Indexes, first: int, series: Any, bound: Floats, outer: Any, learned: Any, points: Floats, spread: Floats
) -> None:
    """Step every problem through its rounds: learn from the labels that have come, then forecast.

    Args:
        lengths: (n,) rounds of each problem.
        first: the first round whose forecasts are wanted.
        series: values, last and unit (n, h+T), x (n, h+T, D), slot (n, h+T); h rounds before, then T.
        bound: (h,) largest absolute forecast and label, in units.
        outer: sides and shares (O,) of the quantiles other than the median.
        learned: root (n, D, D), weights (n, D, h), pending (n, A, h), errors (n, h), distances (n, O, h); updated.
        points: (n, T-first, h) filled with the forecasts, in units.
        spread: (n, T-first, O, h) filled with the distances at each of them.
    """
    values, last, unit, x, slot = series
    sides, shares = outer
    root, weights, pending, errors, distances = learned
    h = len(bound)
    labels, missed = np.empty(h), np.empty(h)
    for i in range(len(lengths)):
        for r in range(lengths[i]):
            labelled = False
            for p in range(h):
                label = (values[i, r + 1 + p] - last[i, r]) / unit[i, r]
                if not math.isnan(label):
                    label = max(min(label, bound[p]), -bound[p])
                    labelled = True
                labels[p] = label
            if labelled:
                _predict(weights[i], x[i, r], bound, missed)
                for p in range(h):
                    missed[p] = 0.0 if math.isnan(labels[p]) else labels[p] - missed[p]
                update(root[i], weights[i], x[i, r], missed, FORGETTING)
                if slot[i, r] >= 0:
                    _learn_distances(labels, pending[i, slot[i, r]], errors[i], distances[i], sides, shares)
            _predict(weights[i], x[i, h + r], bound, missed)
            if slot[i, h + r] >= 0:
                pending[i, slot[i, h + r]] = missed
            if r >= first:
                points[i, r - first] = missed
                spread[i, r - first] = distances[i]


def prepare() -> None:
    """Compile ``follow``, or read it from disk, so that the first back-test does not wait for it."""
    two, three = np.zeros((0, 1)), np.zeros((0, 1, 1))
    none, number = np.zeros((0, 1), np.int64), np.zeros(1)
    learned = (three.copy(), three.copy(), three.copy(), none.copy(), three.copy())
    series = (two, two, two, three, none)
    follow(none[:, 0].copy(), 0, series, number, (number, number), learned, three.copy(), np.zeros((0, 1, 1, 1)))
