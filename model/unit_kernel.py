"""The rule that recognises changes of unit: the arithmetic of one value of a sensor's feature.

The rule weighs these hypotheses about the present values:

- a *conversion*: values are multiplied by a usual factor (``CONVERSIONS``), for example 1,000;
- a *shift*: values are raised or lowered by a constant, which the first value after the change gives;
- *home*: the sensor is back in the state's own unit, and the map is void.

Each hypothesis has an evidence: the logarithm of a product of likelihood ratios, never below 0. It therefore counts
from the best moment of change, like a CUSUM ("e-detector": Shin, Ramdas and Rinaldo, 2022). A ratio's numerator is the
density of the value if the hypothesis holds: the converted value continues the past ones, in level and in size of
changes. The denominator stands for an ordinary sensor. It mixes heavy-tailed densities around the last value, the level
and the range with those of a new regime. A regime's changes have any size at all, or the size of the suspicious changes
so far. So a spike brings bounded evidence, and a machine that is switched on or off brings little. If the denominator
is the true density, evidence above x comes once in exp(x) values at most, on average. Real sensors are not that simple:
``tests.benchmarks.unit_changes`` counts the alarms on real data.

A value brings evidence for a change only if it is unlike the past: it lies outside the range of past values, or farther
from the last value than past changes went, or it moves in much finer steps than before. The first such value must also
land near the last one after its conversion. Values like past ones bring evidence against a change, and so do zeros if
the past had zeros. Exact repetitions bring none, because a stuck sensor has not changed its unit.

While some evidence lies above a limit, values are *withheld*: the state sees a missing value, and forecasts stay in the
old unit. Then the rule accepts a map, or the evidence vanishes and values count again, or the rule gives up. After
giving up it takes the values as they are, and learns the sensor's statistics from scratch. Each false suspicion, and
each change, raises the sensor's limits for some time.

A sudden change of level by 20 spreads, with noise of the same size as before, counts as a shift. The forecasts then
keep the daily pattern around the new level.

The arithmetic of a sensor and feature depends on its own values alone. All compiled functions and their constants are
in this file: numba compiles a cached function again if its own file changes, and would miss a change in another file.

Letters: A sensors, M steps, F features.
"""

import math
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from .kernel import compiled, inner

Numbers = NDArray[Any]

# --- the numbers of a feature: float64, all 0 before the first value -------------------------------------------------
FACTOR: Final = 0  # of the map; 0 if there is no map
OFFSET: Final = 1  # of the map
COUNT: Final = 2  # values learned from; values in all other fields are in the own unit
MOVES: Final = 3  # values learned from that differ from the value before
LAST: Final = 4  # the last value learned from
LEVEL: Final = 5  # running mean
SPREAD: Final = 6  # running mean |value - level|
CHANGE: Final = 7  # running mean |change|, without repetitions
RECENT: Final = 8  # the same, over fewer values
FINE: Final = 9  # size that few changes stay below (``FINE_SHARE``), without repetitions
WIDEST: Final = 10  # largest |change|, slowly forgotten
LOW: Final = 11  # smallest value, slowly forgotten
HIGH: Final = 12  # largest value, slowly forgotten
ANCHOR: Final = 13  # the value before the last change of a usual size
WARY: Final = 14  # false suspicions and earlier changes, slowly forgotten
PREVIOUS: Final = 15  # the previous value, withheld or not
WITHHELD: Final = 16  # values withheld in a row
FRESH: Final = 17  # values since the first evidence, without zeros and repetitions
REGIME: Final = 18  # mean |change| of these values, the first left out
SHIFT: Final = 19  # offset of the shift that is suspected
NUMBERS: Final = 20

# --- hypotheses ------------------------------------------------------------------------------------------------------
# Factor, and the evidence that it has to bring beyond the most usual one. Factors close to 1 are left out: series
# rise tenfold without a change of unit.
CONVERSIONS: Final = (
    (1e3, 0.0),
    (1e-3, 0.0),
    (1e6, 3.0),
    (1e-6, 3.0),
    (100.0, 4.0),
    (0.01, 4.0),
    (60.0, 4.0),
    (1.0 / 60.0, 4.0),
    (3_600.0, 6.0),
    (1.0 / 3_600.0, 6.0),
    (1_024.0, 4.0),
    (1.0 / 1_024.0, 4.0),
)
HOME: Final = 0  # index of the hypothesis
SHIFTED: Final = 1
HYPOTHESES: Final = 2 + len(CONVERSIONS)
_FACTORS: Final = np.array([1.0, 1.0, *(factor for factor, _ in CONVERSIONS)])
_COSTS: Final = np.array([0.0, 0.0, *(cost for _, cost in CONVERSIONS)])

# --- limits of the evidence: chosen on ETTh1, the Beijing set and NAB's series; `tests.benchmarks.unit_changes` -------
WITHHOLD: Final = 5.0  # from it on values are withheld
RELEASE: Final = 1.0  # below it values count again
ACCEPT: Final = 14.0  # from it on a conversion is accepted ...
ACCEPT_FRESH: Final = 6.0  # ... after this number of values
SHIFT_START: Final = 11.0  # evidence of a shift after its first value, which gives the offset
ACCEPT_SHIFT: Final = 19.0
ACCEPT_SHIFT_FRESH: Final = 12.0
MARGIN: Final = 3.0  # lead over the second best hypothesis; if it is smaller, more values are awaited
MOST_FRESH: Final = 32.0  # values withheld at most, without zeros and repetitions
MOST_WITHHELD: Final = 64.0  # values withheld at most
MOST_EVIDENCE: Final = 40.0
DOUBT: Final = 0.5  # evidence lost by a value like past ones, at least
# Each false suspicion raises WITHHOLD and ACCEPT by 1, and each change by CHANGE_WARY, at most by MOST_WARY: a sensor
# that changes again and again has regimes instead of units. After two changes, shifts are not followed for some 1,200
# readings, because SHIFT_START then lies below the limit.
CHANGE_WARY: Final = 4.0
MOST_WARY: Final = 10.0

# --- values unlike the past ------------------------------------------------------------------------------------------
KNOWN_MOVES: Final = 128.0  # moves before anything counts as unlike the past
BEYOND: Final = 0.25  # ranges outside the range of past values
JUMP: Final = 2.0  # widest changes from the last value
FINE_PART: Final = 0.5  # of FINE: a change below it is finer than before
FINE_SHARE: Final = 0.05  # of the changes are below FINE
ANCHOR_PART: Final = 0.5  # of the mean change: a change of a usual size
FINE_RATE: Final = 0.1  # update rate of FINE's logarithm
SHIFT_RANGES: Final = 2.0  # a shift leaves the range of past values by this number of ranges at least ...
SHIFT_SPREADS: Final = 20.0  # ... and is at least this number of spreads
LANDING_CHANGES: Final = 8.0  # mean changes from the last value at which evidence for a conversion may begin
LANDING_SPREADS: Final = 2.0  # the same in spreads, for a value outside the range
SLACK: Final = 0.5  # ranges outside the range of past values in which a converted value may lie ...
SLACK_SPREADS: Final = 10.0  # ... and spreads from the level

# --- densities -------------------------------------------------------------------------------------------------------
MEMORY: Final = 512.0  # values that level, spread and size of changes are averaged over
RECENT_MEMORY: Final = 16.0  # moves that RECENT is averaged over
RANGE_MEMORY: Final = 4_096.0  # values over which range and widest change are forgotten
NEAR: Final = 0.7  # weight of the density around the value before; the rest is the density around the level
SHARP: Final = 0.8  # width of the density around the value before, in mean changes
SIZES: Final = 46.0  # natural logarithms that the size of a new regime's changes is spread over: 20 decades
LEAST_CHANGE: Final = 1e-100  # a smaller mean change counts as a constant sensor
BOUND: Final = 1e100  # largest absolute value, so that no square overflows

# --- outcomes of a value ---------------------------------------------------------------------------------------------
COUNTED: Final = 0  # it counts as it is, or converted by the present map
HELD: Final = 1  # withheld
ACCEPTED: Final = 2  # a new map was accepted
CLEARED: Final = 3  # the evidence vanished
GAVE_UP: Final = 4


# --- arithmetic -------------------------------------------------------------------------------------------------------


@inner
def _cauchy(distance: float, width: float) -> float:
    """Density of Cauchy's distribution."""
    return width / (math.pi * (width * width + distance * distance))


@inner
def _student(distance: float, width: float) -> float:
    """Density of Student's distribution with three degrees of freedom."""
    z = 1.0 + distance * distance / (3.0 * width * width)
    return 2.0 / (math.pi * math.sqrt(3.0) * width * z * z)


@inner
def _ordinary(row: Numbers, value: float) -> float:
    """Density of a value if nothing has changed."""
    change, last = row[CHANGE], row[LAST]
    half = max(0.5 * (row[HIGH] - row[LOW]), change)
    return float(
        0.2 * _cauchy(value - last, change)
        + 0.2 * _cauchy(value - last, row[RECENT])
        + 0.3 * _student(value - row[LEVEL], max(row[SPREAD], change))
        + 0.15 * _student(value - last, max(row[WIDEST], change))
        + 0.15 * _student(value - 0.5 * (row[HIGH] + row[LOW]), 0.5 * half)
    )


@inner
def _learn(row: Numbers, value: float) -> None:
    """Update the statistics by a value in the own unit."""
    if row[COUNT] == 0.0:
        row[LAST] = row[LEVEL] = row[LOW] = row[HIGH] = row[ANCHOR] = value
        row[MOVES] = row[SPREAD] = row[CHANGE] = row[RECENT] = row[FINE] = row[WIDEST] = 0.0
    change = abs(value - row[LAST])
    row[COUNT] += 1.0
    # Running means start as plain means, because a constant rate would take long to forget the first value.
    rate, forgotten = max(1.0 / row[COUNT], 1.0 / MEMORY), 1.0 / RANGE_MEMORY
    if change > 0.0:
        row[MOVES] += 1.0
        if row[FINE] == 0.0:
            row[FINE] = change
        if change >= ANCHOR_PART * row[CHANGE]:
            row[ANCHOR] = row[LAST]
        below = 1.0 if change < row[FINE] else 0.0
        row[FINE] *= math.exp(FINE_RATE * (FINE_SHARE - below))
        row[CHANGE] += max(1.0 / row[MOVES], 1.0 / MEMORY) * (change - row[CHANGE])
        row[RECENT] += max(1.0 / row[MOVES], 1.0 / RECENT_MEMORY) * (change - row[RECENT])
    row[SPREAD] += rate * (abs(value - row[LEVEL]) - row[SPREAD])
    row[LEVEL] += rate * (value - row[LEVEL])
    row[WIDEST] = max(change, row[WIDEST] * (1.0 - forgotten))
    row[LOW] = min(value, row[LOW] + forgotten * (row[LEVEL] - row[LOW]))
    row[HIGH] = max(value, row[HIGH] + forgotten * (row[LEVEL] - row[HIGH]))
    row[WARY] *= 1.0 - forgotten
    row[LAST] = row[PREVIOUS] = value


@inner
def _own(row: Numbers, value: float) -> float:
    """A value in the own unit."""
    own = value if row[FACTOR] == 0.0 else (value - row[OFFSET]) / row[FACTOR]
    return float(min(max(own, -BOUND), BOUND))


@inner
def _weigh(row: Numbers, evidence: Numbers, value: float) -> None:
    """Update the evidence of all hypotheses by a value, in the unit of the present map."""
    width = row[HIGH] - row[LOW]
    beyond = max(value - row[HIGH], row[LOW] - value)
    change = abs(value - row[PREVIOUS])
    outside = beyond > BEYOND * width or abs(value - row[LAST]) > JUMP * row[WIDEST]
    fine = change < FINE_PART * row[FINE]
    suspected = False
    for h in range(HYPOTHESES):
        suspected = suspected or evidence[h] > 0.0
    if not (outside or fine or suspected):
        return
    if not suspected:
        row[FRESH] = row[REGIME] = 0.0
    usual = max(row[CHANGE], row[RECENT])
    any_size = 1.0 / (2.0 * SIZES * change)
    this_size = _cauchy(change, row[REGIME]) if row[REGIME] > 0.0 else any_size
    ordinary = 0.5 * _ordinary(row, value) + 0.25 * any_size + 0.25 * this_size
    for h in range(HYPOTHESES):
        factor, offset = _FACTORS[h], 0.0
        if h == HOME:
            if row[FACTOR] == 0.0:
                continue
            factor, offset = 1.0 / row[FACTOR], -row[OFFSET] / row[FACTOR]
        elif h == SHIFTED:
            if evidence[h] == 0.0:
                continue
            offset = row[SHIFT]
        elif row[FACTOR] != 0.0:  # a conversion applies to the sensor's unit
            offset = (factor - 1.0) * row[OFFSET] / row[FACTOR]
        converted = (value - offset) / factor
        strange = max(converted - row[HIGH], row[LOW] - converted) > SLACK * width
        if strange or abs(converted - row[LEVEL]) > SLACK_SPREADS * max(row[SPREAD], row[CHANGE]):
            evidence[h] = 0.0
            continue
        unlike = outside or (fine and factor < 1.0)
        if evidence[h] > 0.0:
            away = converted - (row[PREVIOUS] - offset) / factor
        elif unlike:
            away = converted - row[ANCHOR]
            if outside and abs(converted - row[LAST]) < abs(away):
                away = converted - row[LAST]
            if abs(away) > max(LANDING_CHANGES * usual, LANDING_SPREADS * row[SPREAD] if outside else 0.0):
                continue
        else:
            continue
        near = 0.5 * (_student(away, SHARP * row[CHANGE]) + _student(away, SHARP * row[RECENT]))
        far = _student(converted - row[LEVEL], max(row[SPREAD], row[CHANGE]))
        ratio = (NEAR * near + (1.0 - NEAR) * far) / (factor * ordinary)
        if not ratio > 0.0:
            evidence[h] = 0.0
            continue
        gained = math.log(ratio)
        if not unlike:
            gained = min(gained, -DOUBT)
        evidence[h] = max(0.0, min(evidence[h] + gained, MOST_EVIDENCE))
    row[FRESH] += 1.0
    if suspected:
        row[REGIME] += (change - row[REGIME]) / (row[FRESH] - 1.0)
    if row[WITHHELD] == 0.0 and beyond > SHIFT_RANGES * width and abs(value - row[LAST]) > SHIFT_SPREADS * row[SPREAD]:
        row[SHIFT] = value - row[LAST]
        evidence[SHIFTED] = SHIFT_START


@inner
def _doubt_zero(row: Numbers, evidence: Numbers, own: float) -> None:
    """Lower all evidence by a zero that the past knows: the sensor may be off."""
    if row[LOW] <= own <= row[HIGH]:
        for h in range(HYPOTHESES):
            evidence[h] = max(0.0, evidence[h] - DOUBT)


@inner
def _end(row: Numbers, evidence: Numbers) -> None:
    """End a suspicion."""
    for h in range(HYPOTHESES):
        evidence[h] = 0.0
    row[WITHHELD] = row[FRESH] = row[REGIME] = row[SHIFT] = 0.0


@inner
def _is_home(row: Numbers, h: int) -> bool:
    """Whether a conversion undoes the present map."""
    undone = abs(row[FACTOR] * _FACTORS[h] - 1.0) < 1e-9
    return bool(h > SHIFTED and row[FACTOR] != 0.0 and row[OFFSET] == 0.0 and undone)


@inner
def _adopt(row: Numbers, h: int) -> None:
    """Join a hypothesis to the present map."""
    factor = 1.0 if row[FACTOR] == 0.0 else row[FACTOR]
    if h == HOME:
        row[FACTOR] = row[OFFSET] = 0.0
    elif h == SHIFTED:
        row[FACTOR], row[OFFSET] = factor, factor * row[SHIFT] + row[OFFSET]
    else:
        row[FACTOR], row[OFFSET] = factor * _FACTORS[h], _FACTORS[h] * row[OFFSET]


@inner
def _step(row: Numbers, evidence: Numbers, value: float) -> int:
    """Step a feature by a value that is not missing, in the sensor's unit; returns the outcome."""
    own = _own(row, value)
    if row[MOVES] < KNOWN_MOVES or row[CHANGE] < LEAST_CHANGE:
        _learn(row, own)
        return COUNTED
    withheld = row[WITHHELD] > 0.0
    if value == 0.0:
        _doubt_zero(row, evidence, own)
    elif own != row[PREVIOUS]:
        _weigh(row, evidence, own)
    best, most, second = -1, 0.0, 0.0
    for h in range(HYPOTHESES):
        weight = evidence[h] - _COSTS[h]
        if _is_home(row, h):
            continue  # the same map as HOME
        if weight > most:
            best, most, second = h, weight, most
        elif weight > second and not (best == HOME and h == SHIFTED):  # a shift back leads home, too
            second = weight
    wary = 0.0 if best == HOME else row[WARY]
    if most < (RELEASE if withheld else WITHHOLD + wary):
        if withheld:
            _end(row, evidence)
            row[WARY] = min(row[WARY] + 1.0, MOST_WARY)
        _learn(row, own)
        return CLEARED if withheld else COUNTED
    row[WITHHELD] += 1.0
    row[PREVIOUS] = own
    shift = best == SHIFTED
    enough = row[FRESH] >= (ACCEPT_SHIFT_FRESH if shift else ACCEPT_FRESH)
    limit = (ACCEPT_SHIFT if shift else ACCEPT) + wary
    if enough and most >= limit and (most - second >= MARGIN or row[FRESH] >= MOST_FRESH):
        _adopt(row, best)
        _end(row, evidence)
        if best != HOME:
            row[WARY] = min(row[WARY] + CHANGE_WARY, MOST_WARY)
        _learn(row, _own(row, value))
        return ACCEPTED
    if row[FRESH] > MOST_FRESH or row[WITHHELD] >= MOST_WITHHELD:
        _end(row, evidence)
        row[WARY] = min(row[WARY] + 1.0, MOST_WARY)
        row[COUNT] = 0.0
        _learn(row, own)
        return GAVE_UP
    return HELD


@inner
def _copy(numbers: Numbers, to: Numbers) -> None:
    for i in range(len(numbers)):
        to[i] = numbers[i]


@compiled
def run(
    records: Numbers,
    begin: int,
    slots: Numbers,
    memory: Numbers,
    starts: Numbers,
    reset: Numbers,
    values: Numbers,
    own: Numbers,
    factor: Numbers,
    offset: Numbers,
    outcome: Numbers,
) -> None:
    """``model.unit_change.follow``; the last four arrays receive the results.

    Fields of a packed record may lie at any byte, so they are copied into ``memory`` (bytes,) uint8 and back.
    """
    F = values.shape[1]
    units = memory[: 8 * F * NUMBERS].view(np.float64).reshape((F, NUMBERS))
    evidence = memory[8 * F * NUMBERS :].view(np.float32).reshape((F, HYPOTHESES))
    for a in range(len(slots)):
        kept = records[slots[a], begin : begin + len(memory)]
        _copy(kept, memory)
        for m in range(starts[a], starts[a + 1]):
            if reset[m]:
                memory[:] = 0
            for f in range(F):
                row, value = units[f], values[m, f]
                found = COUNTED
                if math.isfinite(value):
                    found = _step(row, evidence[f], value)
                factor[m, f], offset[m, f], outcome[m, f] = row[FACTOR], row[OFFSET], found
                if found == HELD:
                    own[m, f] = math.nan
                elif row[FACTOR] == 0.0:
                    own[m, f] = value
                else:
                    own[m, f] = (value - row[OFFSET]) / row[FACTOR]
        _copy(memory, kept)
