"""What the adaptive experts know of one target: its last values, levels, scale and two seasonal profiles.

Every field is carried in the state and moved by one step at a time. A missing value is replaced: by the slow profile
plus the last deviation from it, which fades; before a first season is over, by the last value. A replaced value moves
no level, scale or profile, and is never a label.

Letters: B sensors, K targets, P seasonal phases, R remembered values, D regressors, h horizon steps.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

REGRESSORS = 10
REGRESSOR_BOUND = 30.0  # scales; a wilder value would swing the weights of everything learned before it
VALUE_BOUND = 1e100  # so that no square of anything overflows
SCALE_RATE = 0.005  # of the running mean |change|: an average over some 200 steps
PROFILE_RATES = (0.04, 0.15)  # per season: means over some 25 and 7 seasons
LEVEL_SEASONS = (0.25, 1.0)  # time constants of the two levels, and of the two deviations, in seasons
RATE_BOUND = 0.5  # of a level: a series without a season (one step) still has a recent past


@dataclass(frozen=True)
class SignalShape:
    """Sizes of the signal fields."""

    season_steps: int
    horizon_steps: int

    @property
    def remembered(self) -> int:
        """R: the labels of the longest pending forecast, and one season."""
        return max(self.horizon_steps, self.season_steps)

    def fields(self, targets: int) -> list[tuple[str, str, tuple[int, ...]]]:
        """Field names, types and shapes of the part of the state that belongs here."""
        return [
            ("values", "<f8", (targets, self.remembered)),  # newest last, replaced where missing
            ("seen", "?", (targets, self.horizon_steps)),  # whether the value was there, newest last
            ("observed", "<i4", (targets,)),  # values that were there, up to ``COUNT_BOUND``
            ("change", "<f8", (targets,)),  # last value less the one before
            ("scale", "<f8", (targets,)),  # running mean |change|
            ("levels", "<f8", (targets, len(LEVEL_SEASONS))),
            ("deviation", "<f8", (targets, len(PROFILE_RATES))),  # of the last value from each profile
            ("drift", "<f8", (targets, len(LEVEL_SEASONS))),  # running means of the deviation from the slow profile
            ("profiles", "<f8", (targets, len(PROFILE_RATES), self.season_steps)),
        ]


COUNT_BOUND = 2**31 - 1


def phase_of(timestamp_us: NDArray[np.int64], cadence_us: int, season_steps: int) -> NDArray[np.int64]:
    """The place in the season of each timestamp, by the clock: gaps and restarts do not shift it."""
    phase: NDArray[np.int64] = (timestamp_us + cadence_us // 2) // cadence_us % season_steps
    return phase


def observe(state: NDArray[Any], shape: SignalShape, phase: NDArray[np.int64], values: Floats) -> Floats:
    """Moves the signals in place by one step, and returns the regressors.

    Args:
        state: (B,) records with the fields of ``SignalShape``; phase: (B,) of this step in the season;
            values: (B, K), NaN where missing.

    Returns:
        (B, K, D) in scales.
    """
    season = shape.season_steps
    rows = np.arange(len(state))
    there = np.isfinite(values)
    observed = state["observed"]
    first = there & (observed == 0)
    previous = np.where(first, values, state["values"][:, :, -1])
    previous = np.clip(np.where(np.isnan(previous), 0.0, previous), -VALUE_BOUND, VALUE_BOUND)
    expected = state["profiles"][rows, :, :, phase]  # (B, K, 2) before this value
    seasoned = observed >= season
    rates = np.array([min(RATE_BOUND, 1.0 / (share * season)) for share in LEVEL_SEASONS])

    faded = expected[..., 0] + state["deviation"][..., 0] * (1.0 - rates[0])
    y = np.where(there, np.clip(values, -VALUE_BOUND, VALUE_BOUND), np.where(seasoned, faded, previous))
    y = np.where(np.isnan(y), 0.0, y)
    change = y - previous
    older = np.where(first, 0.0, state["change"])

    # Levels start as plain means: a rate below one over the count would take seasons to forget the start.
    count = observed + there
    mean_rate = 1.0 / np.maximum(count, 1)[..., None]
    levels = np.where(first[..., None], y[..., None], state["levels"])
    levels = levels + np.where(there[..., None], np.maximum(rates, mean_rate) * (y[..., None] - levels), 0.0)
    moved = there & (count > 1)
    scale_rate = np.maximum(SCALE_RATE, 1.0 / np.maximum(count - 1, 1))
    scale = state["scale"] + np.where(moved, scale_rate * (np.abs(change) - state["scale"]), 0.0)

    # In its first season a profile knows nothing of the phases ahead: deviations are zero, and the bases persistence.
    deviation = np.where(seasoned[..., None], y[..., None] - expected, 0.0)
    older_deviation = state["deviation"][..., 0]
    drift = state["drift"] + np.maximum(rates, mean_rate) * (deviation[..., :1] - state["drift"])
    visits = observed // season + 1
    profile_rate = np.maximum(np.array(PROFILE_RATES), 1.0 / visits[..., None])
    profile = expected + np.where(there[..., None], profile_rate * (y[..., None] - expected), 0.0)

    remembered = state["values"]
    remembered[:, :, :-1] = remembered[:, :, 1:].copy()
    remembered[:, :, -1] = y
    state["values"] = np.where(first[..., None], y[..., None], remembered)
    state["seen"][:, :, :-1] = state["seen"][:, :, 1:].copy()
    state["seen"][:, :, -1] = there
    state["observed"] = np.minimum(count, COUNT_BOUND)
    state["change"], state["scale"], state["levels"] = change, scale, levels
    state["deviation"], state["drift"] = deviation, drift
    state["profiles"] = np.where(first[..., None, None], y[..., None, None], state["profiles"])
    state["profiles"][rows, :, :, phase] = np.where(first[..., None], y[..., None], profile)

    regressors = np.empty((*y.shape, REGRESSORS))
    regressors[..., 0] = change
    regressors[..., 1] = older
    regressors[..., 2:4] = y[..., None] - levels
    regressors[..., 4] = deviation[..., 0]
    regressors[..., 5] = older_deviation
    regressors[..., 6:8] = drift
    regressors[..., 8] = deviation[..., 1]
    unit = unit_of(state)
    regressors[..., :9] = np.clip(regressors[..., :9] / unit[..., None], -REGRESSOR_BOUND, REGRESSOR_BOUND)
    regressors[..., 9] = 1.0
    return regressors


def unit_of(state: NDArray[Any]) -> Floats:
    """(B, K) the scale, held above what rounding of the value makes: a constant series has a unit too."""
    unit: Floats = np.maximum(state["scale"], np.maximum(1e-9 * np.abs(state["levels"][..., 0]), 1e-50))
    return unit


def seasonal_naive(state: NDArray[Any], shape: SignalShape) -> Floats:
    """(B, K, h): the value one season before each step ahead."""
    ahead = np.arange(shape.horizon_steps) % shape.season_steps
    return np.ascontiguousarray(state["values"][:, :, shape.remembered - shape.season_steps + ahead])


def profile_forecasts(state: NDArray[Any], shape: SignalShape, phase: NDArray[np.int64]) -> Floats:
    """(B, K, 2, h): each profile at the phases ahead; the last value while the first season is not over."""
    ahead = (phase[:, None] + 1 + np.arange(shape.horizon_steps)) % shape.season_steps  # (B, h)
    forecasts = np.take_along_axis(state["profiles"], ahead[:, None, None, :], axis=3)
    last = state["values"][:, :, -1][:, :, None, None]
    return np.where((state["observed"] >= shape.season_steps)[:, :, None, None], forecasts, last)


def labels(state: NDArray[Any], shape: SignalShape, rows: NDArray[np.int64]) -> Floats:
    """(rows, K, h) what came in the last h steps, NaN where it was missing."""
    values = state["values"][rows, :, shape.remembered - shape.horizon_steps :]
    return np.where(state["seen"][rows], values, np.nan)
