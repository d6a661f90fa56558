"""The adaptive baseline: an autoregression per sensor and target, by recursive least squares.

Each step's forecast is the last value plus a linear function of the last 24 changes, one function per horizon step. A
forecast is learned from after all of its h steps have been seen. Its quantiles lie as far from it as those of its own
past errors. After a pause that resets a sensor's state the weights stay, and no label spans the pause.

Letters: G sensors together, K targets, n = G·K problems, T rounds, D regressors, A pending forecasts, Q quantiles,
h horizon steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Final, Self

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from . import least_squares
from .baselines import mean_levels
from .bounds import within_bounds
from .carrying_predictor import CarriedState, CarryingPredictor, Group
from .config import ModelConfig
from .kernel import REGRESSOR_BOUND, SCALE_RATE, VALUE_BOUND
from .sequences import Sequences

Floats = NDArray[np.float64]
Indexes = NDArray[np.int64]

LAGS: Final = 24
SMALLEST_UNIT: Final = 1e-9  # fraction of the value; a smaller change is a rounding error
# Largest number of pending forecasts. Up to a horizon of this many steps, every forecast is kept until its errors are
# known; for a longer horizon only some forecasts are.
PENDING: Final = 24
# Most numbers in the arrays of one call: a bound on memory for any horizon and number of sensors.
_NUMBERS: Final = 8_000_000


@dataclass
class _RegressionState:
    """The regressions of n problems, a row each."""

    filled: Floats  # (n,) the last value; 0 before the first
    known: NDArray[np.bool_]  # (n,) whether there was a value
    seen: Indexes  # (n,) changes that the scale is a mean of
    scale: Floats  # (n,) running mean |change|
    changes: Floats  # (n, 24) the last changes, newest last
    values: Floats  # (n, h) the last values, newest last; NaN where missing
    x: Floats  # (n, h, D) regressors of the last h forecasts
    last: Floats  # (n, h) the last value at each of these forecasts; NaN if nothing is learned from the forecast
    unit: Floats  # (n, h) the unit of each of these forecasts
    root: Floats  # (n, D, D) root of the weights' covariance
    weights: Floats  # (n, D, h)
    pending: Floats  # (n, A, h) forecasts without a known error, less the last value, in units
    errors: Indexes  # (n, h) number of known errors
    distances: Floats  # (n, Q-1, h) distances of the other quantiles from the median, in units

    @classmethod
    def blank(cls, config: ModelConfig, n: int) -> "_RegressionState":
        """The state before the first step."""
        h, D = config.horizon_steps, LAGS + 1
        return cls(
            filled=np.zeros(n),
            known=np.zeros(n, bool),
            seen=np.zeros(n, np.int64),
            scale=np.zeros(n),
            changes=np.zeros((n, LAGS)),
            values=np.full((n, h), np.nan),
            x=np.zeros((n, h, D)),
            last=np.full((n, h), np.nan),
            unit=np.ones((n, h)),
            root=np.tile(least_squares.blank_root(D), (n, 1, 1)),
            weights=np.zeros((n, D, h)),
            pending=np.full((n, _slots(h), h), np.nan),
            errors=np.zeros((n, h), np.int64),
            distances=np.zeros((n, len(config.quantiles) - 1, h)),
        )

    @classmethod
    def joined(cls, parts: Sequence["_RegressionState"]) -> "_RegressionState":
        """The problems of all parts, one after the other."""
        return cls(**{one.name: np.concatenate([getattr(part, one.name) for part in parts]) for one in fields(cls)})


@dataclass
class _SensorState(CarriedState):
    learned: _RegressionState


class Autoregression(CarryingPredictor[_SensorState]):
    """Forecasts by recursive least squares, for the evaluator."""

    name = "adaptive AR(24)"

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self._level = np.zeros(config.target_count)

    def fit(self, sequences: Sequences, until_us: int) -> Self:
        """Set the forecast of sensors without a value yet: the mean level before ``until_us``."""
        self._level = mean_levels(sequences, self._config, until_us)
        return self

    def _blank_state(self) -> _SensorState:
        return _SensorState(0, _RegressionState.blank(self._config, self._config.target_count))

    def _most_rounds(self, sensors: int) -> int:
        config = self._config
        per_problem = max(LAGS + 1, len(config.quantiles) * config.horizon_steps)
        return _NUMBERS // (config.target_count * sensors * per_problem)

    def _step_group(self, group: Group[_SensorState]) -> list[tuple[slice, Floats]]:
        return _Rounds(self._config, self._level, group).forecasts()


class _Rounds:
    """The next steps of several sensors, longest first; round r takes each sensor's r-th."""

    def __init__(self, config: ModelConfig, level: Floats, group: Group[_SensorState]) -> None:
        self._config = config
        self._level = level
        self._group = group
        self._outer = [number for number in range(len(config.quantiles)) if number != config.median_index]
        levels = np.array(config.quantiles)[self._outer, None]
        self._sides = np.sign(levels - 0.5)  # (Q-1, 1) -1 for the quantiles below the median, 1 for those above it
        self._shares = np.minimum(levels, 1.0 - levels)  # (Q-1, 1) share of the errors that should lie beyond each
        self._bound: Floats = REGRESSOR_BOUND * np.arange(1.0, config.horizon_steps + 1)
        self._K, self._h = config.target_count, config.horizon_steps
        lengths = np.array([length for _, _, length in group])
        self._T = int(lengths[0])
        self._learned = _RegressionState.joined([state.learned for _, state, _ in group])
        # (n,) the number of the first round's step, counted from 0 at the sensor's first step
        self._first = np.repeat(np.array([state.next for _, state, _ in group]), self._K)
        # (n, h+T) slot in ``pending`` of each round's forecast, -1 for none; the h rounds before come first
        steps = self._first[:, None] + np.arange(-self._h, self._T)
        stride = _stride(self._h)
        self._slot = np.where((steps >= 0) & (steps % stride == 0), steps // stride % _slots(self._h), -1)

    def forecasts(self) -> list[tuple[slice, Floats]]:
        """Step the states; return a slice of each sensor's answer and the quantiles to put there."""
        wanted = [max(one.lo - state.next, 0) for one, state, _ in self._group]
        self._lay_out()
        n, h, earliest = len(self._first), self._h, min(wanted)
        points = np.empty((n, max(self._T - earliest, 0), h))
        distances = np.empty((n, points.shape[1], len(self._outer), h))
        learned = self._learned
        least_squares.follow(
            np.repeat(np.array([length for _, _, length in self._group]), self._K),
            earliest,
            (self._values, self._last, self._unit, self._x, self._slot),
            self._bound,
            (self._sides[:, 0], self._shares[:, 0]),
            (learned.root, learned.weights, learned.pending, learned.errors, learned.distances),
            points,
            distances,
        )
        answers = []
        for g, ((one, state, length), first) in enumerate(zip(self._group, wanted, strict=True)):
            rows, rounds = slice(g * self._K, (g + 1) * self._K), slice(first - earliest, max(length - earliest, 0))
            start = state.next + first - one.lo
            found = self._quantiles(rows, slice(first, length), points[rows, rounds], distances[rows, rounds])
            answers.append((slice(start, start + len(found)), found))
        self._store_states()
        return answers

    def _lay_out(self) -> None:
        """Compute the inputs of every round, and append them to the inputs of the last h rounds.

        Inputs do not depend on the weights.
        """
        learned, h, T = self._learned, self._h, self._T
        n = len(learned.filled)
        values = np.full((n, T), np.nan)
        reset = np.zeros((n, T), bool)
        for g, (one, state, length) in enumerate(self._group):
            rows, steps = slice(g * self._K, (g + 1) * self._K), slice(state.next, state.next + length)
            columns = one.steps.columns(self._config.targets)
            values[rows, :length] = one.steps.values[steps, columns].T
            reset[rows, :length] = one.steps.reset[steps]
        values = np.clip(values, -VALUE_BOUND, VALUE_BOUND)  # NaN stays
        there = ~np.isnan(values)
        filled = np.concatenate([learned.filled[:, None], values], axis=1)
        latest = np.maximum.accumulate(np.where(np.isnan(filled), 0, np.arange(T + 1)), axis=1)
        filled = np.take_along_axis(filled, latest, axis=1)
        known = np.concatenate(
            [learned.known[:, None], learned.known[:, None] | (np.cumsum(there, axis=1) > 0)], axis=1
        )
        # Neither a sensor's first value nor the first after a pause makes a change.
        changed = there & known[:, :-1] & ~reset
        changes = np.where(changed, np.diff(filled, axis=1), 0.0)
        scale = self._scales(np.abs(changes), changed)
        smallest = np.maximum(SMALLEST_UNIT * np.abs(filled[:, 1:]), np.finfo(np.float64).tiny)
        unit = np.maximum(scale, smallest)
        changes = np.concatenate([learned.changes, changes], axis=1)
        x = np.ones((n, T, LAGS + 1))
        x[:, :, :LAGS] = sliding_window_view(changes, LAGS, axis=1)[:, 1:] / unit[:, :, None]
        np.clip(x, -REGRESSOR_BOUND, REGRESSOR_BOUND, out=x)
        # A forecast is learned from if it follows a value, if the sensor has moved before (a constant sensor has no
        # unit to measure labels in), and if no pause lies before its last label.
        last = np.where(there & (scale > smallest), filled[:, 1:], np.nan)
        last = np.concatenate([learned.last, last], axis=1)
        for row, r in zip(*np.nonzero(reset), strict=True):
            last[row, r : r + h] = np.nan
        self._filled, self._known, self._changes, self._last = filled[:, 1:], known[:, 1:], changes, last
        self._values = np.concatenate([learned.values, values], axis=1)
        self._x = np.concatenate([learned.x, x], axis=1)
        self._unit = np.concatenate([learned.unit, unit], axis=1)

    def _scales(self, sizes: Floats, changed: NDArray[np.bool_]) -> Floats:
        """(n, T) running means of the sizes (n, T) of changes; plain means over the first values."""
        seen = self._learned.seen[:, None] + np.cumsum(changed, axis=1)
        rates = np.where(changed, np.maximum(SCALE_RATE, 1.0 / np.maximum(seen, 1)), 0.0)
        scales = np.empty(sizes.shape)
        scale = self._learned.scale
        for r in range(self._T):
            scale = scale + rates[:, r] * (sizes[:, r] - scale)
            scales[:, r] = scale
        self._seen, self._scale = seen, scales
        return scales

    def _quantiles(self, rows: slice, rounds: slice, points: Floats, distances: Floats) -> Floats:
        """(T, K, Q, h) of one sensor, in its unit, from its medians and distances (K, T, ...) in units."""
        median = self._config.median_index
        offsets = np.zeros((*points.shape[:2], len(self._config.quantiles), self._h))
        offsets[:, :, self._outer] = distances * self._sides
        offsets[:, :, :median] = np.minimum.accumulate(offsets[:, :, :median][:, :, ::-1], axis=2)[:, :, ::-1]
        offsets[:, :, median + 1 :] = np.maximum.accumulate(offsets[:, :, median + 1 :], axis=2)
        offsets += points[:, :, None]
        known = self._known[rows, rounds]
        start = np.where(known, self._filled[rows, rounds], self._level[:, None])
        unit = np.where(known, self._unit[rows, self._h :][:, rounds], 0.0)
        found = start[:, :, None, None] + unit[:, :, None, None] * offsets
        return within_bounds(self._config.bounds, np.ascontiguousarray(found.swapaxes(0, 1)))

    def _store_states(self) -> None:
        learned = {name: getattr(self._learned, name) for name in ("root", "weights", "pending", "errors", "distances")}
        by_round = {"filled": self._filled, "known": self._known, "seen": self._seen, "scale": self._scale}
        behind = {"values": self._values, "x": self._x, "last": self._last, "unit": self._unit}  # with h earlier rounds
        for g, (_, state, length) in enumerate(self._group):
            rows = slice(g * self._K, (g + 1) * self._K)
            arrays: dict[str, Any] = {name: array[rows] for name, array in learned.items()}
            arrays |= {name: array[rows, length - 1] for name, array in by_round.items()}
            arrays |= {name: array[rows, length : length + self._h] for name, array in behind.items()}
            arrays["changes"] = self._changes[rows, length : length + LAGS]
            state.next += length
            state.learned = _RegressionState(**{name: array.copy() for name, array in arrays.items()})


def _stride(h: int) -> int:
    """Steps between two forecasts that are kept."""
    return -(-h // PENDING)


def _slots(h: int) -> int:
    """A: forecasts that are pending at a time."""
    return -(-h // _stride(h))
