"""Over long series and in every regime, adaptation stays finite and is never much worse than its best expert."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from model.autoregression import Autoregression
from model.config import Level, ModelConfig
from model.sequences import build_sequences
from tests.unit.test_adaptation import config, errors, gru_like, naive, run

Floats = NDArray[np.float64]
SEASON = 12
HOUR_US = 3_600_000_000
# horizon -> largest allowed error relative to the best expert; a longer horizon has fewer independent labels
ERROR_LIMITS = {1: 1.05, 24: 1.1, 96: 1.15}
# A regime of 1,000 steps has ten independent labels at horizon 96: too few to leave an outdated expert soon.
ERROR_LIMITS_AFTER_A_CHANGE = {("regime_change", 96): 1.4}


def noise(T: int, B: int, seed: int) -> Floats:
    return np.random.default_rng(seed).standard_normal((T, B, 1))


def days(T: int, phase: float = 0.0) -> Floats:
    return np.sin(2 * np.pi * np.arange(T) / SEASON + phase)[:, None, None]


def level_shifts(T: int, B: int) -> Floats:
    """White noise whose level jumps every 400 steps."""
    return noise(T, B, 1) + np.repeat(8.0 * noise(-(-T // 400), B, 2), 400, axis=0)[:T]


def seasonal(T: int, B: int) -> Floats:
    return 5.0 * days(T) + noise(T, B, 3)


def random_walk(T: int, B: int) -> Floats:
    return noise(T, B, 4).cumsum(axis=0)


def trend(T: int, B: int) -> Floats:
    return 0.05 * np.arange(T)[:, None, None] + noise(T, B, 5)


def regime_change(T: int, B: int) -> Floats:
    """Noise around zero, which the model forecasts best; a random walk; then daily swings on the walk's last level."""
    third = T // 3
    walk = noise(third, B, 7).cumsum(axis=0)
    rest = T - 2 * third
    return np.concatenate([noise(third, B, 6), walk, walk[-1:] + 6.0 * days(rest) + noise(rest, B, 8)])


REGIMES: dict[str, Callable[[int, int], Floats]] = {
    regime.__name__: regime for regime in (level_shifts, seasonal, random_walk, trend, regime_change)
}


def autoregression(values: Floats, horizon: int) -> Floats:
    """(T, B, K, h) forecasts of the adaptive autoregression, as in a back-test."""
    T, B, _ = values.shape
    shape = ModelConfig(("value",), ("value",), HOUR_US, horizon, season_steps=SEASON)
    sequences = build_sequences(
        [str(sensor) for sensor in range(B)],
        np.arange(B + 1) * T,
        np.tile(np.arange(T) * HOUR_US, B),
        values.transpose(1, 0, 2).reshape(-1, 1),
        np.arange(T * B),
        features=("value",),
        cadence_us=HOUR_US,
        max_gap_steps=SEASON,
    )
    rule = Autoregression(shape).fit(sequences, HOUR_US)
    found = [rule.forecasts(sequences, sensor, sensor * T, (sensor + 1) * T)[:, :, 1] for sensor in range(B)]
    return np.stack(found, axis=1)


@pytest.mark.parametrize("horizon", ERROR_LIMITS)
@pytest.mark.parametrize("regime", REGIMES)
def test_adaptation_is_never_much_worse_than_the_best_common_baseline(horizon: int, regime: str) -> None:
    values = REGIMES[regime](3_000, 2)
    forecasts = run(config(horizon=horizon), values).quantiles[:, :, :, 1]
    others = {
        "persistence": naive(values, horizon, 1),
        "seasonal": naive(values, horizon, SEASON),
        "model": gru_like(values, horizon)[:, :, :, 1],
        "autoregression": autoregression(values, horizon),
    }
    found = {name: float(np.abs(errors(values, other, 600)).mean()) for name, other in others.items()}
    most = ERROR_LIMITS_AFTER_A_CHANGE.get((regime, horizon), ERROR_LIMITS[horizon]) * min(found.values())
    assert np.abs(errors(values, forecasts, 600)).mean() < most, found


T = 100_000  # steps; ``test_adaptation`` has a million constant, missing and extreme values
LONG_SERIES: dict[str, Callable[[np.random.Generator], Floats]] = {
    "constant": lambda rng: np.full(T, -4.2e5),
    "missing": lambda rng: np.where(rng.random(T) < 0.98, np.nan, rng.standard_normal(T)),
    "wildly scaled": lambda rng: rng.choice([-1.0, 1.0], T) * 10.0 ** rng.uniform(-150, 150, T),
    "random": lambda rng: rng.standard_normal(T),
    "random walk": lambda rng: rng.standard_normal(T).cumsum(),
}


@pytest.mark.parametrize(("level", "horizon"), [("full", 1), ("light", 24)])
def test_any_input_over_a_hundred_thousand_steps_leaves_states_and_forecasts_finite(level: Level, horizon: int) -> None:
    random = np.random.default_rng(0)
    values = np.stack([make(random) for make in LONG_SERIES.values()], axis=1)[:, :, None]
    states, length = None, 10_000
    for begin in range(0, T, length):
        got = run(config(level, horizon=horizon), values[begin : begin + length], states=states, start=begin)
        states = got.states
        assert np.isfinite(got.quantiles).all()
        assert (np.diff(got.quantiles, axis=3) >= 0.0).all()
    for field in got.states.dtype.names or ():
        assert np.isfinite(got.states[field]).all(), field
