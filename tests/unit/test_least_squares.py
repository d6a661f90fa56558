"""Recursive least squares finds the weights, and stays bounded without excitation."""

import numpy as np

from model import least_squares


def test_least_squares_stays_bounded_over_a_million_labels_without_excitation() -> None:
    # 20 problems of 5,000 labels each. The forgetting factor makes 5,000 labels count as a million.
    D = 6
    rng = np.random.default_rng(4)
    for _ in range(20):
        root = least_squares.blank_root(D)
        weights = np.zeros((D, 1))
        for _ in range(5000):
            x = np.zeros(D)
            x[0] = 1.0
            x[1] = 1e-9 * rng.standard_normal()
            least_squares.update(root, weights, x, rng.standard_normal(1) - x @ weights, 0.9995**200)
        variance = np.linalg.eigvalsh(root @ root.T)
        assert variance.min() >= -1e-6
        assert variance.max() <= D * least_squares.PRIOR_VARIANCE
        assert np.abs(weights).max() < 10.0


def test_least_squares_finds_the_weights() -> None:
    rng = np.random.default_rng(5)
    truth = rng.standard_normal((4, 5))
    root, weights = least_squares.blank_root(4), np.zeros((4, 5))
    for _ in range(300):
        x = rng.standard_normal(4)
        least_squares.update(root, weights, x, x @ (truth - weights), 1.0)
    np.testing.assert_allclose(weights, truth, atol=0.01)
