"""The compiled step of the network: normaliser, inputs, GRU, head, and the order of the quantiles.

Stream and evaluator step every sensor here, and training normalises its data here. All compiled functions and their
constants are in this file: numba compiles a cached function again if its own file changes, and would miss a change in
another file.

A sensor's bits depend on its own readings alone, however the stream is cut:

- Each sum is accumulated in one fixed order, from the first input to the last. Sensors are stepped in blocks, so that
  a row of weights is read once for a block, and the order of each sum stays the same.
- ``fastmath`` is off, so no addition is reordered, and no product is fused with an addition.
- exp, sigmoid, tanh and softplus are plain arithmetic here. A library's vectorised functions may differ from its scalar
  ones in the last bit, and a loop has vector lanes and a scalar remainder.

So the bits are also the same on every processor that rounds as IEEE 754 says.

Letters: B states, A sensors with steps, b sensors of a block, n forecasts, M steps, F features, K targets, Q quantiles,
h horizon steps, L layers, H hidden, D inputs of a step, E numbers of a sensor's vector, R lags, P slots of the seasonal
profile, G inputs of the head, C inputs known ahead, W hidden units of their term.
"""

import math
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import numpy as np
from numba.core import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from .kernel import allocating, compiled, inner

Numbers = NDArray[Any]  # float64, unless the field's comment names another type

BLOCK: Final = 16  # sensors that are stepped together; their gates stay in a core's first cache
_COLUMNS: Final = 256  # outputs of the head that are computed together, for the same reason

# --- normaliser
# Scales from the level that a value is clipped to. One absurd reading then moves level and scale little, and a real
# change of level by a factor of a thousand is followed within one to two seasons.
MAX_DISTANCE_SCALES: Final = 16.0
PROFILE_SEASONS: Final = 7.0  # seasons over which the profile is averaged

# --- inputs
# Per feature: last value, quarter-season level and seven-season level (all less the season's level, in scales), size of
# the changes (in scales), whether the step has a value, and the steps since the last value.
INPUTS_PER_FEATURE: Final = 6
HALF_AGE: Final = 4.0  # steps since the last value whose input is 0.5
# Scales that inputs are clipped to; training seldom shows the network a larger one.
LARGEST_INPUT: Final = 32.0
LONGEST_ELAPSED: Final = 8.0  # cadences since the step before, as an input
# Smallest scale that is divided by; a smaller one counts as 0.
SMALLEST_SCALE: Final = 1e-150
DAY_US: Final = 86_400_000_000
WEEK_US: Final = 7 * DAY_US
MONDAY_US: Final = 4 * DAY_US  # 1970-01-05

# --- the first fields of a state record, int64
LAST_US: Final = 0
ORIGIN: Final = 1
OFFSET: Final = 2
STEPS: Final = 3
ACCEPTED: Final = 4
ANCHORS: Final = 5  # the first of them
HEADER: Final = 10  # number of these fields
NO_OFFSET: Final = -1


class Shape(NamedTuple):
    """The numbers of features, targets, layers and so on."""

    features: int  # F
    targets: int  # K
    lags: int  # R
    slots: int  # P
    layers: int  # L
    hidden: int  # H
    inputs: int  # D
    given: int  # G: H, and with a skip also the inputs of the step and its past
    quantiles: int  # Q
    median: int  # its index among the quantiles
    horizon: int  # h


class Places(NamedTuple):
    """The byte at which parts of a state record begin; the header begins at byte 0."""

    hidden: int  # (L, H) float32
    numbers: int  # float64: the normaliser's arrays in the order of ``Normalised``, then the lags


class Rates(NamedTuple):
    """The normaliser's constants."""

    targets: Numbers  # (K,) int64: their indexes among the features
    level_gains: Numbers  # (3,) smallest gains of the levels
    moment_gains: Numbers  # (2,) smallest gains of the mean squares
    prior: Numbers  # (F,) squared ratio of the scale to the changes, times ``prior_steps``
    prior_steps: float
    season: int  # steps
    slots: int  # P
    profile_gain: float  # factor of the profile's gain after the first season


class Weights(NamedTuple):
    """The network's weights in float32, a row for each input. The gates of the GRU, n, r and z, are columns."""

    into_first: Numbers  # (D+E, 3H) of the first layer's inputs, in the order n, r, z
    into: Numbers  # (L-1, H, 3H) of the other layers' inputs, in the order n, r, z
    recur: Numbers  # (L, H, 3H) of the hidden state, in the order r, z, n
    gates: Numbers  # (L, 4H) biases: n of the inputs, r, z, n of the hidden state
    head: Numbers  # (G, K·Q·h)
    head_bias: Numbers  # (K·Q·h,)
    ahead_in: Numbers  # (H+C, W) of the term of the inputs known ahead; (0, 0) without the term
    ahead_bias: Numbers  # (W,)
    ahead_out: Numbers  # (W, K·Q·h)
    day: Numbers  # (slots, inputs) the inputs that the time of day gives
    week: Numbers  # (slots, inputs)


class Normalised(NamedTuple):
    """Arrays of ``normaliser.NormaliserState``."""

    steps: Numbers  # (b,) int64
    counts: Numbers  # (b, F)
    age: Numbers  # (b, F)
    last: Numbers  # (b, F)
    levels: Numbers  # (b, F, 3)
    moments: Numbers  # (b, F, 2)
    scale: Numbers  # (b, F)
    profile: Numbers  # (b, K, P)


class Trace(NamedTuple):
    """Arrays of ``normaliser.NormaliserTrace``."""

    steps: Numbers  # (M,) int64
    counts: Numbers  # (M, F)
    age: Numbers  # (M, F)
    last: Numbers  # (M, F)
    levels: Numbers  # (M, F, 3)
    change: Numbers  # (M, F)
    scale: Numbers  # (M, F)
    shape: Numbers  # (M, K)


class Steps(NamedTuple):
    """M steps, sensor by sensor, the sensors with most steps first."""

    slots: Numbers  # (A,) int64: each sensor's state
    starts: Numbers  # (A+1,) int64: first step of each sensor, and M
    timestamp_us: Numbers  # (M,) int64
    elapsed: Numbers  # (M,) float32
    reset: Numbers  # (M,) bool
    reading: Numbers  # (M,) int64: the step's reading, as an index in ``Readings``; -1 for none
    forecast: Numbers  # (M,) int64: the row of the forecast that is wanted after the step; -1 for none


class Readings(NamedTuple):
    """The readings that states note; without readings, headers keep their offsets and times."""

    timestamp_us: Numbers  # (n,) int64
    offset: Numbers  # (n,) int64
    may_anchor: Numbers  # (n,) bool: whether a rebuild may begin with the reading; (0,) if it may with any
    spacing: int  # readings between two anchors


class Made(NamedTuple):
    """The results of ``run``."""

    hidden: Numbers  # (M, H) float32: the last layer's hidden states; (0, H) if not wanted
    origin: Numbers  # (readings,) int64: of each reading's state
    steps: Numbers  # (n,) int64: of each forecast's state
    level: Numbers  # (n, K)
    scale: Numbers  # (n, K)
    quantiles: Numbers  # (n, K, Q, h) on the model's scale


# --- functions in float32 ---------------------------------------------------------------------------------------------

_F0: Final = np.float32(0.0)
_F1: Final = np.float32(1.0)
_F2: Final = np.float32(2.0)
_LARGEST_EXPONENT: Final = np.float32(87.0)  # exp stays a normal float32 within ±87
_LOG2_E: Final = np.float32(1.442695041)
# ln 2 in two parts. The first has few bits, so that its product with a whole number is exact.
_LN2_HIGH: Final = np.float32(0.693359375)
_LN2_LOW: Final = np.float32(-2.12194440e-4)
# Added to a number below 2**22, it rounds the number to a whole one, which its last bits then hold.
_ROUNDER: Final = np.float32(1.5 * 2**23)
# exp(r) = 1 + r + r² P(r) for |r| <= ln 2 / 2; from Cephes (Moshier), expf.
_EXP_0: Final = np.float32(5.0000001201e-1)
_EXP_1: Final = np.float32(1.6666665459e-1)
_EXP_2: Final = np.float32(4.1665795894e-2)
_EXP_3: Final = np.float32(8.3334519073e-3)
_EXP_4: Final = np.float32(1.3981999507e-3)
_EXP_5: Final = np.float32(1.9875691500e-4)
# tanh(x) = x + x³ P(x²) for |x| < _TANH_SMALL; from Cephes, tanhf.
_TANH_SMALL: Final = np.float32(0.625)
_TANH_0: Final = np.float32(-3.33332819422e-1)
_TANH_1: Final = np.float32(1.33314422036e-1)
_TANH_2: Final = np.float32(-5.37397155531e-2)
_TANH_3: Final = np.float32(2.06390887954e-2)
_TANH_4: Final = np.float32(-5.70498872745e-3)


def _exponent(_context: Any, _rounded: Any) -> tuple[Any, Callable[..., Any]]:
    """2**n in float32 from ``_ROUNDER`` + n, for n from -126 to 127: its last bits become the exponent."""

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        bits = builder.bitcast(arguments[0], context.get_value_type(types.int32))
        shift, bias = context.get_constant(types.int32, 23), context.get_constant(types.int32, 127 << 23)
        power = builder.add(builder.shl(bits, shift), bias)
        return builder.bitcast(power, context.get_value_type(types.float32))

    return types.float32(types.float32), generate


_power_of_two: Any = intrinsic(_exponent)


@inner
def _exp(x: Any) -> Any:
    """exp(x) in float32, within 1 unit in the last place between -87 and 87, and exp(±87) beyond; NaN stays NaN."""
    x = _LARGEST_EXPONENT if x > _LARGEST_EXPONENT else x
    x = -_LARGEST_EXPONENT if x < -_LARGEST_EXPONENT else x
    rounded = x * _LOG2_E + _ROUNDER
    n = rounded - _ROUNDER
    exact, small = x - n * _LN2_HIGH, n * _LN2_LOW
    r = exact - small
    p = ((((_EXP_5 * r + _EXP_4) * r + _EXP_3) * r + _EXP_2) * r + _EXP_1) * r + _EXP_0
    above = _F1 + r
    lost = (r - (above - _F1)) + ((exact - r) - small)  # by rounding in the two sums
    return (above + (p * (r * r) + lost)) * _power_of_two(rounded)


@inner
def _sigmoid(x: Any) -> Any:
    e = _exp(-abs(x))
    total = _F1 + e
    lost = e - (total - _F1)  # by rounding in the sum
    near = (_F1 if x >= _F0 else e) / total
    return near - near * (lost * (near if x >= _F0 else _F1 - near))


@inner
def _tanh(x: Any) -> Any:
    z = x * x
    near = ((((_TANH_4 * z + _TANH_3) * z + _TANH_2) * z + _TANH_1) * z + _TANH_0) * (z * x) + x
    far = _F1 - _F2 / (_exp(_F2 * abs(x)) + _F1)
    far = -far if x < _F0 else far
    return near if abs(x) < _TANH_SMALL else far


@inner
def _softplus(x: Any) -> Any:
    """log(1 + exp(x)) in float32."""
    e = float(_exp(-abs(x)))
    s = e / (2.0 + e)
    z = s * s
    # log(1 + e) = 2 artanh(s), with s up to 1/3
    series = 1.0 / 17.0 + z * (1.0 / 19.0)
    for term in (15.0, 13.0, 11.0, 9.0, 7.0, 5.0, 3.0, 1.0):
        series = 1.0 / term + z * series
    above = float(x) if x > _F0 else 0.0
    above = float(x) if x != x else above
    return np.float32(above + 2.0 * s * series)


# --- normaliser -------------------------------------------------------------------------------------------------------


@inner
def _blank(norm: Normalised, b: int) -> None:
    """Reset the normaliser's state of a sensor."""
    norm.steps[b] = 0
    norm.counts[b] = 0.0
    norm.age[b] = 0.0
    norm.last[b] = 0.0
    norm.levels[b] = 0.0
    norm.moments[b] = 0.0
    norm.scale[b] = 0.0
    norm.profile[b] = 0.0


@inner
def _normalise(rates: Rates, norm: Normalised, b: int, values: Numbers, shape: Numbers) -> None:
    """Step a normaliser's state by the values (F,), NaN where missing; ``shape`` (K,) gets the profile of the slot."""
    for f in range(len(values)):
        value, level, scale = values[f], norm.levels[b, f, 1], norm.scale[b, f]
        seen = not math.isnan(value)
        count = norm.counts[b, f] + (1.0 if seen else 0.0)
        grown = seen and count > 1.0
        # Without a scale (a sensor's first values, or a constant sensor) distances are not clipped.
        furthest = scale * MAX_DISTANCE_SCALES if scale > 0.0 else math.inf
        away = (value if seen else level) - level
        away = furthest if away > furthest else away
        away = -furthest if away < -furthest else away
        taken = level + away
        change = taken - norm.last[b, f] if grown else 0.0
        for j in range(3):
            gain = max(1.0 / max(count, 1.0), rates.level_gains[j])
            held = norm.levels[b, f, j]
            norm.levels[b, f, j] = held + (gain * (taken - held) if seen else 0.0)
        away *= taken - norm.levels[b, f, 1]  # the distances before and after the update
        for j in range(2):
            gain = max(1.0 / max(count - 1.0, 1.0), rates.moment_gains[j])
            held = norm.moments[b, f, j]
            square = away if j == 0 else change * change
            norm.moments[b, f, j] = held + (gain * (square - held) if grown else 0.0)
        norm.counts[b, f] = count
        norm.last[b, f] = taken if seen else norm.last[b, f]
        norm.age[b, f] = 0.0 if seen else norm.age[b, f] + 1.0
        young = max(count - 1.0, 0.0)
        size = norm.moments[b, f, 0] * young + norm.moments[b, f, 1] * rates.prior[f]
        norm.scale[b, f] = math.sqrt(size / (young + rates.prior_steps))
    steps = norm.steps[b]
    norm.steps[b] = steps + 1
    if not rates.slots:
        shape[:] = 0.0
        return
    slot = steps % rates.season * rates.slots // rates.season
    gain = max(1.0 / (steps // rates.season + 1.0), 1.0 / PROFILE_SEASONS)
    gain = 1.0 if steps < rates.season else gain * rates.profile_gain
    for k in range(len(shape)):
        f = rates.targets[k]
        held = norm.profile[b, k, slot]
        away = norm.last[b, f] - norm.levels[b, f, 1]
        held += gain * (away - held) if not math.isnan(values[f]) else 0.0
        norm.profile[b, k, slot] = held
        shape[k] = held


@compiled
def normalise(rates: Rates, norm: Normalised, values: Numbers, sizes: Numbers, reset: Numbers, trace: Trace) -> None:
    """``normaliser.Normaliser.step``; ``trace`` receives the results."""
    m = 0
    for rows in sizes:
        for b in range(rows):
            if reset[m]:
                _blank(norm, b)
            _normalise(rates, norm, b, values[m], trace.shape[m])
            trace.steps[m] = norm.steps[b]
            for f in range(values.shape[1]):
                trace.counts[m, f] = norm.counts[b, f]
                trace.age[m, f] = norm.age[b, f]
                trace.last[m, f] = norm.last[b, f]
                for j in range(3):
                    trace.levels[m, f, j] = norm.levels[b, f, j]
                trace.change[m, f] = norm.moments[b, f, 1]
                trace.scale[m, f] = norm.scale[b, f]
            m += 1


# --- inputs -----------------------------------------------------------------------------------------------------------


@inner
def _reciprocal(scale: float) -> float:
    """1 / scale, and 0 for a sensor that has been constant, whose scaled inputs are then 0."""
    return 1.0 / scale if scale > SMALLEST_SCALE else 0.0


@inner
def _clip(value: float) -> Any:
    """The number in float32, clipped; NaN stays NaN."""
    value = LARGEST_INPUT if value > LARGEST_INPUT else value
    return np.float32(-LARGEST_INPUT if value < -LARGEST_INPUT else value)


@inner
def _step_inputs(weights: Weights, norm: Normalised, b: int, timestamp_us: int, elapsed: Any, x: Numbers) -> None:
    """Fill the first D of ``x`` with the inputs of a step, as ``inputs.PreparedSequences.x`` holds them."""
    F = norm.scale.shape[1]
    place = 0
    for f in range(F):
        level, unit = norm.levels[b, f, 1], _reciprocal(norm.scale[b, f])
        x[place] = _clip((norm.last[b, f] - level) * unit)
        x[place + 1] = _clip((norm.levels[b, f, 0] - level) * unit)
        x[place + 2] = _clip((norm.levels[b, f, 2] - level) * unit)
        x[place + 3] = _clip(math.sqrt(norm.moments[b, f, 1]) * unit)
        age = norm.age[b, f]
        x[place + 4] = np.float32(1.0 if age == 0.0 else 0.0)
        x[place + 5] = np.float32(age / (age + HALF_AGE))
        place += INPUTS_PER_FEATURE
    x[place] = min(elapsed, np.float32(LONGEST_ELAPSED))
    place += 1
    day, week = weights.day, weights.week
    row = timestamp_us % DAY_US * len(day) // DAY_US
    for j in range(day.shape[1]):
        x[place + j] = day[row, j]
    place += day.shape[1]
    row = (timestamp_us - MONDAY_US) % WEEK_US * len(week) // WEEK_US
    for j in range(week.shape[1]):
        x[place + j] = week[row, j]


@inner
def _step_lags(rates: Rates, norm: Normalised, b: int, values: Numbers, lags: Numbers) -> None:
    """Put the last values in front of the lags (K, R); before a target's first value, all lags are that value."""
    for k in range(lags.shape[0]):
        f = rates.targets[k]
        last = norm.last[b, f]
        if norm.counts[b, f] == 1.0 and not math.isnan(values[f]):
            lags[k] = last
            continue
        for j in range(lags.shape[1] - 1, 0, -1):
            lags[k, j] = lags[k, j - 1]
        if lags.shape[1]:
            lags[k, 0] = last


@inner
def _past_inputs(rates: Rates, norm: Normalised, b: int, lags: Numbers, past: Numbers) -> None:
    """Fill ``past`` with the lags and the profile, as ``inputs.Past.inputs`` does."""
    P = rates.slots
    slot = (norm.steps[b] - 1) % rates.season * P // rates.season if P else 0
    place = 0
    for k in range(lags.shape[0]):
        f = rates.targets[k]
        level, unit = norm.levels[b, f, 1], _reciprocal(norm.scale[b, f])
        for j in range(lags.shape[1]):
            past[place + j] = _clip((lags[k, j] - level) * unit)
        place += lags.shape[1]
        for j in range(P):  # from the slot after the step's own around to itself
            past[place + j] = _clip(norm.profile[b, k, (slot + 1 + j) % P] * unit)
        place += P


# --- network ----------------------------------------------------------------------------------------------------------


@inner
def _multiply(x: Numbers, rows: int, weight: Numbers, begin: int, end: int, out: Numbers, first: int) -> None:
    """Add ``x @ weight[:, begin:end]`` to the columns from ``first`` on of the first rows, input by input."""
    inputs, width = weight.shape[0], end - begin
    whole = inputs // 4 * 4
    for i in range(0, whole, 4):
        w0, w1 = weight[i, begin:end], weight[i + 1, begin:end]
        w2, w3 = weight[i + 2, begin:end], weight[i + 3, begin:end]
        for b in range(rows):
            to = out[b, first : first + width]
            x0, x1, x2, x3 = x[b, i], x[b, i + 1], x[b, i + 2], x[b, i + 3]
            for o in range(width):
                to[o] = (((to[o] + w0[o] * x0) + w1[o] * x1) + w2[o] * x2) + w3[o] * x3
    for i in range(whole, inputs):
        w0 = weight[i, begin:end]
        for b in range(rows):
            to, x0 = out[b, first : first + width], x[b, i]
            for o in range(width):
                to[o] += w0[o] * x0


@inner
def _step_layers(weights: Weights, x: Numbers, rows: int, hidden: Numbers, gates: Numbers) -> None:
    """Step the hidden states (L, b, H) of the first rows by the inputs ``x`` (b, D+E). The gates are PyTorch's."""
    L, H = hidden.shape[0], hidden.shape[2]
    for layer in range(L):
        into = weights.into_first if layer == 0 else weights.into[layer - 1]
        given = x if layer == 0 else hidden[layer - 1]
        for b in range(rows):
            for o in range(4 * H):
                gates[b, o] = weights.gates[layer, o]
        _multiply(given, rows, into, 0, 3 * H, gates, 0)
        _multiply(hidden[layer], rows, weights.recur[layer], 0, 3 * H, gates, H)
        for b in range(rows):
            carried = hidden[layer, b]
            n_in, r_in, z_in, n_back = gates[b, :H], gates[b, H : 2 * H], gates[b, 2 * H : 3 * H], gates[b, 3 * H :]
            for j in range(H):
                new = _tanh(n_in[j] + _sigmoid(r_in[j]) * n_back[j])
                carried[j] = new + _sigmoid(z_in[j]) * (carried[j] - new)  # (1 - z) n + z h


@inner
def _forecast(
    shape: Shape, weights: Weights, given: Numbers, ahead: Numbers, raw: Numbers, between: Numbers, made: Made
) -> None:
    """Fill ``made.quantiles`` from the head's inputs (n, G) and the inputs known ahead (n, C).

    ``raw`` (b, K·Q·h) and ``between`` (b, W) are memory for intermediate results.
    """
    Q, h, H = shape.quantiles, shape.horizon, shape.hidden
    n, outputs, middle = len(given), shape.targets * Q * h, weights.ahead_in.shape[1]
    for first in range(0, n, BLOCK):
        rows = min(BLOCK, n - first)
        x = given[first : first + rows]
        for b in range(rows):
            for o in range(outputs):
                raw[b, o] = weights.head_bias[o]
        for begin in range(0, outputs, _COLUMNS):
            _multiply(x, rows, weights.head, begin, min(begin + _COLUMNS, outputs), raw, begin)
        if middle:
            for b in range(rows):
                for o in range(middle):
                    between[b, o] = weights.ahead_bias[o]
            _multiply(x, rows, weights.ahead_in[:H], 0, middle, between, 0)
            _multiply(ahead[first : first + rows], rows, weights.ahead_in[H:], 0, middle, between, 0)
            for b in range(rows):
                for o in range(middle):
                    between[b, o] = _F0 if between[b, o] < _F0 else between[b, o]
            for begin in range(0, outputs, _COLUMNS):
                _multiply(between, rows, weights.ahead_out, begin, min(begin + _COLUMNS, outputs), raw, begin)
        for b in range(rows):
            _uncross(shape, raw[b], made.level[first + b], made.scale[first + b], made.quantiles[first + b])


@inner
def _uncross(shape: Shape, raw: Numbers, level: Numbers, scale: Numbers, quantiles: Numbers) -> None:
    """Fill ``quantiles`` (K, Q, h) in order from raw outputs, as ``Forecaster.uncrossed`` does; it changes ``raw``.

    The raw median stays. Each other quantile lies the softplus of its raw output beyond its inner neighbour.
    """
    Q, h, median = shape.quantiles, shape.horizon, shape.median
    for k in range(shape.targets):
        begin = k * Q * h
        for q in range(median + 1, Q):
            own, inside = raw[begin + q * h : begin + (q + 1) * h], raw[begin + (q - 1) * h : begin + q * h]
            for j in range(h):
                own[j] = inside[j] + _softplus(own[j])
        for q in range(median - 1, -1, -1):
            own, inside = raw[begin + q * h : begin + (q + 1) * h], raw[begin + (q + 1) * h : begin + (q + 2) * h]
            for j in range(h):
                own[j] = inside[j] - _softplus(own[j])
        for q in range(Q):
            for j in range(h):
                quantiles[k, q, j] = level[k] + scale[k] * raw[begin + q * h + j]


# --- states -----------------------------------------------------------------------------------------------------------


@inner
def _copy(source: Numbers, begin: int, to: Numbers, place: int, count: int) -> None:
    # Arrays are copied here and not by an assignment of slices, which would look for an overlap each time, and copy
    # through a new array if there is one. With slices, no index in the loop can be negative, which would keep it from
    # being vectorised.
    taken, filled = source[begin : begin + count], to[place : place + count]
    for j in range(count):
        filled[j] = taken[j]


@inner
def _unpack(numbers: Numbers, norm: Normalised, lags: Numbers, b: int) -> None:
    """Fill a sensor's rows of the arrays from the numbers of its record."""
    F, K, P, R = norm.scale.shape[1], lags.shape[1], norm.profile.shape[2], lags.shape[2]
    for f in range(F):
        norm.counts[b, f], norm.age[b, f], norm.last[b, f] = numbers[f], numbers[F + f], numbers[2 * F + f]
        for j in range(3):
            norm.levels[b, f, j] = numbers[3 * F + 3 * f + j]
        norm.moments[b, f, 0], norm.moments[b, f, 1] = numbers[6 * F + 2 * f], numbers[6 * F + 2 * f + 1]
        norm.scale[b, f] = numbers[8 * F + f]
    for k in range(K):
        for j in range(P):
            norm.profile[b, k, j] = numbers[9 * F + k * P + j]
        for j in range(R):
            lags[b, k, j] = numbers[9 * F + K * P + k * R + j]


@inner
def _pack(norm: Normalised, lags: Numbers, b: int, numbers: Numbers) -> None:
    """Fill the numbers of a sensor's record from its rows of the arrays."""
    F, K, P, R = norm.scale.shape[1], lags.shape[1], norm.profile.shape[2], lags.shape[2]
    for f in range(F):
        numbers[f], numbers[F + f], numbers[2 * F + f] = norm.counts[b, f], norm.age[b, f], norm.last[b, f]
        for j in range(3):
            numbers[3 * F + 3 * f + j] = norm.levels[b, f, j]
        numbers[6 * F + 2 * f], numbers[6 * F + 2 * f + 1] = norm.moments[b, f, 0], norm.moments[b, f, 1]
        numbers[8 * F + f] = norm.scale[b, f]
    for k in range(K):
        for j in range(P):
            numbers[9 * F + k * P + j] = norm.profile[b, k, j]
        for j in range(R):
            numbers[9 * F + K * P + k * R + j] = lags[b, k, j]


@inner
def _note(header: Numbers, readings: Readings, i: int, reset: bool) -> None:
    """Note a reading in its state's header: the state's age, its last reading, and the anchors of a rebuild."""
    if reset:
        header[ORIGIN], header[ACCEPTED] = readings.offset[i], 0
    header[ACCEPTED] += 1
    header[OFFSET], header[LAST_US] = readings.offset[i], readings.timestamp_us[i]
    due = (header[ACCEPTED] - 1) % readings.spacing == 0
    if due:
        if header[ACCEPTED] == 1:
            header[ANCHORS:] = NO_OFFSET
        for j in range(ANCHORS, HEADER - 1):
            header[j] = header[j + 1]
        header[HEADER - 1] = NO_OFFSET
    # A due anchor that no rebuild may begin with moves to the next reading that one may.
    suitable = readings.may_anchor[i] if len(readings.may_anchor) else due
    if suitable and header[HEADER - 1] == NO_OFFSET:
        header[HEADER - 1] = readings.offset[i]


# The place of each tuple's first field in the arguments of ``run``.
_STEPS: Final = len(Weights._fields)
_READINGS: Final = _STEPS + len(Steps._fields)
_MADE: Final = _READINGS + len(Readings._fields)


@compiled
def find_non_finite(records: Numbers, fields: Numbers, bad: Numbers) -> None:
    """Set ``bad`` (B,) where one of the numbers in a record (bytes,) is a NaN or infinite: its exponent is all ones.

    Args:
        records: (B, bytes) uint8.
        fields: (fields, 3) int64: first byte of a field, its numbers, and the bytes of a number: 4 or 8.
    """
    for b in range(len(records)):
        for f in range(len(fields)):
            begin, count, width = fields[f, 0], fields[f, 1], fields[f, 2]
            least = 0xF0 if width == 8 else 0x80  # the exponent's bits in the byte before the last one
            for end in range(begin + width, begin + (count + 1) * width, width):
                if records[b, end - 1] & 0x7F == 0x7F and records[b, end - 2] & least == least:
                    bad[b] = True


@allocating
def run(
    shapes: tuple[Any, ...],
    places: tuple[Any, ...],
    constants: tuple[Any, ...],
    records: Numbers,
    vectors: Numbers,
    values: Numbers,
    ahead: Numbers,
    *fields: Any,
) -> None:
    """Step the states of A sensors in place, and fill ``Made``.

    A call of compiled code takes several times as long with named tuples, and longer with tuples of arrays than with
    arrays. So ``Shape``, ``Places`` and ``Rates`` come as plain tuples, and the other fields one by one.

    Args:
        records: (B, bytes) uint8, the state records.
        vectors: (A, E) float32, of the sensors.
        values: (M, F) on the model's scale, NaN where missing.
        ahead: (n, C) float32, the inputs known ahead of the forecasts; (n, 0) without such inputs.
        fields: those of ``Weights``, ``Steps``, ``Readings`` and ``Made``.
    """
    shape, place, rates = Shape(*shapes), Places(*places), Rates(*constants)
    weights, steps = Weights(*fields[:_STEPS]), Steps(*fields[_STEPS:_READINGS])
    readings, made = Readings(*fields[_READINGS:_MADE]), Made(*fields[_MADE:])
    F, K, R, L, H, D = shape.features, shape.targets, shape.lags, shape.layers, shape.hidden, shape.inputs
    E = vectors.shape[1]
    norm = Normalised(
        np.empty(BLOCK, np.int64),
        np.empty((BLOCK, F)),
        np.empty((BLOCK, F)),
        np.empty((BLOCK, F)),
        np.empty((BLOCK, F, 3)),
        np.empty((BLOCK, F, 2)),
        np.empty((BLOCK, F)),
        np.empty((BLOCK, K, shape.slots)),
    )
    header = np.empty((BLOCK, HEADER), np.int64)
    lags = np.empty((BLOCK, K, R))
    hidden = np.empty((L, BLOCK, H), np.float32)
    x = np.empty((BLOCK, D + E), np.float32)
    gates = np.empty((BLOCK, 4 * H), np.float32)
    profile = np.empty(K)  # in the slot of the step
    given = np.empty((len(made.steps), shape.given), np.float32)
    raw = np.empty((BLOCK, K * shape.quantiles * shape.horizon), np.float32)
    between = np.empty((BLOCK, weights.ahead_in.shape[1]), np.float32)
    numbers = np.empty(9 * F + K * (shape.slots + R))  # of one record
    # Fields of a packed record may lie at any byte, so they are copied bytewise.
    memory, header_bytes = records.reshape(-1), header.reshape(-1).view(np.uint8)
    hidden_bytes, number_bytes = hidden.reshape(-1).view(np.uint8), numbers.view(np.uint8)
    count = len(steps.slots)
    for first in range(0, count, BLOCK):
        rows = min(BLOCK, count - first)
        for b in range(rows):
            begin = steps.slots[first + b] * records.shape[1]
            _copy(memory, begin, header_bytes, b * 8 * HEADER, 8 * HEADER)
            for layer in range(L):
                _copy(memory, begin + place.hidden + layer * H * 4, hidden_bytes, (layer * BLOCK + b) * H * 4, H * 4)
            _copy(memory, begin + place.numbers, number_bytes, 0, len(number_bytes))
            _unpack(numbers, norm, lags, b)
            norm.steps[b] = header[b, STEPS]
            for j in range(E):
                x[b, D + j] = vectors[first + b, j]
        active = rows
        for r in range(steps.starts[first + 1] - steps.starts[first]):
            while steps.starts[first + active] - steps.starts[first + active - 1] <= r:
                active -= 1
            for b in range(active):
                m = steps.starts[first + b] + r
                if steps.reset[m]:
                    _blank(norm, b)
                    lags[b] = 0.0
                    for layer in range(L):
                        hidden[layer, b] = _F0
                _normalise(rates, norm, b, values[m], profile)
                _step_lags(rates, norm, b, values[m], lags[b])
                _step_inputs(weights, norm, b, steps.timestamp_us[m], steps.elapsed[m], x[b])
                if len(readings.offset) and steps.reading[m] >= 0:
                    _note(header[b], readings, steps.reading[m], steps.reset[m])
                    made.origin[steps.reading[m]] = header[b, ORIGIN]
            _step_layers(weights, x, active, hidden, gates)
            for b in range(active):
                m = steps.starts[first + b] + r
                top = hidden[L - 1, b]
                if len(made.hidden):
                    _copy(top, 0, made.hidden[m], 0, H)
                n = steps.forecast[m]
                if n < 0:
                    continue
                made.steps[n] = norm.steps[b]
                for k in range(K):
                    f = rates.targets[k]
                    made.level[n, k], made.scale[n, k] = norm.levels[b, f, 1], norm.scale[b, f]
                _copy(top, 0, given[n], 0, H)
                if shape.given > H:
                    _copy(x[b], 0, given[n], H, D)
                    _past_inputs(rates, norm, b, lags[b], given[n, H + D :])
        for b in range(rows):
            begin = steps.slots[first + b] * records.shape[1]
            header[b, STEPS] = norm.steps[b]
            _pack(norm, lags, b, numbers)
            _copy(header_bytes, b * 8 * HEADER, memory, begin, 8 * HEADER)
            for layer in range(L):
                _copy(hidden_bytes, (layer * BLOCK + b) * H * 4, memory, begin + place.hidden + layer * H * 4, H * 4)
            _copy(number_bytes, 0, memory, begin + place.numbers, len(number_bytes))
    _forecast(shape, weights, given, ahead, raw, between, made)
