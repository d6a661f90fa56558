"""The compiled core of the learning baseline: recursive least squares, and quantiles around what they forecast.

The covariance P of the weights is held as a root: P = root @ rootᵀ, which is positive semi-definite whatever is rounded
away. The update is Potter's (Bierman, "Factorization Methods for Discrete Sequential Estimation", 1977, ch. V).

Problems are taken one after the other, each by itself, so its result does not depend on which others share the call.
All that is compiled for them stands in this file, with its constants: numba keeps it on disk for this file's content.

Letters: n problems, T rounds, D regressors, A forecasts kept, O quantiles beside the median, h horizon steps.
"""

import math
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from .kernel import compiled

Floats = NDArray[np.float64]
Indexes = NDArray[np.int64]

PRIOR_VARIANCE: Final = 1.0  # of each weight, in squared scales: wide for regressors of order one, and the bound
FORGETTING: Final = 0.9995  # per label: a memory of some 2,000 steps
QUANTILE_RATE: Final = 0.02  # per error, by which a quantile's distance from the median moves once it is settled
QUANTILE_YOUNG: Final = 20.0  # errors; before, it moves by as much as it may, since the first error may have been any
SMALLEST_DISTANCE: Final = 1e-9  # units


def blank_root(regressors: int) -> Floats:
    """(D, D) root of the covariance before any label."""
    return np.eye(regressors) * math.sqrt(PRIOR_VARIANCE)


@compiled
def update(root: Floats, weights: Floats, x: Floats, errors: Floats, forgetting: float) -> None:
    """Root and weights of one problem after one more label, in place.

    Without excitation, forgetting alone would let P grow until it overflows ("wind-up"). Each weight's variance is
    therefore held at the prior's: its row of the root is shrunk, which keeps P positive semi-definite.

    Args:
        root: (D, D); weights: (D, h); x: (D,); errors: (h,) label less prediction, 0 where the label is missing (its
            weights then stay); forgetting: in (0, 1], 1 forgets nothing.
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


@compiled
def _predict(weights: Floats, x: Floats, bound: Floats, to: Floats) -> None:
    """Regressors times weights (D, h), held to ``bound`` (h,)."""
    to[:] = 0.0
    for i in range(len(x)):
        for p in range(len(to)):
            to[p] += x[i] * weights[i, p]
    for p in range(len(to)):
        to[p] = max(min(to[p], bound[p]), -bound[p])


@compiled
def _learn_distances(
    labels: Floats, pending: Floats, errors: Indexes, distances: Floats, sides: Floats, shares: Floats
) -> None:
    """Move the quantiles of one problem by the errors of a forecast whose labels have come.

    Outwards where the error lay beyond a quantile, inwards where it did not, in balance at the quantile's level; by a
    share of the distance rather than of the error, so that no error counts for more than another.
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


@compiled
def follow(
    lengths: Indexes,
    earliest: int,
    series: Any,
    bound: Floats,
    outer: Any,
    learned: Any,
    points: Floats,
    spread: Floats,
) -> None:
    """Step every problem through its rounds: learn from the labels that have come, then forecast.

    Args:
        lengths: (n,) rounds of each problem.
        earliest: the first round whose forecasts are asked for.
        series: values, last and unit (n, h+T), x (n, h+T, D), slot (n, h+T); the first h are the rounds before.
        bound: (h,) of forecasts and labels, in units.
        outer: sides and shares (O,) of the quantiles beside the median.
        learned: root (n, D, D), weights (n, D, h), pending (n, A, h), errors (n, h), distances (n, O, h), in place.
        points: (n, T-earliest, h), filled. spread: (n, T-earliest, O, h), the distances then, filled.
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
            if r >= earliest:
                points[i, r - earliest] = missed
                spread[i, r - earliest] = distances[i]


def prepare() -> None:
    """Compile ``follow``, or read what was compiled before: otherwise the first back-test would take as long."""
    two, three = np.zeros((0, 1)), np.zeros((0, 1, 1))
    none, number = np.zeros((0, 1), np.int64), np.zeros(1)
    learned = (three.copy(), three.copy(), three.copy(), none.copy(), three.copy())
    series = (two, two, two, three, none)
    follow(none[:, 0].copy(), 0, series, number, (number, number), learned, three.copy(), np.zeros((0, 1, 1, 1)))
