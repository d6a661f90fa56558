"""Calibration: honest coverage whatever the model's spread, quantiles that never cross, factors that stay bounded."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from model import calibration

Floats = NDArray[np.float64]
LEVELS = (0.05, 0.1, 0.5, 0.9, 0.95)
NORMAL = np.array([-1.645, -1.282, 0.0, 1.282, 1.645])


def coverage(labels: Floats, believed_scale: float, skip: int) -> tuple[float, float]:
    """Share of labels (T, n) inside the 80 % and the 90 % interval of a model that believes in a normal spread."""
    T, n = labels.shape
    factors = np.zeros((n, len(LEVELS), 1))
    model = np.broadcast_to(believed_scale * NORMAL[:, None], (n, len(LEVELS), 1))
    inside = np.zeros((2, T, n))
    for t in range(T):
        quantiles = calibration.apply(model, np.exp(factors), 2)
        for row, (low, high) in enumerate(((1, 3), (0, 4))):
            inside[row, t] = (quantiles[:, low, 0] <= labels[t]) & (labels[t] <= quantiles[:, high, 0])
        step = calibration.step_size(np.full(n, t), 1)
        factors = calibration.observe(factors, labels[t][:, None], quantiles, LEVELS, step)
    return inside[0, skip:].mean(), inside[1, skip:].mean()


@pytest.mark.parametrize("believed_scale", [0.1, 1.0, 2.0])
def test_coverage_is_honest_however_wrong_the_models_spread(believed_scale: float) -> None:
    labels = np.random.default_rng(0).standard_normal((3000, 10))
    narrow, wide = coverage(labels, believed_scale, 1500)
    assert narrow == pytest.approx(0.8, abs=0.02)
    assert wide == pytest.approx(0.9, abs=0.02)


def test_coverage_is_honest_on_skewed_and_on_drifting_labels() -> None:
    rng = np.random.default_rng(1)
    for labels in (
        rng.exponential(size=(3000, 10)) - 0.7,
        rng.standard_normal((3000, 10)) * np.exp(np.sin(np.arange(3000) / 240))[:, None],
    ):
        narrow, wide = coverage(labels, 1.0, 1500)
        assert narrow == pytest.approx(0.8, abs=0.02)
        assert wide == pytest.approx(0.9, abs=0.02)


def test_without_labels_the_models_quantiles_stand() -> None:
    model = np.broadcast_to(NORMAL[:, None], (1, 5, 4))
    np.testing.assert_array_equal(calibration.apply(model, np.ones((1, 5, 4)), 2), model)


def test_a_missing_label_moves_nothing() -> None:
    before = np.random.default_rng(2).standard_normal((3, 5, 2))
    labels = np.full((3, 2), np.nan)
    quantiles = np.zeros((3, 5, 2))
    np.testing.assert_array_equal(calibration.observe(before, labels, quantiles, LEVELS, np.ones(3)), before)


def test_factors_are_bounded_over_any_run_of_misses() -> None:
    factors = np.zeros((1, 5, 1))
    for _ in range(10_000):
        factors = calibration.observe(factors, np.array([[1e9]]), np.zeros((1, 5, 1)), LEVELS, np.array([0.1]))
    assert np.abs(factors).max() <= calibration.LOG_BOUND


@given(
    arrays(np.float64, (2, 5, 3), elements=st.floats(-1e6, 1e6)),
    arrays(np.float64, (2, 5, 3), elements=st.floats(0, 9)),
)
def test_quantiles_never_cross_and_the_median_stays(quantiles: Floats, factors: Floats) -> None:
    quantiles = np.sort(quantiles, axis=1)
    scaled = calibration.apply(quantiles, factors, 2)
    assert (np.diff(scaled, axis=1) >= 0.0).all()
    np.testing.assert_array_equal(scaled[:, 2], quantiles[:, 2])
