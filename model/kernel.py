"""The compiled kernel of adaptation: the arithmetic of one step of one sensor's record.

Sensors are stepped one after the other, so a sensor's bits do not depend on the other sensors of a call. All compiled
functions and their constants are in this file: numba compiles a cached function again if its own file changes, and
would miss a change in another file.

A step does this for each target (``_step``):

1. *Release*. A new value is the label of forecasts that were kept at several distances: each is scored and calibrated
   on at once (``_score_arrived``). The autoregression learns from the change (``_learn_change``). The corrections
   learn from a forecast when its last label has come (``_learn_from_due``).
2. *Experts*. Persistence, seasonal naive, the GRU, the GRU shrunk towards the slow profile, corrections learned by
   recursive least squares, and an autoregression of the last 24 changes, which is iterated. Far ahead the shrunk GRU is
   usually the best: the average of a flexible and a simple forecast has smaller errors than either (Bates and Granger,
   "The combination of forecasts", 1969).
3. *Mixture*. An expert's weight falls exponentially with its discounted past loss ("exponentially weighted average
   forecaster"; its loss stays close to the best expert's: Cesa-Bianchi and Lugosi, "Prediction, Learning, and Games",
   2006, ch. 2). Losses are in units of the best expert's mean loss, so that neither the sensor's unit nor its
   predictability matters. They count by the number of independent labels: far ahead a year holds few, and the weights
   stay near the prior's rather than follow chance.
4. *Quantiles*. The median is the mixture's. Two shapes give the distances of the other quantiles from it. The GRU's
   shape is the distances of its quantiles, times the ratio of the mixture's errors to the GRU's, times a calibration
   factor per quantile level and loss point. The fixed shape is one distance in scales per quantile level and loss
   point; it learns from the mixture's errors alone, so it holds where the GRU's intervals do not fit the sensor. The
   factor's logarithm, and the fixed distance's, rise when a label falls outside the quantile and fall when it lies
   inside; the two steps balance at the nominal coverage (adaptive conformal inference, Gibbs and Candès, 2021, as
   quantile tracking: Angelopoulos, Candès and Tibshirani, 2023). The long-run coverage of the GRU's shape, as it was
   issued, is the nominal one for any sequence of labels, as long as factors stay off their bounds; labels close to a
   quantile count as outside in part (``EDGE``). The fixed shape is scored at its newest distance, which may differ from
   the one that was issued, and the published distance is the weighted mean of both shapes: neither has this guarantee.
   For each quantile level, a shape's weight falls with its past quantile loss (weights by level: Berrisch and Ziel,
   "CRPS learning", 2023). Both shapes are multiplied by the mixture's recent mean error over its usual one: far ahead
   labels are few, and the mean of all recent errors shows a rough or calm month sooner than the few labels outside a
   quantile (errors over their running scale, as in locally weighted conformal prediction: Lei et al., 2018). These
   means are in units of a robust scale. The scale itself grows with an outlier and falls within the next 200 steps:
   errors in this unit would be small for a while, and the intervals after it too narrow.
5. *Keep*. Every ``stride``-th forecast is kept until its labels have come.

A step is a point of the target's own grid of cadences (``_points_to``), so n steps are n cadences, regardless of when
readings come and which values they hold.

Letters: A sensors, M steps, n forecasts, K targets, Q quantiles, h horizon steps, H hidden, E experts, R corrections of
a group, D regressors, P learning points, L loss points, S steps of a season.
"""

import math
from collections.abc import Callable
from typing import Any, Final, NamedTuple, ParamSpec, TypeVar, cast

import numba
import numpy as np
from numpy.typing import NDArray

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
Numbers = NDArray[Any]  # float64, unless the field's comment names another type

# --- signals
REGRESSORS: Final = 10
REGRESSOR_BOUND: Final = 30.0  # scales; one larger regressor would undo the learned weights
VALUE_BOUND: Final = 1e100  # largest absolute value, so that no square overflows
SCALE_RATE: Final = 0.005  # update rate of the running mean |change|: it averages over some 200 steps
SLOW_PROFILE_RATE: Final = 0.04  # update rate per season: the slow profile averages over some 25 seasons
QUICK_PROFILE_RATE: Final = 0.15  # update rate per season: the quick profile averages over some 7 seasons
LEVEL_RATE_BOUND: Final = 0.5  # largest update rate: a level averages over some steps even if the season is one step
COUNT_BOUND: Final = 2**31 - 1  # largest count: counts are int32

# --- corrections
PRIOR_VARIANCE: Final = 1.0  # first and largest variance of a weight, in squared scales; wide for regressors of size 1
LEARNT_STEPS: Final = 2_000.0  # memory of a correction up to LEARNT_HORIZON; beyond, it grows with the horizon
LEARNT_HORIZON: Final = 24.0  # steps
ERROR_RATE: Final = 0.01  # update rate of a running mean |error|: it averages over some 100 labels
ERROR_BOUND: Final = 3.0  # mean errors; a larger error is clipped (Huber), so corrections tend to the median
OUTLIER_ERROR: Final = 10.0  # mean errors; a larger error counts as this in the mean |error|
WEIGHT_BOUND: Final = 1e4  # scales; a larger weight, learned from an almost constant series, resets the correction
UNTRAINED: Final = 20  # labels (or values) before the mean |error| (or |change|) is used to recognise outliers
STORED_BOUND: Final = 1e6  # scales; largest number that a pending forecast keeps, in float32

# --- shrinkage of the GRU towards the slow profile, chosen on the validation parts of ETTh1 at 96 and 336 steps
SHRUNK_PART: Final = 0.6  # weight of the profile infinitely far ahead
SHRUNK_SEASONS: Final = 3.0  # seasons ahead at which the profile has half of this weight

# --- autoregression
AR_LAGS: Final = 24  # past changes that the next change is predicted from
AR_STEPS: Final = 96  # steps that the autoregression is iterated; beyond them its forecast is flat
AR_LABELS: Final = 20.0  # the learning rate begins at 1 / AR_LABELS and falls as 1 / labels
AR_UNTRAINED: Final = 48  # labels before which the autoregression forecasts the last value
AR_RATE: Final = 0.0005  # smallest learning rate: a memory of some 2,000 steps
AR_ERROR_BOUND: Final = 5.0  # mean errors; a larger error is clipped
AR_POWER_RATE: Final = 0.005  # update rate of the mean squares of the transformed changes
AR_LEAST_POWER: Final = 1e-3  # squared scales; added to a mean square before it divides

# --- mixture: chosen on the validation parts of ETTh1 and of the Beijing set; MEMORY_LABELS also on the series of NAB
RATE: Final = 0.1  # learning rate: factor of the losses in the weights' exponent, per independent label
# Forecasts issued close to each other share most of their labels, and so their errors. One in n / INDEPENDENT_PART of
# the forecasts for n steps ahead counts as an independent label.
INDEPENDENT_PART: Final = 8.0
MEMORY_LABELS: Final = 70.0  # independent labels that losses average over at the near steps
# Power of the steps between two independent labels that this memory grows with, in steps. Far ahead a memory of few
# labels could not tell the experts apart, and a changed sensor is followed slowly there in any case.
MEMORY_GROWTH: Final = 1.4
LEAST_LOSS: Final = 1e-30  # divisor if the best expert never erred; all other experts then get weight 0
OUTLIER_LOSS: Final = 20.0  # mean losses of the best expert; a larger loss is clipped, so that no label decides
OUTLIER_LABELS: Final = 10  # labels before the mean loss recognises outliers, and the fixed shape has weight

# --- time
PHASE_SHIFT: Final = 0.382  # fraction of a cadence; see `_phase`
GRID_POINTS: Final = 100  # number of points over which the values' mean distance from the grid is taken

# --- quantiles: FACTOR_STEP was chosen among 0.003-0.03 on validation parts
SPREAD_PRIOR: Final = 10.0  # labels that the prior counts as; the prior ratio of the mixture's to the GRU's errors is 1
RECENT_ERROR: Final = 5.0  # usual mean errors; a larger error counts as this in the recent and the usual mean
RECENT_BOUND: Final = 100.0  # largest multiple of the usual mean error, and largest part of it
ROBUST_CHANGE: Final = 20.0  # robust scales; a larger change counts as this in the robust scale
# The robust scale counts as this part of the scale at least in that bound. Otherwise it would fall towards 0 where a
# value rarely changes.
ROBUST_PART: Final = 0.01
# Change of a log factor per label outside its quantile. It is large at first, to correct a wrong spread, then small,
# because each change adds noise (Angelopoulos, Barber and Bates, 2024), and never zero, because spreads drift. Where
# the recent mean error follows the drift, all steps are multiplied by ERROR_RATE over the recent mean's rate.
FACTOR_STEP: Final = 0.01  # the smallest step, times the root of the stride
FIRST_FACTOR_STEP: Final = 0.05  # the largest step
FACTOR_STEP_LABELS: Final = 10.0  # in between, the step is this number divided by the number of labels so far
# Step of a fixed distance's logarithm per label outside its quantile: 1 for the first DISTANCE_LABELS labels, then
# DISTANCE_LABELS / labels, but at least DISTANCE_RATE times the root of the stride.
DISTANCE_RATE: Final = 0.02
DISTANCE_LABELS: Final = 20.0
LEAST_DISTANCE: Final = 1e-3  # scales; a distance of 0 could not grow, and a tiny one grows too slowly
LOGIT_BOUND: Final = 50.0  # largest |log odds| of the two shapes of intervals
FACTOR_BOUND: Final = 5.0  # largest absolute log factor: factors stay between 1/148 and 148
# Width of the edge around a quantile, in scales. Within the edge the count of a label rises gradually from inside to
# outside. If it jumped at the quantile, the last bit of a number could change the next forecasts visibly. Half of the
# edge lies on either side of the quantile, so that coverage is unbiased. The width is at most EDGE_PART of the
# quantile's distance from the median, because sharp forecasts need a narrower edge.
EDGE: Final = 0.2  # scales
EDGE_PART: Final = 0.5
LEAST_EDGE: Final = 1e-9  # scales


class Sizes(NamedTuple):
    """The numbers of targets, steps, experts and so on, and the rates."""

    targets: int  # K
    horizon: int  # h
    season: int  # S
    remembered: int  # last values carried: enough for a forecast's labels, a season and the autoregression
    quantiles: int  # Q
    median: int  # its index among the quantiles
    experts: int  # E
    gru: int  # its index among the experts
    learn_points: int  # P
    loss_points: int  # L
    slots: int  # pending forecasts
    stride: int  # steps between two kept forecasts
    groups: int  # groups of corrections: 0 at level off, 1 at light, 2 at full
    hidden_regressors: int  # projections of the hidden state
    cadence_us: int
    calibrated: bool
    quick_rate: float  # update rate of the level over a quarter of a season
    season_rate: float  # update rate of the level over a season
    forgetting: float  # per label, of corrections
    recent_rate: float  # update rate of the recent mean |error|


class Places(NamedTuple):
    """The index of each field of a record, counted in numbers of the field's type."""

    steps: int  # int64
    point_us: int
    pending_step: int
    values: int  # float64
    change: int
    scale: int
    levels: int
    deviation: int
    drift: int
    profiles: int
    pending_value: int
    pending_unit: int
    robust_scale: int
    recent_errors: int
    usual_errors: int
    pending_scale: int
    losses: int  # float32
    spreads: int
    factors: int
    distances: int
    shape_losses: int
    ar_weights: int
    ar_powers: int
    ar_error: int
    pending_experts: int
    pending_quantiles: int
    pending_recent: int
    pending_bases: int
    plain_root: int
    plain_weights: int
    plain_errors: int
    plain_pending_x: int
    hidden_root: int
    hidden_weights: int
    hidden_errors: int
    hidden_pending_x: int
    labels: int  # int32
    learned: int
    ar_labels: int
    observed: int
    seen: int  # bytes
    crowded: int


class Tables(NamedTuple):
    """Constant arrays."""

    levels: Numbers  # (Q,) quantile levels
    mirrors: Numbers  # (Q,) int64: the index of the level as far from 1 as this one is from 0, or its own index
    log_prior: Numbers  # (E,) of the weights before any label
    projection: Numbers  # (H, hidden regressors)
    loss_points: Numbers  # (L,) int64: horizon steps, from 0
    log_discounts: Numbers  # (L,) per label, of the experts' losses
    rates: Numbers  # (L,) of the weights' exponent, when the memory is full of labels
    learn_points: Numbers  # (P,) int64
    loss_left: Numbers  # (h,) int64: the loss point at or before each horizon step, to interpolate from
    loss_share: Numbers  # (h,) weight of the next loss point
    learn_left: Numbers  # (h,) int64: the same for the learning points
    learn_share: Numbers  # (h,)
    cosines: Numbers  # (AR_LAGS, AR_LAGS) the orthonormal cosine transform, a row for each frequency
    bases: Numbers  # (2, 4) int64: the base of each correction, by group; -1 after the last correction


class Record(NamedTuple):
    """The bytes of one sensor's record, viewed as numbers of each type."""

    i8: Numbers  # int64
    f8: Numbers  # float64
    f4: Numbers  # float32
    i4: Numbers  # int32
    u1: Numbers  # uint8


class Scratch(NamedTuple):
    """Arrays for the intermediate results of a step. Calls at the same time need arrays of their own."""

    x: Numbers  # (D at most,)
    projected: Numbers  # (hidden regressors,)
    bases: Numbers  # (4, h): persistence, the slow and the quick profile, the GRU
    experts: Numbers  # (E, h)
    correction: Numbers  # (P,)
    weights: Numbers  # (E, L)
    factors: Numbers  # (Q, L)
    recent: Numbers  # (L,) the mixture's recent mean error as a multiple of its usual one
    excess: Numbers  # (2, Q) how far a label's share outside each quantile exceeds the nominal one, by shape
    shares: Numbers  # (Q, L) of the shape that the GRU gives
    reaches: Numbers  # (Q, h) distances of the GRU's quantiles, calibrated
    changes: Numbers  # (AR_LAGS + AR_STEPS,) last changes, in scales, then the autoregression's forecasts of changes
    transformed: Numbers  # (AR_LAGS + 1,)
    ar_lags: Numbers  # (AR_LAGS,) the autoregression's weight of each past change, newest first
    median: Numbers  # (h,)
    labels: Numbers  # (h,)
    past_x: Numbers  # (D at most,)
    root: Numbers  # (D, D)
    f: Numbers  # (D,)
    gain: Numbers  # (D,)
    errors: Numbers  # (4, P)
    present: Numbers  # uint8: the record that is stepped
    saved: Numbers  # uint8: a copy of it


def scratch(size: Sizes, record_bytes: int) -> Scratch:
    """The arrays that ``run`` computes in; ``record_bytes`` is the size of a record."""
    most = REGRESSORS + size.hidden_regressors
    h, E, L, P, Q = size.horizon, size.experts, size.loss_points, size.learn_points, size.quantiles
    return Scratch(
        x=np.empty(most),
        projected=np.empty(size.hidden_regressors),
        bases=np.empty((4, h)),
        experts=np.empty((E, h)),
        correction=np.empty(P),
        weights=np.empty((E, L)),
        factors=np.empty((Q, L)),
        recent=np.empty(L),
        excess=np.empty((2, Q)),
        shares=np.empty((Q, L)),
        reaches=np.zeros((Q, h)),
        changes=np.empty(AR_LAGS + AR_STEPS),
        transformed=np.empty(AR_LAGS + 1),
        ar_lags=np.empty(AR_LAGS),
        median=np.empty(h),
        labels=np.empty(h),
        past_x=np.empty(most),
        root=np.empty((most, most)),
        f=np.empty(most),
        gain=np.empty(most),
        errors=np.empty((4, P)),
        present=np.empty(record_bytes // 8).view(np.uint8),  # aligned for numbers of each type
        saved=np.empty(record_bytes, np.uint8),
    )


# Options of every compiled function. Without ``_nrt=False`` numba counts references to each part of an array that a
# function names, with atomic instructions: more than half of a step's time. Then nothing can be allocated. With
# ``nogil`` other threads run during a call, so that a long call holds up no heartbeat. A caller must then give each
# thread arrays of its own to write into.
OPTIONS: Final[dict[str, Any]] = {"error_model": "numpy", "_nrt": False, "nogil": True}


def inner(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """The function compiled for compiled callers alone; without Python wrappers it compiles much faster."""
    make: Any = cast(Any, numba.njit)(no_cpython_wrapper=True, no_cfunc_wrapper=True, **OPTIONS)
    return cast(Callable[Arguments, Result], make(function))


def inlined(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """The function, copied into its compiled callers; no other function can return a part of an array."""
    make: Any = cast(Any, numba.njit)(inline="always", **OPTIONS)
    return cast(Callable[Arguments, Result], make(function))


def compiled(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """The function as machine code, cached on disk next to this file or in the user's cache folder."""
    return _cached(function, OPTIONS)


def allocating(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """The same for a function that allocates arrays; it counts references."""
    return _cached(function, OPTIONS | {"_nrt": True})


def _cached(function: Callable[Arguments, Result], options: dict[str, Any]) -> Callable[Arguments, Result]:
    """The function, compiled again if its file or the options have changed.

    numba compares a stamp of the cached code with one of the function's own file, which does not tell the options.
    """
    compile_it = cast(Any, numba.njit)
    try:
        made = compile_it(cache=True, **options)(function)
        stored = made._cache._cache_file
        stored._source_stamp = (stored._source_stamp, sorted(options.items()))
    except RuntimeError:  # neither folder can be written: each process compiles the function again
        made = compile_it(**options)(function)
    return cast(Callable[Arguments, Result], made)


# --- signals ----------------------------------------------------------------------------------------------------------


@inlined
def _row(numbers: Numbers, begin: int, row: int, width: int) -> Numbers:
    """A row of the field (rows, width) that begins at ``begin``."""
    return numbers[begin + row * width : begin + (row + 1) * width]


@inner
def _clip(value: float, bound: float) -> float:
    return min(max(value, -bound), bound)


@inner
def _shift(numbers: Numbers, newest: float) -> None:
    """Drop the first number, move the rest down, and put ``newest`` last."""
    for i in range(len(numbers) - 1):
        numbers[i] = numbers[i + 1]
    numbers[-1] = newest


@inner
def _copy(numbers: Numbers, to: Numbers) -> None:
    # An assignment of slices would allocate, because numba cannot know that the slices do not overlap.
    for i in range(len(numbers)):
        to[i] = numbers[i]


@inner
def _least_unit(at: Places, record: Record, k: int) -> float:
    """The level's rounding error, so that a constant series has a unit."""
    return float(max(1e-9 * abs(record.f8[at.levels + 2 * k]), 1e-50))


@inner
def _unit(at: Places, record: Record, k: int) -> float:
    """The scale, but at least the least unit."""
    return float(max(record.f8[at.scale + k], _least_unit(at, record, k)))


@inner
def _robust_unit(at: Places, record: Record, k: int) -> float:
    """The robust scale, but at least the least unit."""
    return float(max(record.f8[at.robust_scale + k], _least_unit(at, record, k)))


@inner
def _observe(size: Sizes, at: Places, record: Record, k: int, phase: int, value: float, x: Numbers) -> None:
    """Step a target's signals by one point, and fill ``x`` with the regressors, in scales.

    A missing value is replaced by the slow profile plus the last deviation from it, which fades; in the first season,
    by the last value. A replacement changes no level, scale or profile, and is never a label.
    """
    f8, S = record.f8, size.season
    values = _row(f8, at.values, k, size.remembered)
    levels, drift = _row(f8, at.levels, k, 2), _row(f8, at.drift, k, 2)
    deviation, changes = _row(f8, at.deviation, k, 3), _row(f8, at.change, k, 2)
    slow, quick = _row(f8, at.profiles, 2 * k, S), _row(f8, at.profiles, 2 * k + 1, S)
    seen = _row(record.u1, at.seen, k, size.horizon)
    observed = np.int64(record.i4[at.observed + k])
    there = math.isfinite(value)
    first = there and observed == 0
    seasoned = observed >= S
    previous = _clip(value if first else values[-1], VALUE_BOUND)
    expected_slow, expected_quick = slow[phase], quick[phase]
    if there:
        y = _clip(value, VALUE_BOUND)
    elif seasoned:
        y = expected_slow + deviation[0] * (1.0 - size.quick_rate)
    else:
        y = previous
    change = y - previous
    changes[1] = 0.0 if first else changes[0]
    changes[0] = change
    # Running means start as plain means, because a constant rate would take seasons to forget the first value.
    count: Any = min(observed + there, COUNT_BOUND)
    mean_rate = 1.0 / max(count, 1)
    quick_rate, season_rate = max(size.quick_rate, mean_rate), max(size.season_rate, mean_rate)
    if first:
        values[:] = y
        levels[:] = y
        slow[:] = y
        quick[:] = y
    else:
        _shift(values, y)
    if there:
        levels[0] += quick_rate * (y - levels[0])
        levels[1] += season_rate * (y - levels[1])
        if count > 1:
            scale_rate, scale = max(SCALE_RATE, 1.0 / (count - 1)), f8[at.scale + k]
            f8[at.scale + k] = scale + scale_rate * (abs(change) - scale)
            if size.recent_rate > ERROR_RATE:
                robust, counted = f8[at.robust_scale + k], abs(change)
                if count > UNTRAINED:
                    counted = min(counted, ROBUST_CHANGE * max(robust, ROBUST_PART * f8[at.scale + k]))
                f8[at.robust_scale + k] = robust + scale_rate * (counted - robust)
        if not first:
            visit_rate = 1.0 / (observed // S + 1)
            slow[phase] += max(SLOW_PROFILE_RATE, visit_rate) * (y - expected_slow)
            quick[phase] += max(QUICK_PROFILE_RATE, visit_rate) * (y - expected_quick)
    # In the first season a profile has no value for the phases ahead: deviations are 0, and all bases are persistence.
    deviation[2] = deviation[0]
    deviation[0] = y - expected_slow if seasoned else 0.0
    deviation[1] = y - expected_quick if seasoned else 0.0
    drift[0] += quick_rate * (deviation[0] - drift[0])
    drift[1] += season_rate * (deviation[0] - drift[1])
    record.i4[at.observed + k] = count
    _shift(seen, there)
    _regressors(size, at, record, k, y, 0.0, x)


@inner
def _regressors(size: Sizes, at: Places, record: Record, k: int, y: float, moved: float, x: Numbers) -> None:
    """Fill ``x`` with the regressors, in scales, after a value ``y``; ``moved`` is its change from the last point."""
    f8 = record.f8
    levels, drift = _row(f8, at.levels, k, 2), _row(f8, at.drift, k, 2)
    deviation, changes = _row(f8, at.deviation, k, 3), _row(f8, at.change, k, 2)
    beside = moved if record.i4[at.observed + k] > size.season else 0.0
    x[0], x[1] = changes[0] + moved, changes[1]
    x[2], x[3] = y - levels[0], y - levels[1]
    x[4], x[5] = deviation[0] + beside, deviation[2]
    x[6], x[7] = drift[0], drift[1]
    x[8] = deviation[1] + beside
    unit = _unit(at, record, k)
    for i in range(9):
        x[i] = _clip(x[i] / unit, REGRESSOR_BOUND)
    x[9] = 1.0


# --- scoring and learning ---------------------------------------------------------------------------------------------


@inner
def _unit_growth(at: Places, record: Record, k: int, unit: float) -> float:
    """The unit of a pending forecast as a part of the larger of this unit and the current one.

    If the unit has grown since the forecast, errors are measured in the larger unit. Otherwise the first values of a
    series, or the first changes after a constant stretch, would leave losses that dwarf all later losses.
    """
    return unit / max(unit, _unit(at, record, k))


@inner
def _score_arrived(size: Sizes, at: Places, table: Tables, record: Record, k: int, to: Scratch) -> None:
    """Score each loss point whose label is the newest value, by the forecast that was kept at that distance."""
    if record.u1[at.seen + (k + 1) * size.horizon - 1] == 0:
        return
    steps = record.i8[at.steps + k]
    newest = record.f8[at.values + (k + 1) * size.remembered - 1]
    for m in range(size.loss_points):
        issue = steps - 1 - table.loss_points[m]
        if issue < 0 or issue % size.stride:
            continue
        pending = ((issue // size.stride) % size.slots) * size.targets + k
        unit = record.f8[at.pending_unit + pending]
        if record.i8[at.pending_step + pending] != issue + 1 or unit == 0.0:
            continue  # not kept, or from before the target's second value, when it had no unit
        shrunk = _unit_growth(at, record, k, unit)
        label = _clip((newest - record.f8[at.pending_value + pending]) / unit, STORED_BOUND) * shrunk
        count: Any = np.int64(record.i4[at.labels + k * size.loss_points + m])
        _score(size, at, table, record, k, m, pending, label, count, shrunk, to)
        record.i4[at.labels + k * size.loss_points + m] = min(count, COUNT_BOUND - 1) + 1


@inner
def _learn_from_due(size: Sizes, at: Places, table: Tables, record: Record, k: int, slot: int, to: Scratch) -> None:
    """Let the corrections learn from a pending forecast whose labels are the last h values."""
    pending = slot * size.targets + k
    unit = record.f8[at.pending_unit + pending]
    if unit == 0.0:
        return  # a forecast from before the target's second value has no unit
    shrunk = _unit_growth(at, record, k, unit)
    value = record.f8[at.pending_value + pending]
    values = at.values + (k + 1) * size.remembered - size.horizon
    labelled = False
    for j in range(size.horizon):
        if record.u1[at.seen + k * size.horizon + j]:
            to.labels[j] = _clip((record.f8[values + j] - value) / unit, STORED_BOUND) * shrunk
            labelled = True
        else:
            to.labels[j] = np.nan
    count: Any = np.int64(record.i4[at.learned + k])
    for group in range(size.groups):
        _learn(size, at, table, record, k, pending, count, shrunk, group, to)
    if labelled:
        record.i4[at.learned + k] = min(count, COUNT_BOUND - 1) + 1


@inner
def _score(
    size: Sizes,
    at: Places,
    table: Tables,
    record: Record,
    k: int,
    m: int,
    pending: int,
    label: float,
    count: Any,
    shrunk: float,
    to: Scratch,
) -> None:
    """Update the experts' losses, the mean errors and the quantiles of a loss point by its label number ``count``."""
    f4, E, L, Q = record.f4, size.experts, size.loss_points, size.quantiles
    losses, experts = at.losses + k * E * L + m, at.pending_experts + pending * E * L + m
    least_mean, least = np.inf, np.inf
    for e in range(E):
        error = abs(label - f4[experts + e * L] * shrunk)
        least = min(least, error * math.sqrt(error))
        least_mean = min(least_mean, np.float64(f4[losses + e * L]))
    log_discount = table.log_discounts[m]
    loss_rate = math.expm1(log_discount) / math.expm1(log_discount * (count + 1.0))
    bound = max(OUTLIER_LOSS * least_mean, least) if count >= OUTLIER_LABELS and least_mean > 0.0 else np.inf
    for e in range(E):
        error = abs(label - f4[experts + e * L] * shrunk)
        # |e|^1.5 lies between the absolute loss, best for the MAE, and the squared loss, best for the MSE.
        loss = min(error * math.sqrt(error), bound)
        mean = np.float64(f4[losses + e * L])
        f4[losses + e * L] = mean + loss_rate * (loss - mean)
    median = f4[at.pending_quantiles + (pending * Q + size.median) * L + m] * shrunk
    if size.calibrated:
        _calibrate(size, at, table, record, k, m, pending, label, count, shrunk, loss_rate, to)
    model = f4[experts + size.gru * L] * shrunk
    spreads, error_rate = at.spreads + k * 2 * L + m, max(ERROR_RATE, 1.0 / (count + 1.0))
    if size.recent_rate > ERROR_RATE:
        f8, recent, usual = record.f8, at.recent_errors + k * L + m, at.usual_errors + k * L + m
        error = abs(label - median) * (f8[at.pending_unit + pending] / shrunk)  # in the sensor's unit
        error /= max(f8[at.pending_scale + pending], _robust_unit(at, record, k))
        if count >= OUTLIER_LABELS and f8[usual] > 0.0:
            error = min(error, RECENT_ERROR * f8[usual])
        f8[recent] += max(size.recent_rate, 1.0 / (count + 1.0)) * (error - f8[recent])
        f8[usual] += error_rate * (error - f8[usual])
    f4[spreads] += error_rate * (abs(label - median) - f4[spreads])
    f4[spreads + L] += error_rate * (abs(label - model) - f4[spreads + L])


@inner
def _recent(size: Sizes, at: Places, record: Record, k: int, m: int) -> float:
    """The mixture's recent mean error at a loss point, as a multiple of its usual one; 1 before any label."""
    if size.recent_rate <= ERROR_RATE:
        return 1.0
    place = k * size.loss_points + m
    recent, usual = record.f8[at.recent_errors + place], record.f8[at.usual_errors + place]
    return min(max(recent / usual, 1.0 / RECENT_BOUND), RECENT_BOUND) if usual > 0.0 else 1.0


@inner
def _calibrate(
    size: Sizes,
    at: Places,
    table: Tables,
    record: Record,
    k: int,
    m: int,
    pending: int,
    label: float,
    count: Any,
    shrunk: float,
    loss_rate: float,
    to: Scratch,
) -> None:
    """Update the quantiles of a loss point by its label number ``count``."""
    f4, L, Q = record.f4, size.loss_points, size.quantiles
    # The multiple that the forecast was issued with: the present one would be hindsight.
    recent = np.float64(f4[at.pending_recent + pending * L + m]) if size.recent_rate > ERROR_RATE else 1.0
    median = f4[at.pending_quantiles + (pending * Q + size.median) * L + m] * shrunk
    for q in range(Q):
        if q == size.median:
            continue
        tail = min(table.levels[q], 1.0 - table.levels[q])
        beyond = (label - median) * (1.0 if q > size.median else -1.0)
        shaped = abs(f4[at.pending_quantiles + (pending * Q + q) * L + m] * shrunk - median)
        fixed = np.float64(f4[at.distances + (k * Q + q) * L + m]) * recent
        for shape in range(2 if count > 0 else 0):  # the first label gives the fixed distance
            excess = beyond - (fixed if shape else shaped)
            loss = max((1.0 - tail) * excess, -tail * excess)
            mean_place = at.shape_losses + ((k * 2 + shape) * Q + q) * L + m
            f4[mean_place] += loss_rate * (loss - f4[mean_place])
        edge = max(min(EDGE, EDGE_PART * shaped), LEAST_EDGE)
        to.excess[0, q] = min(max(0.5 + (beyond - shaped) / edge, 0.0), 1.0) - tail
        edge = max(EDGE_PART * fixed, LEAST_EDGE)
        to.excess[1, q] = min(max(0.5 + (beyond - fixed) / edge, 0.0), 1.0) - tail
    # The recent mean error follows the drift, so the steps are smaller by `part`. Only this part of a step is the
    # quantile's own, and the rest is the mean of both sides: few labels tell the width of an interval, but not that of
    # either side.
    part = ERROR_RATE / size.recent_rate
    step = FACTOR_STEP * math.sqrt(size.stride)
    step = max(step * part, min(FIRST_FACTOR_STEP, FACTOR_STEP_LABELS * part / (count + 1.0)))
    rate = min(max(DISTANCE_LABELS / (count + 1.0), DISTANCE_RATE * math.sqrt(size.stride) * part), 1.0)
    for q in range(Q):
        if q == size.median:
            continue
        mirror = table.mirrors[q]
        both = 0.5 * (to.excess[0, q] + to.excess[0, mirror])
        factor = at.factors + (k * Q + q) * L + m
        f4[factor] = _clip(f4[factor] + step * (part * to.excess[0, q] + (1.0 - part) * both), FACTOR_BOUND)
        place = at.distances + (k * Q + q) * L + m
        if count == 0:
            fixed = abs(label - median)
        else:
            both = 0.5 * (to.excess[1, q] + to.excess[1, mirror])
            fixed = f4[place] * math.exp(rate * (part * to.excess[1, q] + (1.0 - part) * both))
        f4[place] = min(max(fixed, LEAST_DISTANCE), STORED_BOUND)


@inner
def _learn(
    size: Sizes,
    at: Places,
    table: Tables,
    record: Record,
    k: int,
    pending: int,
    count: Any,
    shrunk: float,
    group: int,
    to: Scratch,
) -> None:
    """Update a group's corrections with one more label at each learning point."""
    f4, P = record.f4, size.learn_points
    D = REGRESSORS + group * size.hidden_regressors
    R = 4 - 2 * group
    root = (at.hidden_root if group else at.plain_root) + k * D * D
    weights = (at.hidden_weights if group else at.plain_weights) + k * R * D * P
    means = (at.hidden_errors if group else at.plain_errors) + k * R * P
    past_x = (at.hidden_pending_x if group else at.plain_pending_x) + pending * D
    if count == 0:
        for i in range(D):
            f4[root + i * D + i] = math.sqrt(PRIOR_VARIANCE)
    for i in range(D):
        to.past_x[i] = f4[past_x + i] * shrunk
    rate, labelled = max(ERROR_RATE, 1.0 / (count + 1.0)), False
    for r in range(R):
        base = table.bases[group, r]
        errors = to.errors[r]
        _predict(f4, weights + r * D * P, to.past_x, D, P, errors)
        for p in range(P):
            label = to.labels[table.learn_points[p]]
            if math.isnan(label):
                errors[p] = 0.0
                continue
            labelled = True
            start = 0.0 if base == 0 else f4[at.pending_bases + (pending * 3 + base - 1) * P + p] * shrunk
            error = label - start - errors[p]
            mean = np.float64(f4[means + r * P + p])
            early = count < UNTRAINED or mean == 0.0  # the mean is 0 for a series that has been constant
            bound = REGRESSOR_BOUND if early else min(ERROR_BOUND * mean, STORED_BOUND)
            errors[p] = _clip(error, bound)
            counted = abs(error) if early else min(abs(error), OUTLIER_ERROR * mean)
            f4[means + r * P + p] = mean + rate * (counted - mean)
    if labelled and not _update(f4, root, weights, D, R, P, size.forgetting, to):
        # The weights would stay out of bounds for ever: reset the group's root and weights.
        f4[root : root + D * D] = 0.0
        f4[weights : weights + R * D * P] = 0.0
        for i in range(D):
            f4[root + i * D + i] = math.sqrt(PRIOR_VARIANCE)


@inner
def _predict(f4: Numbers, weights: int, x: Numbers, D: int, P: int, to: Numbers) -> None:
    """Fill ``to`` with the correction at P points: regressors (D,) times weights (D, P)."""
    to[:P] = 0.0
    for i in range(D):
        row = f4[weights + i * P : weights + (i + 1) * P]
        for p in range(P):
            to[p] += x[i] * row[p]


@inner
def _update(f4: Numbers, root: int, weights: int, D: int, R: int, P: int, forgetting: float, to: Scratch) -> bool:
    """Update root and weights by ``to.past_x`` and ``to.errors``; return whether both stay within bounds.

    This is recursive least squares. The weights' covariance is kept as a root: root @ rootᵀ is positive semi-definite
    for any rounding of the root. So float32 is enough; the covariance itself in float32 loses that property and
    diverges. The update is Potter's (Bierman, "Factorization Methods for Discrete Sequential Estimation", 1977, ch. V).
    Without excitation, forgetting alone would let the covariance grow until it overflows ("wind-up"). Therefore each
    weight's variance is kept at the prior's or below, by shrinking its row of the root.
    """
    x, f, gain = to.past_x, to.f, to.gain
    f[:D] = 0.0
    for i in range(D):
        row = f4[root + i * D : root + (i + 1) * D]
        for j in range(D):
            f[j] += x[i] * row[j]
    power = 0.0
    for j in range(D):
        power += f[j] * f[j]
    a = 1.0 / (forgetting + power)
    shrink = a / (1.0 + math.sqrt(forgetting * a))
    growth = 1.0 / math.sqrt(forgetting)
    within_bounds = True
    for i in range(D):
        row = f4[root + i * D : root + (i + 1) * D]
        gain[i] = 0.0
        for j in range(D):
            gain[i] += row[j] * f[j]
        variance = 0.0
        for j in range(D):
            number = (row[j] - gain[i] * shrink * f[j]) * growth
            to.root[i, j] = number
            variance += number * number
        within_bounds = within_bounds and math.isfinite(variance)
        scale = min(1.0, math.sqrt(PRIOR_VARIANCE / max(variance, PRIOR_VARIANCE)))
        for j in range(D):
            row[j] = to.root[i, j] * scale
    for r in range(R):
        for i in range(D):
            row = f4[weights + (r * D + i) * P : weights + (r * D + i + 1) * P]
            for p in range(P):
                number = row[p] + gain[i] * a * to.errors[r, p]
                within_bounds = within_bounds and abs(number) < WEIGHT_BOUND
                row[p] = number
    return within_bounds


@inner
def _last_changes(size: Sizes, at: Places, record: Record, k: int, before: int, to: Scratch) -> None:
    """Fill the first AR_LAGS of ``to.changes`` with the changes ``before`` the last ones, newest last, in scales."""
    values = _row(record.f8, at.values, k, size.remembered)
    unit, begin = _unit(at, record, k), size.remembered - AR_LAGS - before
    for i in range(AR_LAGS):
        to.changes[i] = _clip((values[begin + i] - values[begin + i - 1]) / unit, REGRESSOR_BOUND)


@inner
def _learn_change(size: Sizes, at: Places, table: Tables, record: Record, k: int, to: Scratch) -> None:
    """Let the autoregression learn from the last change, in the scale after it.

    In the scale before it, the first change of a sensor, or of one that has been constant, would be enormous.

    The weights belong to the cosine transform of the last changes, which hardly correlates. So each weight can be
    learned with a rate of its own, by the mean square of its regressor (transform-domain least mean squares: Narayan,
    Peterson and Narasimha, 1983). Recursive least squares would need a covariance of 625 numbers.
    """
    f4, D = record.f4, AR_LAGS + 1
    weights, powers = _row(f4, at.ar_weights, k, D), _row(f4, at.ar_powers, k, D)
    labels = np.float64(record.i4[at.ar_labels + k])
    newest = at.values + (k + 1) * size.remembered - 1
    error = _clip((record.f8[newest] - record.f8[newest - 1]) / _unit(at, record, k), STORED_BOUND)
    x = to.transformed
    _last_changes(size, at, record, k, 1, to)
    for i in range(AR_LAGS):
        x[i] = 0.0
        for j in range(AR_LAGS):
            x[i] += table.cosines[i, j] * to.changes[AR_LAGS - 1 - j]
    x[AR_LAGS] = 1.0
    power_rate, length = max(AR_POWER_RATE, 1.0 / (labels + 1.0)), 0.0
    for i in range(D):
        error -= weights[i] * x[i]
        powers[i] += power_rate * (x[i] * x[i] - powers[i])
        length += x[i] * x[i] / (powers[i] + AR_LEAST_POWER)
    mean = np.float64(f4[at.ar_error + k])
    early = labels < UNTRAINED or mean == 0.0
    clipped = _clip(error, REGRESSOR_BOUND if early else min(AR_ERROR_BOUND * mean, STORED_BOUND))
    counted = abs(error) if early else min(abs(error), OUTLIER_ERROR * mean)
    f4[at.ar_error + k] = mean + max(ERROR_RATE, 1.0 / (labels + 1.0)) * (counted - mean)
    rate = max(AR_RATE, 1.0 / (labels + AR_LABELS))
    rate /= max(1.0, rate * length)  # a larger step would overshoot the label
    within_bounds = True
    for i in range(D):
        weights[i] += rate * clipped * x[i] / (powers[i] + AR_LEAST_POWER)
        within_bounds = within_bounds and abs(weights[i]) < WEIGHT_BOUND
    if not within_bounds:
        weights[:] = 0.0
    record.i4[at.ar_labels + k] = min(record.i4[at.ar_labels + k], COUNT_BOUND - 1) + 1


@inner
def _iterate_changes(size: Sizes, at: Places, table: Tables, record: Record, k: int, to: Scratch) -> None:
    """Fill the rest of ``to.changes`` with the forecasts of the next changes: the autoregression, iterated."""
    weights = _row(record.f4, at.ar_weights, k, AR_LAGS + 1)
    _last_changes(size, at, record, k, 0, to)
    for j in range(AR_LAGS):
        to.ar_lags[j] = 0.0
        for i in range(AR_LAGS):
            to.ar_lags[j] += weights[i] * table.cosines[i, j]
    for step in range(min(size.horizon, AR_STEPS)):
        change = np.float64(weights[AR_LAGS])
        for j in range(AR_LAGS):
            change += to.ar_lags[j] * to.changes[AR_LAGS - 1 + step - j]
        to.changes[AR_LAGS + step] = _clip(change, REGRESSOR_BOUND)


# --- experts and their mixture ----------------------------------------------------------------------------------------


@inner
def _forecast_experts(
    size: Sizes, at: Places, table: Tables, record: Record, k: int, phase: int, gru: Numbers, to: Scratch
) -> None:
    """Fill ``to.experts`` with the experts' forecasts, and ``to.bases`` with the corrections' bases."""
    h, S, P = size.horizon, size.season, size.learn_points
    _copy(gru, to.experts[size.gru])
    if not size.groups:
        return
    values = _row(record.f8, at.values, k, size.remembered)
    last, unit = values[-1], _unit(at, record, k)
    seasoned = record.i4[at.observed + k] >= S
    slow, quick = at.profiles + 2 * k * S, at.profiles + (2 * k + 1) * S
    ahead, back = phase, size.remembered - S - 1
    for j in range(h):
        ahead = ahead + 1 if ahead + 1 < S else 0
        to.bases[0, j] = last
        to.bases[1, j] = record.f8[slow + ahead] if seasoned else last
        to.bases[2, j] = record.f8[quick + ahead] if seasoned else last
        to.bases[3, j] = gru[j]
        to.experts[0, j] = last
        profile_weight = SHRUNK_PART * (j + 1.0) / (j + 1.0 + SHRUNK_SEASONS * S) if seasoned else 0.0
        to.experts[size.experts - 2, j] = gru[j] + profile_weight * (to.bases[1, j] - gru[j])
        back = back + 1 if back + 1 < size.remembered else size.remembered - S
        to.experts[1, j] = values[back]
    trained = record.i4[at.ar_labels + k] >= AR_UNTRAINED
    if trained:
        _iterate_changes(size, at, table, record, k, to)
    moved = 0.0
    for j in range(h):
        moved += to.changes[AR_LAGS + j] if trained and j < AR_STEPS else 0.0
        to.experts[size.experts - 1, j] = last + moved * unit
    expert = 3
    for group in range(size.groups):
        D = REGRESSORS + group * size.hidden_regressors
        R = 4 - 2 * group
        weights = (at.hidden_weights if group else at.plain_weights) + k * R * D * P
        for r in range(R):
            _predict(record.f4, weights + r * D * P, to.x, D, P, to.correction)
            base = table.bases[group, r]
            for j in range(h):
                left, share = table.learn_left[j], table.learn_share[j]
                between = to.correction[left]
                if share > 0.0:
                    between = between * (1.0 - share) + to.correction[left + 1] * share
                to.experts[expert, j] = to.bases[base, j] + between * unit
            expert += 1


@inner
def _weigh(size: Sizes, at: Places, table: Tables, record: Record, k: int, to: Scratch) -> None:
    """Fill ``to.weights`` with the experts' weights at every loss point; they sum to 1."""
    E, L = size.experts, size.loss_points
    losses = at.losses + k * E * L
    for m in range(L):
        labels = np.float64(record.i4[at.labels + k * L + m])
        rate = -table.rates[m] * math.expm1(table.log_discounts[m] * labels)
        best = np.inf
        for e in range(E):
            best = min(best, np.float64(record.f4[losses + e * L + m]))
        highest = -np.inf
        for e in range(E):
            excess = (record.f4[losses + e * L + m] - best) / max(best, LEAST_LOSS)
            logit = table.log_prior[e] - rate * excess
            if labels == 0.0 and size.groups > 0 and e == E - 1:
                logit = -np.inf  # the autoregression is iterated: where it has not been scored, it may be far off
            to.weights[e, m] = logit
            highest = max(highest, logit)
        total = 0.0
        for e in range(E):
            to.weights[e, m] = math.exp(to.weights[e, m] - highest)
            total += to.weights[e, m]
        for e in range(E):
            to.weights[e, m] /= total


@inner
def _mix(size: Sizes, table: Tables, to: Scratch) -> None:
    """Fill ``to.median`` with the weighted mean of the experts."""
    for j in range(size.horizon):
        left, share = table.loss_left[j], table.loss_share[j]
        total = 0.0
        for e in range(size.experts):
            weight = to.weights[e, left]
            if share > 0.0:
                weight = weight * (1.0 - share) + to.weights[e, left + 1] * share
            total += weight * to.experts[e, j]
        to.median[j] = total


@inner
def _weigh_shapes(size: Sizes, at: Places, table: Tables, record: Record, k: int, to: Scratch) -> None:
    """Fill ``to.factors`` of the GRU's quantiles, ``to.shares``, the weights of its shape, and ``to.recent``."""
    Q, L, f4 = size.quantiles, size.loss_points, record.f4
    for m in range(L):
        labels = np.float64(record.i4[at.labels + k * L + m])
        known = min(labels, 1.0 / ERROR_RATE)
        weight = known / (known + SPREAD_PRIOR)
        ours, models = f4[at.spreads + k * 2 * L + m], f4[at.spreads + (k * 2 + 1) * L + m]
        ratio = ours / models if models > 0.0 else 1.0
        to.recent[m] = _recent(size, at, record, k, m)
        ratio = (1.0 + weight * (min(max(ratio, 1e-2), 1e2) - 1.0)) * to.recent[m]
        rate = -table.rates[m] * math.expm1(table.log_discounts[m] * labels)
        for q in range(Q):
            to.factors[q, m] = math.exp(np.float64(f4[at.factors + (k * Q + q) * L + m])) * ratio
            gru = np.float64(f4[at.shape_losses + (k * 2 * Q + q) * L + m])
            fixed = np.float64(f4[at.shape_losses + ((k * 2 + 1) * Q + q) * L + m])
            excess = (gru - fixed) / max(min(gru, fixed), LEAST_LOSS)
            share = 1.0 / (1.0 + math.exp(_clip(rate * excess, LOGIT_BOUND)))
            to.shares[q, m] = share if size.calibrated and labels >= OUTLIER_LABELS else 1.0


@inner
def _spread(
    size: Sizes, at: Places, table: Tables, record: Record, k: int, model: Numbers, to: Scratch, out: Numbers
) -> None:
    """Fill ``out`` with the quantiles, each at or beyond its inner neighbour, so that they never cross."""
    Q, L, f4 = size.quantiles, size.loss_points, record.f4
    _weigh_shapes(size, at, table, record, k, to)
    unit = _unit(at, record, k)
    for j in range(size.horizon):
        left, share, centre = table.loss_left[j], table.loss_share[j], to.median[j]
        right = left + 1 if share > 0.0 else left
        out[size.median, j] = centre
        for side in (1, -1):
            shaped, fixed, reach = 0.0, 0.0, 0.0
            q = size.median + side
            while 0 <= q < Q:
                factor = to.factors[q, left] * (1.0 - share) + to.factors[q, right] * share
                shaped = max(shaped, abs(model[q, j] - model[size.median, j]) * factor)
                place = at.distances + (k * Q + q) * L
                # A point without a label has no distance yet.
                near = f4[place + left] * to.recent[left]
                far = f4[place + right] * to.recent[right] if f4[place + right] > 0.0 else near
                fixed = max(fixed, (near * (1.0 - share) + far * share) * unit)
                part = to.shares[q, left] * (1.0 - share) + to.shares[q, right] * share
                reach = max(reach, part * shaped + (1.0 - part) * fixed)
                to.reaches[q, j] = shaped
                out[q, j] = centre + side * reach
                q += side


@inner
def _relative(number: float, value: float, unit: float) -> float:
    """A number of a pending forecast: less ``value``, in ``unit``; 0 if non-finite."""
    difference = _clip((number - value) / unit, STORED_BOUND)
    return difference if math.isfinite(difference) else 0.0


@inner
def _keep(size: Sizes, at: Places, table: Tables, record: Record, k: int, slot: int, to: Scratch) -> None:
    """Keep a forecast in ``slot`` until its labels have come: less the current value, in the current unit."""
    f4, E, L, P, Q = record.f4, size.experts, size.loss_points, size.learn_points, size.quantiles
    pending = slot * size.targets + k
    value, unit = record.f8[at.values + (k + 1) * size.remembered - 1], _unit(at, record, k)
    record.f8[at.pending_value + pending] = value
    # Unit 0 marks a forecast before the target's second value: a unit is a mean change. It is not scored.
    record.f8[at.pending_unit + pending] = unit if record.i4[at.observed + k] > 1 else 0.0
    if size.recent_rate > ERROR_RATE:
        record.f8[at.pending_scale + pending] = _robust_unit(at, record, k)
        for m in range(L):
            f4[at.pending_recent + pending * L + m] = to.recent[m]
    for m in range(L):
        j = table.loss_points[m]
        for e in range(E):
            f4[at.pending_experts + (pending * E + e) * L + m] = _relative(to.experts[e, j], value, unit)
        for q in range(Q):
            quantile = to.median[j]
            if q != size.median:
                quantile += to.reaches[q, j] if q > size.median else -to.reaches[q, j]
            f4[at.pending_quantiles + (pending * Q + q) * L + m] = _relative(quantile, value, unit)
    for group in range(size.groups):
        D = REGRESSORS + group * size.hidden_regressors
        past_x = (at.hidden_pending_x if group else at.plain_pending_x) + pending * D
        for i in range(D):
            f4[past_x + i] = to.x[i]
    if size.groups:
        for base in range(3):
            for p in range(P):
                number = _relative(to.bases[1 + base, table.learn_points[p]], value, unit)
                f4[at.pending_bases + (pending * 3 + base) * P + p] = number


# --- steps ------------------------------------------------------------------------------------------------------------


@inner
def _points_to(size: Sizes, at: Places, record: Record, k: int, timestamp_us: int) -> int:
    """Number of points from the last point of the target's grid to the point nearest to ``timestamp_us``; may be < 0.

    The grid begins with the target's first value. Readings a cadence apart have a point each; a reading within half a
    cadence of the last point has none. Halves round down, as in the gap rule.
    """
    if record.i8[at.steps + k] == 0:
        return 1
    since = timestamp_us - record.i8[at.point_us + k]
    return int((since + (size.cadence_us - 1) // 2) // size.cadence_us)


@inner
def _move_on(size: Sizes, at: Places, record: Record, k: int, timestamp_us: int, arrives: bool) -> None:
    """Go to the grid's next point; move the grid towards ``timestamp_us`` if the reading ``arrives``.

    The grid follows the values' mean distance from it, because clocks drift. A point with several values is *crowded*.
    The grid does not follow the value after a crowded point, because that value may come half a cadence early. (If
    values come every 0.5 to 1 cadences, some points are crowded, and the grid has some 2 points in 1,000 too many.)
    Moves are whole microseconds.
    """
    i8 = record.i8
    steps = i8[at.steps + k]
    if steps == 0:
        i8[at.point_us + k] = timestamp_us
        return
    i8[at.point_us + k] += size.cadence_us
    if arrives:
        if record.u1[at.crowded + k] == 0:
            i8[at.point_us + k] += (timestamp_us - i8[at.point_us + k]) // min(steps + 1, GRID_POINTS)
        record.u1[at.crowded + k] = 0


@inner
def _phase(size: Sizes, at: Places, record: Record, k: int) -> int:
    """The last point's phase in the season, by the clock, so that gaps and resets do not shift it.

    ``PHASE_SHIFT`` moves the edges between phases away from full, half and third cadences. Many sensors read at these
    times, and small deviations would put their readings on either side of an edge.
    """
    shift = int(PHASE_SHIFT * size.cadence_us)
    return int((record.i8[at.point_us + k] + shift) // size.cadence_us % size.season)


@inner
def _project(size: Sizes, table: Tables, hidden: Numbers, to: Numbers) -> None:
    """Fill ``to`` with the projections of a hidden state."""
    for i in range(size.hidden_regressors):
        total = 0.0
        for unit in range(len(hidden)):
            total += hidden[unit] * table.projection[unit, i]
        to[i] = total


@inner
def _step(
    size: Sizes,
    at: Places,
    table: Tables,
    record: Record,
    k: int,
    value: float,
    issued: bool,
    again: bool,
    model: Numbers,
    out: Numbers,
    weights: Numbers,
    to: Scratch,
) -> None:
    """Step a target at the last point of its grid.

    With ``again`` the value is one more of a point that has been stepped: a forecast is made from it as from a first
    value, but nothing is learned from it. If a forecast is ``issued``, the model's quantiles ``model`` (Q, h) are
    adapted into ``out`` (Q, h) and ``weights`` (E,).
    """
    i8 = record.i8
    phase = _phase(size, at, record, k)
    steps = i8[at.steps + k]
    issue = steps - size.horizon
    newest = at.values + (k + 1) * size.remembered - 1
    first = record.f8[newest]
    if again:
        y = first
        if math.isfinite(value):
            y = _clip(value, VALUE_BOUND)
            record.u1[at.crowded + k] = 1
        record.f8[newest] = y  # for this forecast; restored below
        _regressors(size, at, record, k, y, y - first, to.x)
    else:
        _observe(size, at, record, k, phase, value, to.x)
        if size.groups and math.isfinite(value) and record.i4[at.observed + k] > 2:
            _learn_change(size, at, table, record, k, to)
        _score_arrived(size, at, table, record, k, to)
        if issue >= 0 and issue % size.stride == 0:
            due_slot = (issue // size.stride) % size.slots
            if i8[at.pending_step + due_slot * size.targets + k] == issue + 1:
                _learn_from_due(size, at, table, record, k, due_slot, to)
    if issued:
        _copy(to.projected, to.x[REGRESSORS:])
        _forecast_experts(size, at, table, record, k, phase, model[size.median], to)
        _weigh(size, at, table, record, k, to)
        if record.i4[at.observed + k] > 0:
            _mix(size, table, to)
        else:  # before a target's first value the model's forecast stays
            _copy(model[size.median], to.median)
        _spread(size, at, table, record, k, model, to, out)
        for e in range(size.experts):
            weights[e] = to.weights[e].mean()
    if again:
        record.f8[newest] = first
        return
    if steps % size.stride == 0:
        slot = (steps // size.stride) % size.slots
        if issued:
            _keep(size, at, table, record, k, slot, to)
        i8[at.pending_step + slot * size.targets + k] = steps + 1 if issued else 0
    i8[at.steps + k] = steps + 1


_SCRATCH: Final = len(Tables._fields)  # the place of its first field in the arrays of ``run``


@inner
def _is_finite(model: Numbers) -> bool:
    """Whether all quantiles (K, Q, h) are finite."""
    for k in range(model.shape[0]):
        for q in range(model.shape[1]):
            for j in range(model.shape[2]):
                if not math.isfinite(model[k, q, j]):
                    return False
    return True


@compiled
def run(
    sizes: tuple[Any, ...],
    places: tuple[Any, ...],
    columns: Numbers,
    begin: int,
    records: Numbers,
    slots: Numbers,
    starts: Numbers,
    reset: Numbers,
    timestamp_us: Numbers,
    values: Numbers,
    hidden: Numbers,
    forecast: Numbers,
    model: Numbers,
    out: Numbers,
    weights: Numbers,
    *arrays: Any,
) -> None:
    """Step the records of A sensors in place, and fill ``out`` and ``weights``.

    A call of compiled code takes several times as long with named tuples, and longer with tuples of arrays than with
    arrays. So ``Sizes`` and ``Places`` come as plain tuples, and the other fields one by one.

    Args:
        columns: (K,) int64, the targets among the features.
        begin: the first byte of adaptation's record in a sensor's record, which ends with it.
        records: (B, bytes) uint8.
        slots: (A,) the row of each sensor; starts: (A+1,) the first step of each sensor, and M.
        reset: (M,); timestamp_us: (M,); values: (M, F); hidden: (M, H).
        forecast: (M,) index of the forecast issued at each step; a step with -1 is skipped.
        model: (n, K, Q, h); out: (n, K, Q, h); weights: (n, K, E).
        arrays: the fields of ``Tables`` and ``Scratch``.
    """
    size, at, table, to = Sizes(*sizes), Places(*places), Tables(*arrays[:_SCRATCH]), Scratch(*arrays[_SCRATCH:])
    present = to.present
    record = Record(
        present.view(np.int64), present.view(np.float64), present.view(np.float32), present.view(np.int32), present
    )
    for a in range(len(slots)):
        kept = records[slots[a], begin:]
        _copy(kept, present)
        for i in range(starts[a], starts[a + 1]):
            if reset[i]:
                record.u1[:] = 0
            n = forecast[i]
            if n < 0:
                continue  # a missing step: the grid has missing points of its own
            if size.groups == 2:
                _project(size, table, hidden[i], to.projected)
            for k in range(size.targets):
                value = values[i, columns[k]]
                ahead = _points_to(size, at, record, k, timestamp_us[i])
                # A new point without a value stays open, since a later reading may bring its value: step it for the
                # forecast, then restore the record.
                is_open = ahead > 0 and not math.isfinite(value)
                for back in range(max(ahead, 1) - 1, -1, -1):  # points without a reading, then the reading's own
                    own = back == 0
                    if own and is_open:
                        _copy(present, to.saved)
                    if ahead > 0:
                        _move_on(size, at, record, k, timestamp_us[i], own)
                    y = value if own else math.nan
                    _step(size, at, table, record, k, y, own, ahead <= 0, model[n, k], out[n, k], weights[n, k], to)
                if is_open:
                    _copy(to.saved, present)
            if not _is_finite(model[n]):  # the model's fault: the other experts must not hide it
                out[n] = math.nan
        _copy(present, kept)
