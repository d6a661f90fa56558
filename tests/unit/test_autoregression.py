"""The autoregressive baseline equals plain recursive least squares, is causal, and stays finite for any input."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from model import autoregression
from model.autoregression import LAGS, Autoregression
from model.backtest import ForecastRequest, assert_causal, backtest
from model.baselines import Persistence
from model.config import ModelConfig
from model.kernel import REGRESSOR_BOUND, SCALE_RATE
from model.least_squares import FORGETTING
from model.sequences import Sequences, build_sequences
from tests.series import CONFIG, HOUR_US, noisy_days

NAN = float("nan")


def one_sensor(values: NDArray[np.float64], moments: list[int] | None = None) -> Sequences:
    hours = np.arange(len(values)) if moments is None else np.array(moments)
    return build_sequences(
        ["a"],
        np.array([0, len(values)]),
        hours * HOUR_US,
        values[:, None],
        np.arange(len(values)),
        features=("level",),
        cadence_us=HOUR_US,
        max_gap_steps=10,
    )


def config_of(horizon_steps: int) -> ModelConfig:
    return ModelConfig(("level",), ("level",), HOUR_US, horizon_steps)


def forecasts_of(values: NDArray[np.float64], horizon_steps: int) -> NDArray[np.float64]:
    """(n, Q, h)"""
    sequences = one_sensor(values)
    return Autoregression(config_of(horizon_steps)).forecasts(sequences, 0, 0, len(sequences))[:, 0]


def random_walk(steps: int, seed: int = 0) -> NDArray[np.float64]:
    return np.cumsum(np.random.default_rng(seed).normal(size=steps))


def by_hand(values: NDArray[np.float64], h: int) -> NDArray[np.float64]:
    """(n, h) medians for a series without gaps, from recursions on the covariance itself."""
    P, weights, scale = np.eye(LAGS + 1), np.zeros((LAGS + 1, h)), 0.0
    xs, units, found = [], [], []
    for t, value in enumerate(values):
        changes = np.zeros(LAGS)
        recent = np.diff(values[max(0, t - LAGS) : t + 1])
        changes[LAGS - len(recent) :] = recent
        if t > 0:
            scale += max(SCALE_RATE, 1 / t) * (abs(recent[-1]) - scale)
        units.append(max(scale, 1e-9 * abs(value), 1e-50))
        xs.append(np.clip(np.append(changes / units[t], 1.0), -REGRESSOR_BOUND, REGRESSOR_BOUND))
        if t > h:  # the last label of the forecast h steps ago is known; the first forecast had no scale
            x, base = xs[t - h], values[t - h]
            error = (values[t - h + 1 : t + 1] - base) / units[t - h] - x @ weights
            gain = P @ x / (FORGETTING + x @ P @ x)
            weights = weights + np.outer(gain, error)
            P = (P - np.outer(gain, x @ P)) / FORGETTING
            shrink = np.minimum(1.0, np.diag(P) ** -0.5)  # limits each weight's variance to the prior's
            P *= np.outer(shrink, shrink)
        found.append(value + units[t] * (xs[t] @ weights))
    return np.array(found)


@pytest.mark.parametrize("horizon", [1, 5, 30])
def test_medians_are_those_of_plain_recursions(horizon: int) -> None:
    values = random_walk(400) + 100.0
    np.testing.assert_allclose(forecasts_of(values, horizon)[:, 1], by_hand(values, horizon), rtol=0, atol=1e-4)


def test_a_dependence_on_past_changes_is_learned() -> None:
    random = np.random.default_rng(1)
    changes = np.zeros(3_000)
    for t in range(1, len(changes)):
        changes[t] = 0.9 * changes[t - 1] + random.normal()
    values = np.cumsum(changes)
    median = forecasts_of(values, 1)[:, 1, 0]
    assert np.mean((values[501:] - median[500:-1]) ** 2) == pytest.approx(1.0, abs=0.1)  # the variance of the noise


@pytest.mark.parametrize("horizon", [1, 6, 60])
def test_intervals_have_their_nominal_coverage(horizon: int) -> None:
    values = np.random.default_rng(2).normal(size=4_000)
    low, median, high = forecasts_of(values, horizon).swapaxes(0, 1)
    labels = np.array([values[t + 1 : t + 1 + horizon] for t in range(2_000, len(values) - horizon)])
    inside = (labels >= low[2_000:-horizon]) & (labels <= high[2_000:-horizon])
    assert inside.mean() == pytest.approx(0.8, abs=0.04)
    assert (low <= median).all()
    assert (median <= high).all()


@pytest.mark.parametrize("numbers", [300, 8_000_000])
def test_any_cut_into_stretches_gives_the_same_bits(numbers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    sequences = noisy_days(hours=200)
    whole = [Autoregression(CONFIG).forecasts(sequences, s, *sequences.span(s)) for s in range(3)]
    monkeypatch.setattr(autoregression, "_NUMBERS", numbers)
    for sensor, expected in enumerate(whole):
        predictor = Autoregression(CONFIG)
        lo, hi = sequences.span(sensor)
        cuts = [lo, lo + 1, lo + 40, lo + 90, hi]
        parts = [predictor.forecasts(sequences, sensor, a, b) for a, b in pairwise(cuts)]
        np.testing.assert_array_equal(np.concatenate(parts), expected)
    together = Autoregression(CONFIG)
    requests = [ForecastRequest(sequences.past(s, sequences.span(s)[1]), 10 * s) for s in range(3)]
    for sensor, found in enumerate(together.forecasts_together(requests)):
        np.testing.assert_array_equal(found, whole[sensor][10 * sensor :])


@pytest.mark.parametrize("horizon", [1, 6, 30])
def test_the_baseline_is_causal(horizon: int) -> None:
    config = replace(CONFIG, horizon_steps=horizon)
    cuts_us = [330 * HOUR_US, 420 * HOUR_US]
    assert_causal(lambda s: Autoregression(config).fit(s, 300 * HOUR_US), noisy_days(), config, cuts_us)


WILD = {
    "constant": np.full(300, 3.7e8),
    "zero": np.zeros(300),
    "missing": np.full(300, NAN),
    "constant, then moving": np.concatenate([np.full(150, 5.0), random_walk(150)]),
    "huge for a while": random_walk(300) * np.where(np.arange(300) // 60 % 3 == 1, 1e300, 1.0),
    "tiny": random_walk(300) * 1e-300,
    "spikes": random_walk(300) + np.where(np.arange(300) % 97 == 0, 1e12, 0.0),
    "often missing": np.where(np.random.default_rng(3).random(300) < 0.9, NAN, random_walk(300)),
    "alternating": np.where(np.arange(300) % 2 == 0, 1e9, -1e9),
    "rising for ever": 1.05 ** np.arange(300),
}


@pytest.mark.parametrize("name", WILD)
@pytest.mark.parametrize("horizon", [1, 30])
def test_any_input_leaves_forecasts_finite_and_in_order(name: str, horizon: int) -> None:
    found = forecasts_of(WILD[name], horizon)
    assert np.isfinite(found).all()
    assert (np.diff(found, axis=1) >= 0.0).all()


@pytest.mark.parametrize("factor", [1e-9, 1e9])
def test_forecasts_scale_with_the_unit(factor: float) -> None:
    values = random_walk(300)
    np.testing.assert_allclose(forecasts_of(factor * values, 4), factor * forecasts_of(values, 4), rtol=1e-6)


def test_nothing_is_learned_across_a_pause() -> None:
    """A jump across a pause does not count as a change: weights, scale and intervals stay as they are."""
    values = random_walk(400)
    moments = [*range(300), *range(1_000, 1_100)]
    jump = np.where(np.arange(400) < 300, 0.0, 1e6)
    calm, jumping = (
        Autoregression(config_of(3)).forecasts(sequences, 0, 0, len(sequences))[:, 0]
        for sequences in (one_sensor(values, moments), one_sensor(values + jump, moments))
    )
    np.testing.assert_allclose(jumping - jump[:, None, None], calm, atol=0.5)


def test_a_sensor_without_a_value_gets_the_mean_level_of_other_sensors() -> None:
    sequences = noisy_days()
    values = sequences.values.copy()
    lo, hi = sequences.span(1)
    values[lo:hi] = NAN
    values[: sequences.span(0)[1], 0] += 50.0
    silent = replace(sequences, values=values)
    found = Autoregression(CONFIG).fit(silent, 400 * HOUR_US).forecasts(silent, 1, lo, hi)
    assert found == pytest.approx(25.0, abs=1.0)


def test_the_baseline_beats_persistence_on_daily_swings() -> None:
    sequences = noisy_days()
    start_us = 400 * HOUR_US
    predictors = [Autoregression(CONFIG).fit(sequences, start_us), Persistence(CONFIG).fit(sequences, start_us)]
    scores = backtest(predictors, sequences, CONFIG, start_us)
    for metric in ("mse", "pinball"):
        assert scores["adaptive AR(24)"].mean(metric) < scores["persistence"].mean(metric)
