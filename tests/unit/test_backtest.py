"""The evaluator scores as a plain loop does, and finds predictors that look ahead."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from model import backtest as evaluator
from model.backtest import ForecastRequest, Leak, Persistence, SeasonalNaive, assert_causal, backtest
from model.sequences import Sequences
from tests.series import CONFIG, HOUR_US, noisy_days

TRAIN_END_US = 300 * HOUR_US
TEST_START_US = 400 * HOUR_US


class PointForecast:
    """A predictor that calls a function of (sequences, lo, hi); the function may look ahead."""

    def __init__(self, name: str, points: Callable[[Sequences, int, int], np.ndarray]) -> None:
        self.name = name
        self._points = points
        self.asked: list[tuple[str, int, int]] = []

    def forecasts(self, sequences: Sequences, sensor: int, lo: int, hi: int) -> np.ndarray:
        assert len(sequences.sensors) == 1
        assert len(sequences) == hi
        self.asked.append((sequences.sensors[0], lo, hi))
        points = self._points(sequences, lo, hi)  # (n, h)
        return np.stack([points - 1.0, points, points + 1.0], axis=1)[:, None]


def known_values(sequences: Sequences) -> np.ndarray:
    """(N,): the target, 0 where missing."""
    return np.nan_to_num(sequences.values[:, 0])


def last_value(sequences: Sequences, lo: int, hi: int) -> np.ndarray:
    return np.repeat(known_values(sequences)[lo:hi, None], CONFIG.horizon_steps, axis=1)


def scores_one_by_one(sequences: Sequences, start_us: int, end_us: int) -> dict[str, np.ndarray]:
    """Mae, mse and coverage of ``last_value`` by horizon step, from plain loops over readings."""
    errors: list[list[float]] = [[] for _ in range(CONFIG.horizon_steps)]
    for sensor in range(len(sequences.sensors)):
        lo, hi = sequences.span(sensor)
        truth = {int(sequences.timestamp_us[i]): sequences.values[i, 0] for i in range(lo, hi) if sequences.observed[i]}
        for moment, value in truth.items():
            ahead = [moment + k * HOUR_US for k in range(1, CONFIG.horizon_steps + 1)]
            if ahead[0] < start_us or ahead[-1] >= end_us:
                continue
            for k, when in enumerate(ahead):
                if not np.isnan(truth.get(when, np.nan)):
                    errors[k].append(truth[when] - np.nan_to_num(value))
    return {
        "n": np.array([len(e) for e in errors]),
        "mae": np.array([np.mean(np.abs(e)) for e in errors]),
        "mse": np.array([np.mean(np.square(e)) for e in errors]),
        "coverage": np.array([np.mean(np.abs(e) <= 1.0) for e in errors]),
    }


@pytest.mark.parametrize("numbers", [1, 900, 4_000_000])
def test_scores_equal_those_of_a_plain_loop_for_any_stretch_length(
    numbers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluator, "_STRETCH_NUMBERS", numbers)
    sequences = noisy_days()
    end_us = 480 * HOUR_US
    scores = backtest([PointForecast("last", last_value)], sequences, CONFIG, TEST_START_US, end_us)["last"]
    expected = scores_one_by_one(sequences, TEST_START_US, end_us)
    np.testing.assert_array_equal(scores.n[0], expected["n"])
    for metric in ("mae", "mse", "coverage"):
        np.testing.assert_allclose(scores.by_horizon(metric)[0], expected[metric])
    low, high = 0.1, 0.9
    assert scores.mean("pinball", scaled=False) > scores.mean("mae", scaled=False) * (low + 0.5 + 1 - high) / 3 / 2


def test_a_predictor_gets_each_sensor_in_ascending_stretches_without_gaps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluator, "_STRETCH_NUMBERS", 500)
    predictor = PointForecast("last", last_value)
    backtest([predictor], noisy_days(), CONFIG, TEST_START_US)
    for sensor in ("s0", "s1", "s2"):
        spans = [(lo, hi) for name, lo, hi in predictor.asked if name == sensor]
        assert len(spans) > 1
        assert all(before[1] == after[0] for before, after in pairwise(spans))


def test_scaled_scores_do_not_depend_on_the_unit() -> None:
    sequences = noisy_days()
    larger = replace(sequences, values=sequences.values * 1_000.0)
    for metric in ("mae", "mse", "pinball", "width", "coverage"):
        small, large = (
            backtest([SeasonalNaive(CONFIG).fit(s, TRAIN_END_US)], s, CONFIG, TEST_START_US)["seasonal naive"]
            for s in (sequences, larger)
        )
        assert small.mean(metric) == pytest.approx(large.mean(metric))
    assert large.mean("mae", scaled=False) == pytest.approx(1_000.0 * small.mean("mae", scaled=False))


def test_scores_give_one_horizon_and_the_worst_sensors() -> None:
    sequences = noisy_days()
    values = sequences.values.copy()
    lo, hi = sequences.span(1, TEST_START_US)
    values[lo:hi] *= 50.0
    scores = backtest([Persistence(CONFIG)], replace(sequences, values=values), CONFIG, TEST_START_US)["persistence"]
    assert scores.worst_sensors("mae", 1)[0][0] == "s1"
    assert scores.mean("mae", scaled=False, horizon=3) == pytest.approx(scores.by_horizon("mae")[0, 2])


def test_calibration_is_the_share_of_labels_below_each_quantile() -> None:
    sequences = noisy_days()
    scores = backtest([SeasonalNaive(CONFIG).fit(sequences, TRAIN_END_US)], sequences, CONFIG, TEST_START_US)
    below = scores["seasonal naive"].calibration()[0]
    np.testing.assert_allclose(below, CONFIG.quantiles, atol=0.05)
    assert below[2] - below[0] == pytest.approx(scores["seasonal naive"].mean("coverage"))


def test_a_range_without_a_reading_to_score_is_an_error() -> None:
    with pytest.raises(ValueError, match="nothing to score: no reading in the range is followed by 6 steps"):
        backtest([Persistence(CONFIG)], noisy_days(), CONFIG, 496 * HOUR_US)


def test_a_non_finite_forecast_is_an_error() -> None:
    silent = PointForecast("silent", lambda s, lo, hi: np.full((hi - lo, CONFIG.horizon_steps), np.nan))
    with pytest.raises(ValueError, match="silent gave a non-finite forecast for sensor s0"):
        backtest([silent], noisy_days(), CONFIG, TEST_START_US)


def test_predictors_of_the_same_name_are_refused() -> None:
    with pytest.raises(ValueError, match="the same name"):
        backtest([Persistence(CONFIG), Persistence(CONFIG)], noisy_days(), CONFIG, TEST_START_US)


# --- planted leaks ------------------------------------------------------------------------------------------------

CUTS_US = [330 * HOUR_US, 420 * HOUR_US]


@pytest.mark.parametrize("baseline", [Persistence, SeasonalNaive])
def test_the_baselines_are_causal(baseline: type) -> None:
    assert_causal(lambda s: baseline(CONFIG).fit(s, TRAIN_END_US), noisy_days(), CONFIG, CUTS_US)


def early_label(sequences: Sequences, lo: int, hi: int) -> np.ndarray:
    """A label released early: the next step's value, if the stretch holds it."""
    upcoming = known_values(sequences)[np.minimum(np.arange(lo, hi) + 1, hi - 1)]
    return np.repeat(upcoming[:, None], CONFIG.horizon_steps, axis=1)


def centred_window(sequences: Sequences, lo: int, hi: int) -> np.ndarray:
    """A window that looks ahead: the moving mean around the step."""
    smooth = np.convolve(known_values(sequences), np.ones(5) / 5, mode="same")[lo:hi]
    return np.repeat(smooth[:, None], CONFIG.horizon_steps, axis=1)


def normalised_by_all(sequences: Sequences) -> PointForecast:
    """A normaliser fitted on the whole series, with its test part."""
    mean = float(np.nanmean(sequences.values[:, 0]))
    return PointForecast("normalised by all", lambda s, lo, hi: np.full((hi - lo, CONFIG.horizon_steps), mean))


@pytest.mark.parametrize(
    "build",
    [
        lambda s: PointForecast("early label", early_label),
        lambda s: PointForecast("centred window", centred_window),
        normalised_by_all,
        lambda s: SeasonalNaive(CONFIG).fit(s, 450 * HOUR_US),
    ],
    ids=["label released early", "window looking ahead", "normaliser fitted on test", "intervals fitted on test"],
)
def test_a_planted_leak_is_found(build: Callable[[Sequences], PointForecast]) -> None:
    with pytest.raises(Leak, match="depends on readings or outlooks at"):
        assert_causal(build, noisy_days(), CONFIG, CUTS_US)


def test_a_predictor_gets_neither_future_steps_nor_other_sensors() -> None:
    """The steps of a request end at ``hi`` and belong to one sensor."""
    sequences = noisy_days()
    seen: list[ForecastRequest] = []

    class Curious:
        name = "curious"

        def forecasts(self, sequences: Sequences, sensor: int, lo: int, hi: int) -> np.ndarray:
            raise AssertionError("the evaluator calls forecasts_together instead")

        def forecasts_together(self, requests: list[ForecastRequest]) -> list[np.ndarray]:
            seen.extend(requests)
            return [np.zeros((len(one.steps) - one.lo, 1, 3, CONFIG.horizon_steps)) for one in requests]

    backtest([Curious()], sequences, CONFIG, TEST_START_US)
    for one in seen:
        first, _ = sequences.span(sequences.sensors.index(one.sensor))
        end = first + len(one.steps)
        np.testing.assert_array_equal(one.steps.timestamp_us, sequences.timestamp_us[first:end])
        assert one.steps.starts.tolist() == [0, len(one.steps)]
