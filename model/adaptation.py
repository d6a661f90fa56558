"""Adaptation between retrainings: a mixture of experts per sensor and target, learned online.

Level ``off`` has one expert, the GRU. The other levels have nine: persistence, seasonal naive, the GRU, the GRU shrunk
towards a slow seasonal profile, four corrections, learned by recursive least squares, of persistence, of a slow and of
a quick seasonal profile, and of the GRU, and an autoregression of the last changes. The corrections share one set of
regressors, hence one covariance. Level ``full`` adds two experts that also see the GRU's hidden state. The mixture's
median replaces the GRU's. The quantiles around it are a mixture, too: of the GRU's, resized and calibrated, and of the
mixture's own past errors.

Labels are delayed: a step of a forecast is scored when its value is read, and corrections learn from a forecast after
all of its h steps have been read. Every ``stride``-th forecast is kept until then, so that at most ``PENDING`` are
pending for any horizon. Corrections are learned at up to ``LEARN_POINTS`` points of the horizon, and losses are kept at
up to twice ``LOSS_POINTS``; other steps are interpolated. The state's size is therefore bounded; only its labels grow
with the horizon (9 bytes per step and target).

A reset blanks the state. Each target has a grid of points in time, a cadence apart. A point without a value gets a
replacement. If a point has several values, each gets a forecast, and only the first is learned from. ``model.kernel``
computes the steps; it mixes neither sensors nor targets.

Letters: A sensors, B records, M steps, n forecasts, F features, K targets, Q quantiles, h horizon steps, H hidden,
E experts.
"""

import math
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import kernel
from .experts import BASES, CORRECTED_BASES, AdaptationConfig, Floats, Indexes, adaptation_dtype

Bools = NDArray[np.bool_]


class AdaptedSteps(NamedTuple):
    """M steps of A sensors, sensor by sensor, as ``step_plan.StepPlan`` has them."""

    slots: Indexes  # (A,) the row of each sensor in the records
    starts: Indexes  # (A+1,) first step of each sensor, and M
    reset: Bools  # (M,) whether the sensor's state is reset before the step
    timestamp_us: Indexes  # (M,)
    values: Floats  # (M, F), NaN where missing
    hidden: NDArray[np.float32]  # (M, H) hidden state of the last layer after the step; (0, H) if no expert sees it
    forecast: Indexes  # (M,) the row in ``quantiles`` of the forecast issued at the step; -1 for a missing step
    quantiles: Floats  # (n, K, Q, h) the model's forecasts, in the sensor's unit


class Adapter:
    """Adapts the forecasts of one model's sensors. Several threads may use it, each for records of its own.

    Args:
        columns: (K,) the targets among the features.
        begin: the first byte of adaptation's record in a sensor's record, which ends with it.
    """

    def __init__(self, config: AdaptationConfig, columns: Sequence[int], begin: int = 0) -> None:
        size, places, tables = _kernel_arguments(config)
        self._experts = size.experts
        self._size = size
        self._record_bytes = adaptation_dtype(config).itemsize
        self._constant = (tuple(size), tuple(places), np.array(columns, np.int64), begin)
        self._tables = tables
        self._idle = [kernel.scratch(size, self._record_bytes)]  # scratch arrays that no call uses

    def adapt(self, records: NDArray[np.uint8], steps: AdaptedSteps) -> tuple[Floats, Floats]:
        """The model's forecasts, adapted, and the weights (n, K, E) of the experts, averaged over the horizon.

        A non-finite forecast of the model gives NaN.

        Args:
            records: (B, bytes), contiguous; stepped in place.
        """
        quantiles = np.empty(steps.quantiles.shape)
        weights = np.empty((*quantiles.shape[:2], self._experts))
        try:  # not a test of the length first: another thread could pop between the test and this line
            scratch = self._idle.pop()
        except IndexError:  # other threads use all of them
            scratch = kernel.scratch(self._size, self._record_bytes)
        kernel.run(*self._constant, records, *steps, quantiles, weights, *self._tables, *scratch)
        self._idle.append(scratch)
        return quantiles, weights


@cache
def _kernel_arguments(config: AdaptationConfig) -> tuple[kernel.Sizes, kernel.Places, kernel.Tables]:
    """The constant arguments of the compiled kernel."""
    season = config.season_steps
    learnt_steps = kernel.LEARNT_STEPS * max(1.0, config.horizon_steps / kernel.LEARNT_HORIZON)
    size = kernel.Sizes(
        targets=config.targets,
        horizon=config.horizon_steps,
        season=season,
        remembered=config.remembered,
        quantiles=len(config.levels),
        median=config.median,
        experts=len(config.experts),
        gru=config.experts.index("gru"),
        learn_points=len(config.learn_points),
        loss_points=len(config.loss_points),
        slots=config.slots,
        stride=config.stride,
        groups=config.groups,
        hidden_regressors=config.hidden_regressors,
        cadence_us=config.cadence_us,
        calibrated=config.calibrated,
        quick_rate=min(kernel.LEVEL_RATE_BOUND, 4.0 / season),
        season_rate=min(kernel.LEVEL_RATE_BOUND, 1.0 / season),
        forgetting=(1.0 - 1.0 / learnt_steps) ** config.stride,
        recent_rate=config.recent_rate,
    )
    begins, place = {}, 0
    for name, kind, shape in config.fields:
        width = np.dtype(kind).itemsize
        begins[name] = place // width
        place += int(np.prod(shape, dtype=np.int64)) * width
    places = kernel.Places(*(begins.get(name, 0) for name in kernel.Places._fields))
    bases = np.full((len(CORRECTED_BASES), len(BASES)), -1, np.int64)
    for group, chosen in enumerate(CORRECTED_BASES):
        bases[group, : len(chosen)] = chosen
    log_discounts, rates = _loss_rates(config)
    loss_left, loss_share = _interpolation(config.loss_points, config.horizon_steps)
    learn_left, learn_share = _interpolation(config.learn_points, config.horizon_steps)
    tables = kernel.Tables(
        levels=np.array(config.levels),
        mirrors=_mirrors(config.levels),
        log_prior=np.log(config.prior),
        projection=config.projection,
        loss_points=config.loss_points,
        log_discounts=log_discounts,
        rates=rates,
        learn_points=config.learn_points,
        loss_left=loss_left,
        loss_share=loss_share,
        learn_left=learn_left,
        learn_share=learn_share,
        cosines=_cosines(),
        bases=bases,
    )
    return size, places, tables


def _loss_rates(config: AdaptationConfig) -> tuple[Floats, Floats]:
    """(L,) ``log_discounts`` and ``rates`` of the kernel's tables."""
    independent_steps = np.maximum((config.loss_points + 1) / kernel.INDEPENDENT_PART, 1.0)
    memory_steps = kernel.MEMORY_LABELS * independent_steps**kernel.MEMORY_GROWTH
    log_discounts = config.stride * np.log1p(-1.0 / memory_steps)
    labels = config.stride / -np.expm1(log_discounts) / independent_steps  # independent labels in a full memory
    return log_discounts, kernel.RATE * labels


def _mirrors(levels: tuple[float, ...]) -> Indexes:
    """(Q,) ``mirrors`` of the kernel's tables."""
    mirrored = ([p for p in range(len(levels)) if math.isclose(levels[p], 1.0 - level)] for level in levels)
    return np.array([found[0] if found else q for q, found in enumerate(mirrored)], np.int64)


def _cosines() -> Floats:
    """(AR_LAGS, AR_LAGS) the orthonormal cosine transform (DCT-II)."""
    D = kernel.AR_LAGS
    rows = np.cos(np.pi * np.arange(D)[:, None] * (np.arange(D) + 0.5) / D) * math.sqrt(2.0 / D)
    rows[0] = math.sqrt(1.0 / D)
    return np.asarray(rows)


def _interpolation(points: Indexes, horizon: int) -> tuple[Indexes, Floats]:
    """(h,) the point at or before each horizon step, and the next point's share in an interpolation."""
    ahead = np.arange(horizon)
    left = np.searchsorted(points, ahead, side="right") - 1
    right = np.minimum(left + 1, len(points) - 1)
    share = (ahead - points[left]) / np.maximum(points[right] - points[left], 1)
    return left.astype(np.int64), share
