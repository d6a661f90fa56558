"""The network's inputs at each step: normalised features, masks, times, and the targets' recent past.

Training gathers them here. Stream and evaluator compute the same float32 bits, step by step, in ``model.step_kernel``.

Letters: M, N or n steps, F features, K targets, R lags, P slots of the seasonal profile, D inputs of a step.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from .config import ModelConfig
from .normaliser import Floats, Normaliser, NormaliserState, NormaliserTrace, profile_slots
from .sequences import Sequences
from .step_kernel import (
    DAY_US,
    HALF_AGE,
    INPUTS_PER_FEATURE,
    LARGEST_INPUT,
    LONGEST_ELAPSED,
    MONDAY_US,
    SMALLEST_SCALE,
    WEEK_US,
)
from .target_scale import to_model_scale
from .unit_change import in_own_units

Indexes = NDArray[np.int64]

_SCALED_INPUTS: Final = 4  # the first inputs of a feature, in scales
# Slots of the calendar's tables. Tables in float32 give the same bits everywhere; the sines of two maths libraries may
# differ in the last bit of float64.
_DAY_SLOTS: Final = 1_440
_WEEK_SLOTS: Final = 672


def _circle(slots: int, waves: int) -> NDArray[np.float32]:
    angles = 2.0 * np.pi * np.arange(slots)[:, None] / slots * np.arange(1, waves + 1)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)


@dataclass(frozen=True)
class CalendarTable:
    """Inputs by slot of a period, from ``first_us`` on."""

    values: NDArray[np.float32]  # (slots, inputs)
    first_us: int
    period_us: int

    def __call__(self, timestamp_us: Indexes) -> NDArray[np.float32]:
        """(M, inputs) at these times."""
        return self.values[(timestamp_us - self.first_us) % self.period_us * len(self.values) // self.period_us]


CALENDAR: Final = (
    CalendarTable(_circle(_DAY_SLOTS, 2), 0, DAY_US),
    CalendarTable(_circle(_WEEK_SLOTS, 1), MONDAY_US, WEEK_US),
)
_CALENDAR_INPUTS: Final[int] = sum(table.values.shape[1] for table in CALENDAR)


def input_size(config: ModelConfig) -> int:
    """D: the inputs of a step."""
    return config.feature_count * INPUTS_PER_FEATURE + 1 + _CALENDAR_INPUTS


def past_size(config: ModelConfig) -> int:
    """K·(R+P): the lags and profile slots of a step."""
    return config.target_count * (config.lag_steps + profile_slots(config))


def scaled_inputs(trace: NormaliserTrace) -> NDArray[np.float32]:
    """(M, F, 4) the inputs in scales of each feature."""
    scaled = np.empty((*trace.last.shape, _SCALED_INPUTS), np.float32)
    level = trace.levels[:, :, 1]
    unit = _reciprocal(trace.scale)
    with np.errstate(over="ignore"):  # numbers too large for float32 are clipped next
        scaled[:, :, 0] = (trace.last - level) * unit
        scaled[:, :, 1] = (trace.levels[:, :, 0] - level) * unit
        scaled[:, :, 2] = (trace.levels[:, :, 2] - level) * unit
        scaled[:, :, 3] = np.sqrt(trace.change) * unit
    return _clip(scaled)


def age_inputs(age: NDArray[Any]) -> NDArray[np.float32]:
    """(M, F, 2) the inputs of each feature that its steps since the last value (M, F) give."""
    return np.stack([age == 0, age / (age + HALF_AGE)], axis=2, dtype=np.float32, casting="same_kind")


def elapsed_inputs(elapsed: NDArray[np.float32]) -> NDArray[np.float32]:
    """(M, 1) the input between those of the values and the calendar's: the cadences since the step before."""
    return np.minimum(elapsed, LONGEST_ELAPSED)[:, None]


def calendar_inputs(timestamp_us: Indexes) -> NDArray[np.float32]:
    """(M, 6) the last inputs of a step: sines and cosines of its time of day and of its time of the week."""
    return np.concatenate([table(timestamp_us) for table in CALENDAR], axis=1)


def _reciprocal(scale: Floats) -> Floats:
    """1 / scale, and 0 for a sensor that has been constant, whose scaled inputs are then 0."""
    out = np.zeros_like(scale)
    np.divide(1.0, scale, out=out, where=scale > SMALLEST_SCALE)
    return out


def _clip(values: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.clip(values, -LARGEST_INPUT, LARGEST_INPUT, out=values)


@dataclass(frozen=True)
class Past:
    """The targets' values and seasonal profile by step, sensor by sensor: the source of the network's past inputs."""

    config: ModelConfig
    last: Floats  # (N, K) the last value
    shape: Floats  # (N, K) the seasonal profile in the step's slot
    steps: NDArray[np.integer]  # (N,) steps of the state, this step included
    begin: NDArray[np.integer]  # (N, K) the state's first step with a value; no lag reaches further back

    def inputs(self, index: Indexes, level: Floats, scale: Floats) -> NDArray[np.float32]:
        """(n, K·(R+P)) for the steps ``index``: lags and profile in units of each step's scale.

        Args:
            level, scale: (n, K) of the targets after each step.
        """
        unit = _reciprocal(scale)[:, :, None]
        lags = (self.lags(index) - level[:, :, None]) * unit
        with np.errstate(over="ignore"):  # numbers too large for float32 are clipped next
            around = np.concatenate([lags, self._profiles(index) * unit], axis=2, dtype=np.float32)
        return _clip(around).reshape(len(index), past_size(self.config))

    def lags(self, index: Indexes) -> Floats:
        """(n, K, R): the values 0 to R-1 steps before each step; before the state's first value, that value."""
        back = index[:, None, None] - np.arange(self.config.lag_steps)
        at = np.maximum(back, self.begin[index][:, :, None])
        lags: Floats = self.last[at, np.arange(self.last.shape[1])[:, None]]
        return lags

    def _profiles(self, index: Indexes) -> Floats:
        """(n, K, P): the profile once around, from the slot after each step's own; 0 for an unvisited slot."""
        slots, season = profile_slots(self.config), self.config.season_steps
        if not slots:
            return np.empty((len(index), self.config.target_count, 0))
        steps = self.steps[index]
        phase = (steps - 1) % season
        own = phase * slots // season
        since = phase[:, None] - slots_around(season, slots)[1][own]  # steps since the slot was last visited
        since[since < 0] += season
        since[:, -1] = 0  # the last is the step's own slot, visited now
        here = since < steps[:, None]
        held = self.shape[np.where(here, index[:, None] - since, 0)].transpose(0, 2, 1)
        return np.where(here[:, None, :], held, 0.0)


@cache
def slots_around(season: int, slots: int) -> tuple[Indexes, Indexes]:
    """(P, P): the slots from the one after each slot around to itself; and each slot's last step in the season."""
    around = (np.arange(slots)[:, None] + 1 + np.arange(slots)) % slots
    return around, -(-(around + 1) * season // slots) - 1


def _marks_of_begins(count: Floats, seen: NDArray[np.bool_], fresh: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """(N, K): whether a state begins at the step, or gets its first value of the target there.

    The last mark up to a step is ``Past.begin``. Until a state's first value, it is the state's first step.

    Args:
        count: (N, K) values of each target in the state so far; seen: (N, K) whether the step has a value.
        fresh: (N,) whether the step is the state's first.
    """
    return np.asarray(fresh[:, None] | (seen & (count == 1.0)))


def _last_marks(marks: NDArray[np.bool_]) -> NDArray[np.integer]:
    """(N, K): the last step up to each step that is marked, with 4 bytes if they suffice; 0 before the first mark."""
    indexes = np.arange(len(marks), dtype=np.int32 if len(marks) < 2**31 else np.int64)
    found = indexes[:, None] * marks
    return np.asarray(np.maximum.accumulate(found, axis=0, out=found))


@dataclass(frozen=True)
class PreparedSequences:
    """The inputs of the network and its loss for a data set, step by step in the order of ``sequences``."""

    sequences: Sequences  # values in the states' own units (``model.unit_change``), on the model's scale
    # Inputs are kept if their sources take more memory or more time.
    scaled: NDArray[np.float32]  # (N, F, 4) of ``scaled_inputs``
    age: NDArray[np.int32]  # (N, F) steps since the last value
    level: Floats  # (N, K)
    scale: Floats  # (N, K)
    past: Past
    standard: Floats  # (2, C) mean and standard deviation of the outlooks' covariates; C is 0 without outlooks

    @property
    def x(self) -> NDArray[np.float32]:
        """(N, D) the inputs of all steps, in new memory."""
        of_values = np.concatenate([self.scaled, age_inputs(self.age)], axis=2).reshape(len(self.age), -1)
        of_elapsed = elapsed_inputs(self.sequences.elapsed)
        return np.concatenate([of_values, of_elapsed, calendar_inputs(self.sequences.timestamp_us)], axis=1)

    def past_inputs(self, index: Indexes) -> NDArray[np.float32]:
        """(n, K·(R+P)) of the steps ``index``."""
        return self.past.inputs(index, self.level[index], self.scale[index])


# Steps that the normaliser takes per block: a bound on the memory of its traces.
_BLOCK_STEPS: Final = 65_536


def prepare(
    config: ModelConfig, spread: Floats, sequences: Sequences, standard: Floats, *, on_model_scale: bool = False
) -> PreparedSequences:
    """The inputs of every step; each sensor begins with a blank state.

    The time taken grows with the longest sensor's steps more than with the number of sensors. Memory besides the result
    is bounded.

    Args:
        spread: (F,) of ``fit_spread``.
        standard: (2, C) of ``ahead_inputs.fit_standard``.
        on_model_scale: whether the values are those of other ``PreparedSequences``: in own units, on the model's scale.
    """
    own = sequences.values
    if not on_model_scale:
        own = to_model_scale(config, in_own_units(sequences.starts, sequences.reset, sequences.values))
    if own is not sequences.values:
        sequences = replace(sequences, values=own)
    N, F, K = len(sequences), config.feature_count, config.target_count
    targets = list(config.target_indices)
    scaled, age = np.empty((N, F, _SCALED_INPUTS), np.float32), np.empty((N, F), np.int32)
    numbers = {name: np.empty((N, K)) for name in ("last", "shape", "level", "scale")}
    steps = np.empty(N, np.int32)
    begins = np.empty((N, K), bool)
    normaliser = Normaliser(config, spread)
    lengths = np.diff(sequences.starts)
    order = np.argsort(-lengths, kind="stable")
    norm = NormaliserState.blank(config, len(order))
    for sizes, index in _blocks(sequences.starts[:-1][order], lengths[order]):
        trace = normaliser.step(norm, sequences.values[index], sizes, sequences.reset[index])
        scaled[index], age[index] = scaled_inputs(trace), trace.age
        steps[index] = trace.steps
        numbers["last"][index] = trace.last[:, targets]
        numbers["level"][index] = trace.levels[:, targets, 1]
        numbers["scale"][index] = trace.scale[:, targets]
        numbers["shape"][index] = trace.shape
        begins[index] = _marks_of_begins(trace.count[:, targets], trace.age[:, targets] == 0.0, trace.steps == 1)
    past = Past(config, numbers["last"], numbers["shape"], steps, _last_marks(begins))
    return PreparedSequences(sequences, scaled, age, numbers["level"], numbers["scale"], past, standard)


def _blocks(starts: Indexes, lengths: Indexes) -> Iterator[tuple[list[int], Indexes]]:
    """Blocks of rounds over sensors, longest first: the sensors of each round, and their steps."""
    ascending = lengths[::-1]
    longest = int(lengths[0]) if len(lengths) else 0
    first = 0
    while first < longest:
        active = len(lengths) - int(np.searchsorted(ascending, first, side="right"))
        rounds = np.arange(first, min(longest, first + max(1, _BLOCK_STEPS // active)))
        sizes = (len(lengths) - np.searchsorted(ascending, rounds, side="right")).tolist()
        index = np.concatenate([starts[:size] + step for size, step in zip(sizes, rounds, strict=True)])
        yield sizes, index
        first = int(rounds[-1]) + 1


# About this many sensors, and at most this many steps of each, give a feature's usual spread.
_SPREAD_SENSORS: Final = 64
_SPREAD_STEPS: Final = 20_000
_UNUSUAL_SPREAD: Final = 16.0  # above it, a second ratio is computed, with changes averaged as long as distances
_MOST_SPREAD: Final = 4.0  # bound of an unusual ratio, as a multiple of that second ratio


def fit_spread(config: ModelConfig, sequences: Sequences, until_us: int) -> Floats:
    """(F,) usual ratio of each feature's scale to its changes, before ``until_us``; 1 if unknown."""
    sequences = replace(sequences, values=to_model_scale(config, sequences.values))
    spans = [sequences.span(sensor, None, until_us) for sensor in range(len(sequences.sensors))]
    longest = min(2 * config.scale_seasons * config.season_steps, _SPREAD_STEPS)
    spans = sorted(((max(lo, hi - longest), hi) for lo, hi in spans if hi > lo), key=lambda span: span[0] - span[1])
    spans = spans[:: max(1, len(spans) // _SPREAD_SENSORS)]
    ones = np.ones(config.feature_count)
    if not spans:
        return ones
    spread = _spread(Normaliser(config, ones), config, sequences, spans)
    if (spread > _UNUSUAL_SPREAD).any():
        # Changes are averaged over a season, distances over many. If a feature does not move towards the end, such as
        # rain in a dry month, the changes' mean decays from day to day, and the ratio grows without limit.
        bound = _spread(Normaliser(config, ones, one_memory=True), config, sequences, spans)
        spread = np.where(spread > _UNUSUAL_SPREAD, np.minimum(spread, _MOST_SPREAD * bound), spread)
    return spread


def _spread(normaliser: Normaliser, config: ModelConfig, sequences: Sequences, spans: list[tuple[int, int]]) -> Floats:
    """(F,) the median over sensors of the ratio at the end of each sensor's span."""
    norm = NormaliserState.blank(config, len(spans))
    lengths = np.array([hi - lo for lo, hi in spans])
    for sizes, index in _blocks(np.array([lo for lo, _ in spans]), lengths):
        normaliser.step(norm, sequences.values[index], sizes, np.zeros(len(index), bool))
    known = (norm.count > 2.0) & (norm.moments > 0.0).all(axis=2)
    ratio = np.where(known, norm.moments[:, :, 0] / np.where(known, norm.moments[:, :, 1], 1.0), np.nan)
    usual = [np.median(column[~np.isnan(column)]) if known[:, f].any() else 1.0 for f, column in enumerate(ratio.T)]
    return np.asarray(np.sqrt(np.array(usual)))
