"""The baseline that learns as it goes: an autoregression per sensor and target, by recursive least squares.

Each step's forecast is the last value plus a linear function of the last 24 changes, direct for every horizon step.
A forecast is learned from once all of its h steps have been seen, never earlier; its quantiles lie around it as its
own past errors did. Where a sensor's readings pause for so long that its state begins anew, what was learned of it
stays, and nothing is learned across the pause.

Letters: G sensors together, K targets, n = G·K problems, T rounds, D regressors, Q quantiles, h horizon steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Final, Self

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from . import least_squares
from .baselines import mean_levels
from .config import ModelConfig
from .kernel import REGRESSOR_BOUND, SCALE_RATE, VALUE_BOUND
from .predictor import ForecastRequest
from .sequences import Sequences

Floats = NDArray[np.float64]
Indexes = NDArray[np.int64]

LAGS: Final = 24
SMALLEST_UNIT: Final = 1e-9  # of the value: a smaller change is rounding
# Forecasts kept until their errors are known: all of them up to this horizon, every so many beyond it.
PENDING: Final = 24
# Numbers in the arrays of one go, so that memory is bounded for any horizon and number of sensors.
_NUMBERS: Final = 8_000_000


@dataclass
class _RegressionState:
    """What is known of n problems; a problem's rows are its own in every field."""

    filled: Floats  # (n,) the last value, 0 before the first
    known: NDArray[np.bool_]  # (n,) whether there was one
    seen: Indexes  # (n,) changes that the scale is a mean of
    scale: Floats  # (n,) running mean |change|
    changes: Floats  # (n, 24) newest last
    values: Floats  # (n, h) newest last, NaN where missing or before a pause
    x: Floats  # (n, h, D) regressors of the last h forecasts
    last: Floats  # (n, h) what they started from, NaN where there was none
    unit: Floats  # (n, h) and what they are measured in
    root: Floats  # (n, D, D)
    weights: Floats  # (n, D, h)
    pending: Floats  # (n, A, h) forecasts whose errors are not known yet, less what they started from, in their units
    errors: Indexes  # (n, h) errors known so far
    distances: Floats  # (n, Q-1, h) of the other quantiles from the median, in units

    @classmethod
    def blank(cls, config: ModelConfig, n: int) -> "_RegressionState":
        """Nothing seen yet."""
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
        """Several sensors' problems, one after the other."""
        return cls(**{one.name: np.concatenate([getattr(part, one.name) for part in parts]) for one in fields(cls)})

    def rows(self, rows: slice) -> "_RegressionState":
        """Copies of some problems."""
        return _RegressionState(**{one.name: getattr(self, one.name)[rows].copy() for one in fields(self)})


@dataclass
class _SensorState:
    """A sensor's state after its first ``next`` steps."""

    next: int
    learned: _RegressionState


class Autoregression:
    """Forecasts by recursive least squares, by the evaluator's protocol."""

    name = "adaptive AR(24)"

    def __init__(self, config: ModelConfig) -> None:
        self._config = config
        self._level = np.zeros(config.target_count)
        self._carried: dict[str, _SensorState] = {}

    def fit(self, sequences: Sequences, until_us: int) -> Self:
        """Learn what stands in where a sensor has had no value yet: the usual level before ``until_us``."""
        self._level = mean_levels(sequences, self._config, until_us)
        return self

    def forecasts(self, sequences: Sequences, sensor: int, lo: int, hi: int) -> Floats:
        """(hi-lo, K, Q, h) after each of a sensor's steps [lo, hi)."""
        return self.forecasts_together(
            [ForecastRequest(sequences.past(sensor, hi), lo - int(sequences.starts[sensor]))]
        )[0]

    def forecasts_together(self, requests: Sequence[ForecastRequest]) -> list[Floats]:
        """As ``forecasts``, for a stretch of each of several sensors, which must differ.

        Only these sensors' states are kept; a sensor that was not among the last ones is stepped from its first
        reading on again. The evaluator goes through all stretches of a group of sensors before it takes the next.
        """
        config = self._config
        shape = (config.target_count, len(config.quantiles), config.horizon_steps)
        found = [np.empty((len(one.steps) - one.lo, *shape)) for one in requests]
        states = [self._state(one) for one in requests]
        per_problem = max(LAGS + 1, len(config.quantiles) * config.horizon_steps)
        rounds = max(1, _NUMBERS // (config.target_count * len(requests) * per_problem))
        while True:
            left = np.array([len(one.steps) - state.next for one, state in zip(requests, states, strict=True)])
            order = np.argsort(-left, kind="stable")
            order = order[left[order] > 0]
            if not len(order):
                break
            group = [(requests[i], states[i], min(int(left[i]), rounds)) for i in order]
            for i, (rows, quantiles) in zip(order, _Rounds(config, self._level, group).forecasts(), strict=True):
                found[i][rows] = quantiles
        self._carried = {one.sensor: state for one, state in zip(requests, states, strict=True)}
        return found

    def _state(self, one: ForecastRequest) -> _SensorState:
        carried = self._carried.get(one.sensor)
        if carried is not None and carried.next <= one.lo:
            return carried
        return _SensorState(0, _RegressionState.blank(self._config, self._config.target_count))


class _Rounds:
    """The next steps of several sensors, longest first; round r takes each sensor's r-th."""

    def __init__(
        self, config: ModelConfig, level: Floats, group: list[tuple[ForecastRequest, _SensorState, int]]
    ) -> None:
        self._config = config
        self._level = level
        self._group = group
        self._outer = [number for number in range(len(config.quantiles)) if number != config.median_index]
        levels = np.array(config.quantiles)[self._outer, None]
        self._sides = np.sign(levels - 0.5)  # (Q-1, 1) of the median that each other quantile lies on
        self._shares = np.minimum(levels, 1.0 - levels)  # of the errors that should lie beyond it
        self._bound: Floats = REGRESSOR_BOUND * np.arange(1.0, config.horizon_steps + 1)
        self._K, self._h = config.target_count, config.horizon_steps
        lengths = np.array([length for _, _, length in group])
        self._T = int(lengths[0])
        self._learned = _RegressionState.joined([state.learned for _, state, _ in group])
        # (n,) the number of the step in round 0, from the sensor's first
        self._first = np.repeat(np.array([state.next for _, state, _ in group]), self._K)
        # (n, h+T) where the forecast of each round is kept, -1 for nowhere; behind those of the h rounds before
        steps = self._first[:, None] + np.arange(-self._h, self._T)
        stride = _stride(self._h)
        self._slot = np.where((steps >= 0) & (steps % stride == 0), steps // stride % _slots(self._h), -1)

    def forecasts(self) -> list[tuple[slice, Floats]]:
        """Of each sensor, the rows of its answer and the quantiles in them; the sensors' states are stepped."""
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
        """All that does not depend on what is learned, for every round: (n, h+T, ...) behind the h steps before."""
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
        # A sensor's first value is no change, nor is the first after a pause.
        changed = there & known[:, :-1] & ~reset
        changes = np.where(changed, np.diff(filled, axis=1), 0.0)
        scale = self._scales(np.abs(changes), changed)
        smallest = np.maximum(SMALLEST_UNIT * np.abs(filled[:, 1:]), np.finfo(np.float64).tiny)
        unit = np.maximum(scale, smallest)
        changes = np.concatenate([learned.changes, changes], axis=1)
        x = np.ones((n, T, LAGS + 1))
        x[:, :, :LAGS] = sliding_window_view(changes, LAGS, axis=1)[:, 1:] / unit[:, :, None]
        np.clip(x, -REGRESSOR_BOUND, REGRESSOR_BOUND, out=x)
        # Forecasts are learned from where they follow a value of a sensor that has moved, so that there is a unit to
        # measure labels in, and where no pause lies before their last label.
        last = np.where(there & (scale > smallest), filled[:, 1:], np.nan)
        last = np.concatenate([learned.last, last], axis=1)
        for row, r in zip(*np.nonzero(reset), strict=True):
            last[row, r : r + h] = np.nan
        self._filled, self._known, self._changes, self._last = filled[:, 1:], known[:, 1:], changes, last
        self._values = np.concatenate([learned.values, values], axis=1)
        self._x = np.concatenate([learned.x, x], axis=1)
        self._unit = np.concatenate([learned.unit, unit], axis=1)

    def _scales(self, sizes: Floats, changed: NDArray[np.bool_]) -> Floats:
        """(n, T) the running mean of the sizes (n, T) of changes, which is a plain mean while it is young."""
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
        """(T, K, Q, h) of one sensor's problems, in its unit, out of what was forecast in these rounds."""
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
        return np.ascontiguousarray(found.swapaxes(0, 1))

    def _store_states(self) -> None:
        for g, (_, state, length) in enumerate(self._group):
            rows, back = slice(g * self._K, (g + 1) * self._K), slice(length, length + self._h)
            state.next += length
            state.learned = replace(
                self._learned.rows(rows),
                filled=self._filled[rows, length - 1].copy(),
                known=self._known[rows, length - 1].copy(),
                seen=self._seen[rows, length - 1].copy(),
                scale=self._scale[rows, length - 1].copy(),
                changes=self._changes[rows, length : length + LAGS].copy(),
                values=self._values[rows, back].copy(),
                x=self._x[rows, back].copy(),
                last=self._last[rows, back].copy(),
                unit=self._unit[rows, back].copy(),
            )


def _stride(h: int) -> int:
    """Steps from one forecast that is kept to the next."""
    return -(-h // PENDING)


def _slots(h: int) -> int:
    """A: forecasts kept at a time."""
    return -(-h // _stride(h))
