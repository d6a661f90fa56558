"""Scores equal those worked out by hand."""

import numpy as np
import pytest
from numpy.typing import NDArray

from model.metrics import Scores, crps_weights, quantile_losses, skill, winkler

LEVELS = (0.05, 0.1, 0.5, 0.9, 0.95)


def scored(
    forecasts: NDArray[np.float64],
    labels: NDArray[np.float64],
    quantiles: tuple[float, ...] = LEVELS,
    season: float = 1.0,
) -> Scores:
    """Scores of forecasts (S, n, Q) one step ahead, with labels (S, n)."""
    sensors = tuple(f"s{number}" for number in range(len(labels)))
    ones = np.ones((len(sensors), 1))
    scores = Scores.empty(sensors, ("level",), quantiles, ones, 1, season * ones)
    for sensor in range(len(sensors)):
        scores.add(sensor, forecasts[sensor][:, None, :, None], labels[sensor][:, None, None])
    return scores


def test_the_crps_of_a_median_alone_is_the_absolute_error() -> None:
    assert crps_weights((0.5,)).tolist() == [2.0]
    scores = scored(np.array([[[3.0]]]), np.array([[5.0]]), (0.5,))
    assert scores.mean("crps") == scores.mean("mae") == 2.0


def test_the_crps_weighs_each_quantile_by_the_levels_nearest_to_it() -> None:
    np.testing.assert_allclose(crps_weights((0.1, 0.5, 0.9)), [0.6, 0.8, 0.6])
    assert crps_weights(LEVELS).sum() == pytest.approx(2.0)


def test_the_crps_of_many_quantiles_is_that_of_the_distribution() -> None:
    """The CRPS of the uniform distribution from 0 to 1 is 1/3 if the label is at its end."""
    levels = tuple(np.linspace(0.005, 0.995, 199).tolist())
    assert 0.5 in levels
    scores = scored(np.array([[list(levels)]]), np.array([[1.0]]), levels)
    assert scores.mean("crps") == pytest.approx(1 / 3, abs=1e-3)


def test_quantile_losses_weigh_both_sides_by_the_level() -> None:
    losses = quantile_losses(np.zeros((2, 1, 2, 1)), np.array([[[1.0]], [[-1.0]]]), (0.1, 0.5))
    np.testing.assert_allclose(losses[:, 0, :, 0], [[0.1, 0.5], [0.9, 0.5]])


def test_the_winkler_score_is_the_width_and_a_penalty_for_labels_outside() -> None:
    low, high, labels = np.zeros(3), np.ones(3), np.array([0.5, 1.2, -0.1])
    np.testing.assert_allclose(winkler(low, high, labels, 0.8), [1.0, 1.0 + 10 * 0.2, 1.0 + 10 * 0.1])


def test_mase_is_in_units_of_the_seasonal_naive_forecasts_error() -> None:
    scores = scored(np.zeros((1, 1, 5)), np.array([[3.0]]), season=2.0)
    assert scores.mean("mase") == 1.5
    assert scores.mean("mae") == 3.0


def intervals(sensors: int, outside: dict[int, int]) -> Scores:
    """Scores of ten labels per sensor; ``outside`` maps a sensor to its labels outside the inner interval."""
    forecasts = np.tile(np.array([-2.0, -1.0, 0.0, 1.0, 2.0]), (sensors, 10, 1))
    labels = np.zeros((sensors, 10))
    for sensor, count in outside.items():
        labels[sensor, :count] = 1.5  # outside the inner interval only
    return scored(forecasts, labels)


def test_coverage_is_given_for_every_interval_from_the_outermost() -> None:
    outer, inner = intervals(2, {0: 4}).intervals()
    assert (outer.nominal, inner.nominal) == (pytest.approx(0.9), pytest.approx(0.8))
    assert (outer.overall, inner.overall) == (1.0, 0.8)
    assert (inner.worst, inner.worst_off) == (0.6, pytest.approx(0.2))


def test_the_worst_sensors_are_a_tenth_from_twenty_sensors_on() -> None:
    _, few = intervals(19, {0: 10}).intervals()
    assert few.worst == 0.0
    _, many = intervals(20, {0: 10, 1: 8}).intervals()
    assert many.worst == pytest.approx(0.1)


def test_coverage_above_and_below_nominal_does_not_cancel() -> None:
    _, inner = intervals(40, {0: 10, 1: 4, 2: 0, 3: 0}).intervals()
    assert inner.worst_off == pytest.approx((0.8 + 0.2 + 0.2 + 0.2) / 4)


def test_skill_is_the_relative_reduction_of_the_reference_loss() -> None:
    ours = scored(np.zeros((1, 1, 5)), np.array([[1.0]]))
    theirs = scored(np.zeros((1, 1, 5)), np.array([[4.0]]))
    assert skill(ours, theirs, "mae") == 0.75
    assert skill(theirs, ours, "mae") == -3.0
    assert np.isnan(skill(ours, scored(np.zeros((1, 1, 5)), np.zeros((1, 1))), "mae"))


def test_a_missing_label_is_not_scored() -> None:
    scores = scored(np.zeros((1, 2, 5)), np.array([[np.nan, 1.0]]))
    assert scores.n.tolist() == [[1]]
    for metric in ("mse", "mae", "winkler", "crps", "width"):
        assert np.isfinite(scores.mean(metric))
